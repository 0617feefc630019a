"""What this machine lets a process use: cores, memory, open files, a folder for copies, locks.

Each question is asked of whatever the system has (Linux, macOS, a container with quotas, a file system without locks),
and has an answer where the system has none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

T = TypeVar("T")
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)  # of a shared file system whose server came back
_TROUBLE = (*_PASSING, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE,
            errno.ENFILE, errno.ENOMEM, errno.ENOTCONN, errno.EHOSTDOWN, errno.ELOOP)  # fmt: skip
_PAUSES = (0.1, 0.5, 2.0)  # seconds between tries
_UNKNOWN_MEMORY = 8 << 30


def cpus() -> int:
    """Cores that this process may use: its affinity, and no more than the quota of its container."""
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS
        count = os.cpu_count() or 1
    return max(1, min([count, *(-int(-quota // 1) for quota in _quotas())]))


def _quotas() -> Iterator[float]:
    """Cores that the control groups above this process allow, of version 2 (`cpu.max`) and 1 (`cpu.cfs_quota_us`)."""
    try:
        lines = [line.split(":", 2) for line in OWN_CGROUPS.read_text().splitlines()]
    except OSError:
        lines = []
    found = [("", "/"), ("cpu", "/")]  # a container sees its own group as the top
    found += [(names, path) for _, names, path in (line for line in lines if len(line) == 3)]
    for names, path in dict.fromkeys(found):
        if names and "cpu" not in names.split(","):
            continue
        for mount in [CGROUPS / "cpu", CGROUPS / "cpu,cpuacct"] if names else [CGROUPS, CGROUPS / "unified"]:
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                yield from _quota(mount / str(group).lstrip("/"))


def _quota(folder: Path) -> Iterator[float]:
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (folder / "cpu.max").read_text().split()
        yield int(quota) / int(period)  # `max` is no number
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:  # -1: none
            yield int(quota) / int(period)


def memory_bytes() -> int:
    """Of the machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN_MEMORY


def boot_id() -> str:
    """Another one after each start of the machine; "" where the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def open_files() -> int:
    """Descriptors that a process may have open: 256 on macOS, 1,024 and more elsewhere."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def cache_folder() -> Path:
    """Slurm's folder for the job on this node, else the user's cache; of a user without a home the temporary folder."""
    local = os.environ.get("TMPDIR") if "SLURM_JOB_ID" in os.environ else None
    if place := local or os.environ.get("XDG_CACHE_HOME"):
        return Path(place) / "lightning-shards"
    home = _home()
    return home / ".cache" / "lightning-shards" if home else _own_folder()


def _home() -> Path | None:
    """The user's, where there is one that can be written."""
    try:
        home = Path.home()
    except RuntimeError:  # a user id without an entry in the password file
        return None
    parent = next(path for path in (home / ".cache", home, *home.parents) if path.exists())
    return home if os.access(parent, os.W_OK) else None


def stand_in_for_home() -> None:
    """Let libraries keep their files among the temporary ones where there is no home to write into: W&B would log no
    pictures and then no metrics, torch make a folder called `~`. A home that can only be read has keys, and stays."""
    if _home():
        return
    place = _own_folder()
    with suppress(OSError):
        place.mkdir(mode=0o700, exist_ok=True)
        if place.stat().st_uid != os.getuid():
            return  # another user's
        try:
            Path.home()
        except RuntimeError:
            os.environ["HOME"] = str(place)
        for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR"):
            os.environ.setdefault(name, str(place))


def _own_folder() -> Path:
    """Of this user among the temporary files; whether it can be written is seen when something is."""
    try:
        place = tempfile.gettempdir()
    except OSError:  # no folder for temporary files can be written
        place = "/tmp"
    return Path(place) / f"lightning-shards-{os.getuid()}"


def stop_signals() -> list[int]:
    """What asks a command to end: Ctrl-C, SIGTERM, and the end of its terminal, unless `nohup` keeps that from it."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hang_up]


def raise_on_stop() -> None:
    """Each of them raises KeyboardInterrupt, so that temporary files are removed."""
    for number in stop_signals():
        signal.signal(number, signal.default_int_handler)


def lock(descriptor: int, shared: bool = False, wait: bool = True) -> bool | None:
    """Take the lock of a file: whether it was taken; None on a file system that has no locks."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


@contextmanager
def locked(path: Path, stop: Callable[[], bool] | None = None) -> Iterator[None]:
    """Hold the lock file `path`, which stays there; on a file system without locks, nothing is held.

    Waits until it is free, or raises BlockingIOError once `stop` says true.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        while lock(descriptor, wait=stop is None) is False:
            if stop is not None and stop():
                raise BlockingIOError(errno.EWOULDBLOCK, "the lock is held", str(path))
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def trouble(error: OSError) -> str:
    """What the machine has against a file, in a sentence; empty for an error that is more likely a defect of ours."""
    where = f"{error.filename} cannot be used" if error.filename else "a file cannot be used"
    return f"{where} ({error.strerror})" if error.errno in _TROUBLE else ""


def persistently(attempt: Callable[[], T]) -> T:
    """What `attempt` gives, tried again where a shared file system fails for a moment. Raises its last OSError."""
    for pause in _PAUSES:
        try:
            return attempt()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(pause)
    return attempt()
