"""The ledger: which samples each optimizer step was made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import lightning as L

from ..files import append_to
from ..runs.values import is_count
from .checkpoint_io import Unwritten


class Ledger(L.Callback):
    """Writes `ledger/rank-<r>.jsonl`: one line per rank and optimizer step, written before the step can be saved.

    {"attempt", "epoch", "step", "position", "ids"}: `position` is where the step's global batch begins in the epoch's
    order, `ids` are the samples that this rank trained on. An attempt begins with a line without ids: what earlier
    attempts did from that position on is void.
    """

    def __init__(self) -> None:
        self._file: FileIO | None = None
        self._ids: list[int] = []
        self._attempt = 1

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = Path(trainer.default_root_dir) / "ledger"
        attempts: Iterator[Any] = (row.get("attempt") for path in folder.glob("rank-*.jsonl") for row in read(path))
        before = max((int(attempt) for attempt in attempts if is_count(attempt)), default=0)
        self._attempt = trainer.strategy.broadcast(before, src=0) + 1
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank-{trainer.global_rank}.jsonl"
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        self._file = path.open("ab", buffering=0)
        if torn:
            append_to(self._file, b"\n")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._ids += [i for i in batch.ids.tolist() if i >= 0]
        if not trainer.fit_loop._should_accumulate():
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if self._file is None:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        line = {
            "attempt": self._attempt,
            "epoch": data.epoch,
            "step": trainer.global_step,
            "position": data.position,
            "ids": self._ids,
        }
        try:
            append_to(self._file, (json.dumps(line) + "\n").encode())
        except OSError as error:  # what was asked for is a proof, so there is no training without it
            raise Unwritten(f"{self._file.name} could not be written ({error.strerror})") from None
        self._ids = []

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._file:
            self._file.close()
            self._file = None


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a ledger file; those that a kill has torn, and what is no line of one, are left out."""
    rows = []
    for line in path.read_text(errors="replace").split("\n"):
        with suppress(ValueError, RecursionError):
            if isinstance(row := json.loads(line), dict):
                rows.append(row)
    return rows
