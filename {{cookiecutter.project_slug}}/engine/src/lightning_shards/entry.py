"""How every command of this project ends: with one sentence and an exit status, or with the traceback of a defect."""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from . import machine
from .errors import InputError, RunError
from .terminal import printable, say

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextmanager
def command() -> Iterator[None]:
    """Bad input ends with status 2; a run that failed, and a file that the system refuses, with 1; Ctrl-C where nothing
    is half done with 130."""
    _end_with_the_launcher()
    _open_closed_streams()
    machine.stand_in_for_home()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # letters that this terminal's encoding does not have
    try:
        yield
    except InputError as error:
        sys.exit(_say(f"error: {error}", 2))
    except RunError as error:
        sys.exit(_say(f"error: {error}", 1))
    except OSError as error:
        if not (sentence := machine.trouble(error)):
            raise
        sys.exit(_say(f"error: {sentence}", 1))
    except KeyboardInterrupt:
        sys.exit(_say("stopped; nothing was written", 130))


@contextmanager
def importing() -> Iterator[None]:
    """While modules are imported, the first time, nothing is garbage: to look for it would take half a second of three,
    and to look through all that they made, as a full collection does, a fifth of a second each time."""
    if gc.get_freeze_count():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
        atexit.register(gc.unfreeze)  # at the end they are garbage
    except ImportError as error:
        if not _in_a_library(error):
            raise
        raise InputError(
            f"this environment is not whole ({error}): remove .venv, then `make setup` or `uv sync` makes it anew"
        ) from None
    finally:
        gc.enable()


def _in_a_library(error: ImportError) -> bool:
    """Whether what could not be imported is asked for by an installed library, and not by code of the project's."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "site-packages" in next((name for name in reversed(frames) if not name.startswith("<frozen")), "")


def _open_closed_streams() -> None:
    """A standard stream that the command was started without (`>&-`) leads nowhere, here and in processes started from
    here. Closed it would be None, and its descriptor that of the next file."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: PTH123, SIM115 - open as long as the process
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _end_with_the_launcher() -> None:
    """A rank that a process on this host started (torchrun, Lightning's rank zero) dies with it.

    On Linux the kernel sees to it, also where a rank is busy or waits for the others; elsewhere a thread looks.
    """
    if "LOCAL_RANK" not in os.environ:
        return
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_end_without, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it has just died
        sys.exit(1)


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """Of this process among all of the training."""
    for name in ("RANK", "SLURM_PROCID"):  # of torchrun, of srun
        if name in environment:
            return int(environment[name])
    return int(environment.get("NODE_RANK", 0)) or int(environment.get("LOCAL_RANK", 0))


def _say(sentence: str, status: int) -> int:
    say(printable(f"rank {rank()}: {sentence}" if rank() else sentence), sys.stderr)
    return status
