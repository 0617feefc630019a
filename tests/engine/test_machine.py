"""The machine as it is: without what Linux alone has, without a home, with quotas, few files, no locks, bad reads."""

from __future__ import annotations

import builtins
import csv
import errno
import fcntl
import io
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lightning_shards import machine
from lightning_shards.data import remote
from lightning_shards.data.cache import Cache
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.remote import open_dataset
from lightning_shards.data.sample_reader import SampleReader
from lightning_shards.data.shard_file import ShardFile
from lightning_shards.entry import command, importing
from lightning_shards.errors import InputError, RunError
from lightning_shards.files import write_durably
from lightning_shards.runs.checkpoints import is_whole

from . import PATIENCE
from .conftest import encoded
from .in_place import PROJECT
from .servers import Web

FIRST = "train/000000.tar"
WANTED = (("png",), ("cls",))
# What a Mac, a container without a user and a cluster's file system lack, taken away in each process of a command.
LACKING = ("sched_getaffinity", "memfd_create", "preadv", "RWF_NOWAIT", "posix_fadvise", "posix_fallocate",
           "POSIX_FADV_DONTNEED", "POSIX_FADV_WILLNEED")  # fmt: skip
BARE = f"""
import builtins, errno, fcntl, io, multiprocessing, os, pwd, resource
for name in {LACKING}:
    if hasattr(os, name):
        delattr(os, name)
def refused(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
def nobody(*_):
    raise KeyError("uid not found")
def sysconf(name, real=os.sysconf):
    if name == "SC_PHYS_PAGES":
        raise ValueError("unrecognized configuration name")
    return real(name)
fcntl.flock, pwd.getpwuid, os.sysconf = refused, nobody, sysconf
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
multiprocessing.set_start_method("spawn", force=True)
def hidden(real):
    def function(path, *arguments, **keywords):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return real(path, *arguments, **keywords)
    return function
builtins.open = io.open = hidden(io.open)
os.open, os.listdir, os.scandir = hidden(os.open), hidden(os.listdir), hidden(os.scandir)
"""


# What Python has on Linux and not on macOS, of the modules that ask the system. (macOS before 11 lacks preadv.)
LINUX_ALONE = re.compile(
    r"""\b(?: os\.(?: sched_(?!yield\b|get_priority)\w+ | SCHED_\w+ | memfd_create | MFD_\w+ | preadv | pwritev
        | RWF_\w+ | posix_(?:fadvise|fallocate) | POSIX_FADV_\w+ | copy_file_range | splice | eventfd\w* | EFD_\w+
        | timerfd_\w+ | TFD_\w+ | getrandom | GRND_\w+ | \w+xattr | setns | unshare | CLONE_\w+ | pidfd_open
        | P_PIDFD | fdatasync | pipe2 | [gs]etres[ug]id | O_(?:DIRECT|TMPFILE|PATH|NOATIME|LARGEFILE|RSYNC) )
      | fcntl\.(?: F_(?:OFD|SEAL)_\w+ | F_(?:ADD|GET)_SEALS | F_[SG]ETPIPE_SZ | F_NOTIFY | F_[SG]ET(?:LEASE|SIG) )
      | resource\.(?: prlimit | RUSAGE_THREAD | RLIMIT_(?:MSGQUEUE|NICE|RTPRIO|RTTIME|SIGPENDING|SWAP|OFILE) )
      | signal\.(?: sigtimedwait | sigwaitinfo | pidfd_send_signal | SIGRT\w+ | SIG(?:PWR|POLL|STKFLT|CLD) )
      | socket\.(?: AF_(?:NETLINK|PACKET|VSOCK|ALG) | SOCK_(?:CLOEXEC|NONBLOCK) | SO_(?:PEERCRED|BINDTODEVICE) )
      | mmap\.(?: MAP_(?:POPULATE|HUGETLB|LOCKED) | MADV_\w+ ) | select\.(?:epoll|EPOLL\w+)
      | time\.CLOCK_(?:BOOTTIME|TAI) | (?:CDLL|LoadLibrary)\( )""",
    re.VERBOSE,
)
LINUX_FOLDERS = re.compile("/(?:proc|sys|dev/shm|run/user)\\b")


def test_the_machine_above_lacks_all_that_linux_alone_has_and_our_code_calls() -> None:
    """Each such call is taken away there; libc's are behind a question, /proc and /sys hidden at each open."""
    calls, folders = set(), set()
    for root in (Path(machine.__file__).parent, PROJECT / "src" / "team"):
        for path in root.rglob("*.py"):
            text, name = path.read_text(), path.name
            calls |= {(found[0], name if "(" in found[0] else "") for found in LINUX_ALONE.finditer(text)}
            folders |= {name for _ in LINUX_FOLDERS.finditer(text)}
    assert calls == {("CDLL(", "entry.py"), *((f"os.{name}", "") for name in LACKING)}
    assert folders == {"machine.py", "hardware.py", "energy.py"}, "each a read that may fail"
    assert LINUX_ALONE.search("os.sched_setaffinity(0, {1})") and not LINUX_ALONE.search("os.sched_yield(); os.pread()")


