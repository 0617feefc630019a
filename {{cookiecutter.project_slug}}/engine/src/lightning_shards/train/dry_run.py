"""`trainer.fast_dev_run`: everything that a run does, on a few batches, and nothing that it leaves behind."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from .run import Run
from .stop import StopRequest


class DryRun(Run):
    """A run in a temporary folder, which goes with it. `batches` is how many of each split are tried."""

    def __init__(self, batches: int, describe: Callable[[], dict[str, Any]], stop: StopRequest) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="fast_dev_run-")
        super().__init__(Path(self._temporary.name), "", False, describe, stop)
        self.batches = batches

    @property
    def best_checkpoint(self) -> Path | None:
        return None

    @property
    def how_to_go_on(self) -> str:
        return "Nothing was written"

    def report(self) -> str:
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            return ""
        tried = "one batch" if self.batches == 1 else f"up to {self.batches} batches"
        return f"fast_dev_run: {tried} of each split went through; nothing was written"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, traceback)
        finally:
            self._temporary.cleanup()

    def _write(self, status: str, error: str | None) -> None:
        """No summary, no report."""
