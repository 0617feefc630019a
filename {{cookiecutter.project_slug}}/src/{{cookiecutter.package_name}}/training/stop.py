"""Stopping on a signal, or for a budget: noted when it comes, and obeyed where everything can be saved."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import lightning as L

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
    """Notes SIGINT and SIGTERM while its context lasts; the ranks agree on it at the end of their batches.

    It lasts from the run's first file to its last, so that a signal at any time has the same end. Lightning's own
    handlers are kept out (`take_over`): they hold a collective operation inside the handler, where ranks can miss each
    other for good, and end with status 0 and nothing saved.

    Args:
        spent: which budget is used up, on the rank that keeps it; else empty.
    """

    def __init__(self, spent: Callable[[], str] = lambda: "") -> None:
        self.number, self.budget = 0, ""
        self._spent = spent
        self._noted_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._noted_at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._noted_at > SAME_PRESS:
            os._exit(128 + number)  # a second Ctrl-C: at once

    @staticmethod
    def take_over(trainer: L.Trainer) -> None:
        """Keep Lightning from setting handlers of its own over ours."""
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def agreed(self, trainer: L.Trainer) -> bool:
        """Whether any rank was told to stop; asks all of them."""
        return agree(trainer, bool(self.number))

    def due(self, trainer: L.Trainer) -> Stopped | None:
        """How all ranks are to end here: for a signal on any of them, or for the budget; None: not yet."""
        self.budget = self._spent()
        if not agree(trainer, bool(self.number or self.budget)):
            return None
        return Stopped("stopped" if self.agreed(trainer) else "budget")


def agree(trainer: L.Trainer, flag: bool) -> bool:
    """True on every rank if it is on one: ranks must save and stop at the same step."""
    if trainer.world_size == 1:
        return flag
    return bool(trainer.strategy.reduce_boolean_decision(flag, all=False))