def test_a_machine_without_what_linux_alone_has_packs_trains_and_predicts(tmp_path: Path) -> None:
    for number in range(60):
        folder = tmp_path / "images" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), noise)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BARE)
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "USER")}
    path = os.pathsep.join([str(tmp_path / "site"), os.environ["PYTHONPATH"]])
    environment |= {"PYTHONPATH": path, "TMPDIR": str(tmp_path), "WANDB_MODE": "disabled"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
        return done.stdout

    run("-m", "team", "pack", "images", "data", "--workers", "1")
    settings = ["--data.global_batch_size", "8", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    run(str(PROJECT / "train.py"), "--config", str(PROJECT / "configs/sample.yaml"), "--data.path", "data",
        "--run", "bare", "--log.wandb", "false", *settings)  # fmt: skip
    run("-m", "team", "predict", "bare", "images", "--out", "predictions.csv")
    with (tmp_path / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 60


def test_an_environment_that_lacks_a_part_of_a_library_is_one_sentence(tmp_path: Path) -> None:
    """As after a removal that was broken off; a module that the project's own code lacks is the author's to see."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch.nn'] = None")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])}
    train = [sys.executable, str(PROJECT / "train.py"), "--run", "r"]
    done = subprocess.run(train, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr[-2000:]
    assert (
        "error: this environment is not whole (No module named 'torch.nn" in done.stderr
        and not (tmp_path / "runs").exists()
    )
    with pytest.raises(ModuleNotFoundError), importing():
        import no_such_module_of_ours  # noqa: F401


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "100000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max 100000"}, 64),
        ("0::/user/job\n", {"user/cpu.max": "350000 100000", "user/job/cpu.max": "max 100000"}, 4),
        ("0::/elsewhere\n", {"cpu.max": "50000 100000"}, 1),
        ("4:cpu,cpuacct:/docker/a\n", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("nonsense", {"cpu.max": "garbage"}, 64),
        (None, {}, 64),
    ],
)
def test_a_containers_quota_bounds_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str | None, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    if groups:
        (tmp_path / "own").write_text(groups)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text + "\n")
    assert machine.cpus() == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cpus() == 1


def test_copies_lie_in_the_temporary_folder_where_no_home_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(Path, "home", homeless)
    assert machine.cache_folder().parent == tmp_path
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert machine.cache_folder() == tmp_path / "home" / ".cache" / "lightning-shards"
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for a user id that owns nothing
    assert machine.cache_folder().parent == tmp_path


def test_libraries_without_a_home_keep_their_files_where_they_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B goes without pictures and metrics where it cannot write its files; torch would make a folder `~`."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    names = ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR")
    for name in names:
        monkeypatch.setenv(name, "as it was")  # which puts it back at the end, too
        monkeypatch.delenv(name)
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    machine.stand_in_for_home()
    assert not {*names} & {*os.environ}, "there is a home"
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("XDG_DATA_HOME", "chosen")
    machine.stand_in_for_home()
    assert "HOME" not in os.environ and os.environ["XDG_DATA_HOME"] == "chosen"
    place = Path(os.environ["XDG_CACHE_HOME"])
    assert place.parent == tmp_path and place.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(Path, "home", homeless)
    machine.stand_in_for_home()
    assert os.environ["HOME"] == os.environ["MPLCONFIGDIR"] == str(place)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(machine, "_own_folder", lambda: Path("/proc/none"))
    machine.stand_in_for_home()
    assert "HOME" not in os.environ, "nowhere to write: as it was"


def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int, times: int) -> list[int]:
    """`os.<name>` fails so often with this errno; returns what counts its failures."""
    real, failures = getattr(os, name), [0]

    def function(*arguments: object, **keywords: object) -> object:
        if failures[0] < times:
            failures[0] += 1
            raise OSError(number, os.strerror(number))
        return real(*arguments, **keywords)

    monkeypatch.setattr(os, name, function)
    monkeypatch.setattr(machine, "_PAUSES", (0.0, 0.0, 0.0))
    return failures


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_read_that_fails_for_a_moment_is_made_again(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    shard = Dataset.open(dataset).splits["train"][0]
    opened = ShardFile(shard, dataset / shard.name, WANTED)
    failures = failing(monkeypatch, "pread", number, 2)
    assert opened.read(3) == [encoded(3), b"0"] and failures == [2]
    failing(monkeypatch, "pread", number, 1_000)
    with pytest.raises(RunError, match=f"{FIRST} cannot be read at byte"):
        opened.read(4)


def test_what_is_opened_first_is_tried_again_too(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = Dataset.open(dataset).splits["train"][0]
    torch.save({"a": 1}, tmp_path / "last.ckpt")
    real, left = io.open, {"dataset.json": 0, "last.ckpt": 0}

    def stale(path: object, *arguments: object, **keywords: object) -> object:
        if left.get(name := Path(str(path)).name, 0):
            left[name] -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return real(path, *arguments, **keywords)  # type: ignore[call-overload]

    monkeypatch.setattr(machine, "_PAUSES", (0.0, 0.0, 0.0))
    for module in (io, builtins):
        monkeypatch.setattr(module, "open", stale)
    for times, right in ((2, True), (1_000, False)):
        left["last.ckpt"] = left["dataset.json"] = times
        assert is_whole(tmp_path / "last.ckpt") is right
        if right:
            Dataset.open(dataset)
    with pytest.raises(InputError, match=r"dataset\.json cannot be read \(Stale file handle\)"):
        Dataset.open(dataset)
    failing(monkeypatch, "open", errno.EIO, 1_000)
    with pytest.raises(RunError, match=f"{FIRST} cannot be opened"):
        ShardFile(shard, dataset / shard.name, WANTED)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EACCES])
def test_a_file_that_the_system_refuses_ends_any_command_in_a_sentence(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end, command():
        raise OSError(number, os.strerror(number), "runs")
    assert end.value.code == 1
    assert capsys.readouterr().err == f"error: runs cannot be used ({os.strerror(number)})\n"
    with pytest.raises(FileNotFoundError), command():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "ours")


def test_too_few_open_files_is_a_sentence_and_few_keep_fewer_shards_open(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = Dataset.open(dataset).splits["train"][0]
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (100, 100))
    assert SampleReader(Dataset.open(dataset), "train", WANTED)._keep_open == 25
    failing(monkeypatch, "open", errno.EMFILE, 10)
    with pytest.raises(RunError, match="ulimit -n"):
        ShardFile(shard, dataset / shard.name, WANTED)


def test_without_locks_shards_are_fetched_and_held_back_from_nobody(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / f"{'0' * 32}.{'0' * 32}.tmp").write_bytes(bytes(5000))  # another's download, as far as can be told
    reader = SampleReader(open_dataset(web.url), "train", WANTED, Cache(web.url, tmp_path, 10 << 20))
    assert [shard.read(row) for shard, row in reader.locate([0, 95])] == [
        [encoded(n), b"0123"[n % 3 :][:1]] for n in (0, 95)
    ]
    assert (tmp_path / f"{'0' * 32}.{'0' * 32}.tmp").exists()


def test_a_file_system_that_cannot_fsync_a_folder_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[[int], None] = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_durably(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("written", [str.lower, str.upper])
def test_a_proxy_of_the_environment_is_asked(
    web: Web, monkeypatch: pytest.MonkeyPatch, written: Callable[[str], str]
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(written("http_proxy"), web.url)
    monkeypatch.setattr(remote, "START_TRIES", 1)
    with pytest.raises(InputError, match="no such file"):  # the proxy's answer: it has no folder of this name
        open_dataset("http://shards.invalid/colours")
    assert any("shards.invalid" in path for path in web.gets)
    monkeypatch.setenv(written("no_proxy"), "shards.invalid")
    web.gets.clear()
    with pytest.raises((InputError, RunError), match=r"shards\.invalid"):  # there is no such host to go to without it
        open_dataset("http://shards.invalid/other")
    assert not web.gets


def test_a_certificate_of_ones_own_is_trusted_where_a_variable_names_it(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *options.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    web.server.socket = context.wrap_socket(web.server.socket, server_side=True)
    url = web.url.replace("http:", "https:")
    with pytest.raises(InputError, match=r"certificate is not trusted .*SSL_CERT_FILE"):
        open_dataset(url)
    code = "import sys; from lightning_shards.data.remote import open_dataset; print(open_dataset(sys.argv[1]).task)"
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        others = {variable: value for variable, value in os.environ.items() if variable != "SSL_CERT_FILE"}
        environment = {**others, name: str(certificate)}
        done = subprocess.run(
            [sys.executable, "-c", code, url], env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.stdout == "single_label\n", done.stderr[-2000:]


@pytest.mark.parametrize("fault", ["short", "long", "endless"])
def test_a_server_that_sends_the_wrong_length_each_time_is_given_up(
    web: Web, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(remote, "TRIES", 4)
    monkeypatch.setattr(remote, "LARGEST_FILE", 1 << 20)
    web.faults["dataset.json" if fault == "endless" else FIRST] = [fault] * 1_000
    with pytest.raises((RunError, InputError), match=FIRST if fault != "endless" else "dataset.json"):
        store = open_dataset(web.url)
        b"".join(remote.Remote(web.url).pieces(FIRST, store.splits["train"][0].bytes))
    assert len(web.gets[FIRST]) <= 8
