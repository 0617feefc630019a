"""Stopping on a signal, or for a budget: noted when it comes, and obeyed where everything can be saved."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from .. import machine

EXIT = {  # statuses of ends with everything saved
    "stopped": 75,  # by a signal (EX_TEMPFAIL of sysexits.h: try again)
    "budget": 0,  # all that was allowed is done
}
SAME_PRESS = 1.0  # seconds: torchrun hands a Ctrl-C on to ranks that the terminal has told already


class Stopped(SystemExit):
    """A training ends in order: `status` is what `summary.json` says of it."""

    def __init__(self, status: str) -> None:
        super().__init__(EXIT[status])
        self.status = status


class StopRequest:
    """Notes SIGINT, SIGTERM, SIGHUP and SIGUSR1 while its context lasts; the ranks agree at the end of their batches.

    It lasts from the run's first file to its last, so that a signal at any time has the same end. Lightning's own
    handlers are kept out (`take_over`): they hold a collective operation inside the handler, where ranks can miss each
    other for good, and end with status 0 and nothing saved. SIGUSR1 is Slurm's word that time is nearly up. It may come
    during the imports, and goes to helping processes too, which it would kill: so it is blocked from train.py's first
    line on, in them as well, and here it is asked whether it waits.

    Args:
        spent: which budget is used up, on the rank that keeps it; else empty.
    """

    def __init__(self, spent: Callable[[], str] = lambda: "") -> None:
        self._number, self.budget = 0, ""
        self._spent = spent
        self._noted_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        for number in machine.stop_signals():
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._number:
            self._number, self._noted_at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._noted_at > SAME_PRESS:
            os._exit(128 + number)  # a second Ctrl-C: at once

    @property
    def number(self) -> int:
        """The signal that came; 0: none yet."""
        return self._number or (signal.SIGUSR1 if signal.SIGUSR1 in signal.sigpending() else 0)

    @staticmethod
    def take_over(trainer: L.Trainer) -> None:
        """Keep Lightning from setting handlers of its own over ours, and from asking them in every step.

        With several ranks it broadcasts in every micro-batch whether SIGTERM came, and reads that back from the
        device, which makes the host wait for it.
        """
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def wishes(self) -> tuple[bool, bool]:
        """(a signal came, the budget is used up) on this rank."""
        self.budget = self._spent()
        return bool(self.number), bool(self.budget)


def ended(signal_came: bool, budget_spent: bool) -> Stopped | None:
    """How all ranks end, for what any of them wished; None: they go on."""
    return Stopped("stopped") if signal_came else Stopped("budget") if budget_spent else None


class RankConsensus:
    """Flags that are true on all ranks once they are on one, at the same step of each.

    With one rank at once. With several about once a second: hosts put their flags together over a gloo group of
    their own while the training goes on, and read the result a second later, so that neither a device nor another host
    is waited for. How many calls that is follows from the slowest rank's time between them: all ranks count alike.
    """

    def __init__(self, every_seconds: float = 1.0, most_calls: int = 1000) -> None:
        self.every_seconds, self.most_calls = every_seconds, most_calls
        self._group: Any = None
        self._pending: tuple[Any, Tensor] | None = None
        self._calls = self._left = 1  # between two exchanges, and until the next
        self._began = 0.0

    def start(self, trainer: L.Trainer) -> None:
        """On all ranks, before the first call."""
        if trainer.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")
        self._began = time.monotonic()

    def ask(self, *flags: bool) -> tuple[bool, ...]:
        """What the ranks wished when they last put their flags together; each calls it at the same steps."""
        if self._group is None:
            return flags
        self._left -= 1
        if self._left:
            return (False,) * len(flags)
        answer = (False,) * len(flags)
        now = time.monotonic()
        seconds = (now - self._began) / self._calls  # a call, by the number of calls that were made
        if self._pending:
            work, agreed = self._pending
            work.wait()
            answer = tuple(value > 0 for value in agreed[:-1].tolist())
            self._calls = min(self.most_calls, max(1, int(self.every_seconds / max(1e-9, float(agreed[-1])))))
        wished = torch.tensor([*map(float, flags), seconds], dtype=torch.float64)
        self._pending = dist.all_reduce(wished, dist.ReduceOp.MAX, self._group, async_op=True), wished
        self._began, self._left = now, self._calls
        return answer

    def finish(self) -> None:
        """No exchange may be under way when the process ends."""
        if self._pending:
            self._pending[0].wait()
            self._pending = None

    def now(self, *flags: bool) -> tuple[bool, ...]:
        """What the ranks wish now: waits for all of them to ask it."""
        if self._group is None:
            return flags
        wished = torch.tensor(flags, dtype=torch.int8)
        dist.all_reduce(wished, dist.ReduceOp.MAX, self._group)
        return tuple(bool(value) for value in wished.tolist())
