"""Callbacks that watch a training: the ledger of what was trained on when, and the guard against losses gone wrong."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any, TextIO

import lightning as L
import torch
from torch import Tensor

from ..shards.errors import RunError

_ADVICE = "Try a lower model.learning_rate or trainer.gradient_clip_val 1.0"


class Ledger(L.Callback):
    """Writes `ledger/rank-<r>.jsonl`: one line per rank and optimizer step, flushed before the step can be saved.

    {"attempt", "epoch", "step", "position", "ids"}: `position` is where the step's global batch begins in the epoch's
    order, `ids` are the samples that this rank trained on. An attempt begins with a line without ids: what earlier
    attempts did from that position on is void.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._ids: list[int] = []
        self._attempt = 1

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = Path(trainer.default_root_dir) / "ledger"
        before = max((row["attempt"] for path in folder.glob("rank-*.jsonl") for row in read(path)), default=0)
        self._attempt = trainer.strategy.broadcast(before, src=0) + 1
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank-{trainer.global_rank}.jsonl"
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a")
        if torn:
            self._file.write("\n")

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
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._ids = []

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._file:
            self._file.close()
            self._file = None


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a ledger file; lines that a kill has torn are left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class FiniteLoss(L.Callback):
    """Ends the run when a loss is not finite, with the ids of the samples, before such weights reach a checkpoint.

    The check costs a copy from the device, so it is made every `every` steps and before each checkpoint.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self._recent: deque[tuple[Tensor, Tensor]] = deque()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._recent.append((outputs["loss"].detach(), batch.ids))
        if len(self._recent) >= self.every:
            self.check()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.check()
        if not all(bool(p.isfinite().all()) for p in pl_module.parameters()):
            raise RunError(
                "the weights are no longer finite after this step; the last checkpoint was written before it. "
                + _ADVICE
            )

    def check(self) -> None:
        recent = list(self._recent)
        self._recent.clear()
        if recent and not bool(torch.stack([loss for loss, _ in recent]).isfinite().all()):
            ids = next(ids for loss, ids in recent if not bool(loss.isfinite())).tolist()
            shown = ", ".join(map(str, ids[:8])) + (f", ... ({len(ids)} in all)" if len(ids) > 8 else "")
            raise RunError(
                f"the loss is no longer finite; first in the batch with sample ids {shown}. The last checkpoint was"
                f" written before it. {_ADVICE}, and look at these samples"
            )
