"""One of several ranks dies: the others end with it, and whoever started them reads which one it was.

Three ways lead there. A collective operation fails at once where its transport notices the lost peer (gloo does; NCCL
often waits). The process that started a rank is told of its end: torchrun ends the others itself, and under Lightning's
launcher, rank zero watches them (`RankWatchdog`). And a rank ends with the process that started it (`command`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed import DistError  # type: ignore[attr-defined]

POLL = 0.5  # seconds between two looks at the other ranks
GRACE = 20.0  # seconds in which rank zero can end in order, after another one has failed
REAPED = 5.0  # seconds from a lost connection to the exit status of the rank that it led to
_TRANSPORTS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


class RankWatchdog:
    """Rank zero's eye on the ranks that Lightning's launcher started for it.

    Lightning's own observer tells nobody what it saw and kills rank zero with the rest, so that nothing is written.
    This one leaves it to rank zero to end in order; where that takes too long, it ends everything itself.

    Args:
        end: is given the sentence before everything is ended.
    """

    def __init__(self, end: Callable[[str], object]) -> None:
        self._end = end
        self._processes: list[subprocess.Popen[Any]] = []
        self._ending = threading.Event()
        subprocess_script._launch_process_observer = self._begin

    def _begin(self, child_processes: list[subprocess.Popen[Any]]) -> None:
        self._processes = child_processes
        threading.Thread(target=self._run, name="watch-of-ranks", daemon=True).start()

    def _run(self) -> None:
        while not (sentence := self._failed()):
            if all(process.returncode == 0 for process in self._processes):
                return
            time.sleep(POLL)
        if self._ending.wait(GRACE):
            return
        try:
            self._end(sentence)
        finally:  # also where the terminal that it would print on is gone, or the disk is full
            for process in self._processes:
                process.kill()
            os._exit(1)

    def stand_down(self) -> None:
        """Rank zero ends by itself."""
        self._ending.set()

    def _failed(self) -> str:
        """Which rank has failed and how; empty while none has."""
        for rank, process in enumerate(self._processes, 1):
            status = process.poll()
            if status and status < 0:
                memory = ": the kernel does that when memory runs out" if -status == signal.SIGKILL else ""
                return f"rank {rank} was killed by signal {-status} ({signal.Signals(-status).name}{memory})"
            if status:
                return f"rank {rank} failed with status {status}; what it said is above"
        return ""

    def explain(self, error: RuntimeError) -> str:
        """What a person should read in place of `error`; empty where it is this rank's own."""
        text = str(error).strip().partition("\n")[0]
        if not isinstance(error, DistError) and not any(name in text.lower() for name in _TRANSPORTS):
            return ""
        end = time.monotonic() + REAPED
        while self._processes and time.monotonic() < end:
            if sentence := self._failed():
                return sentence
            time.sleep(0.05)
        rank = rank_zero_only.rank  # type: ignore[attr-defined]
        return f"rank {rank} has lost another rank: it has ended, and said why itself, or does not answer ({text})"
