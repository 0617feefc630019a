"""Checkpoints and the place in the training: everything that must agree when a run goes on.

Two files a run: `last.ckpt`, written every few minutes, at the end of each epoch and when a signal or a budget ends the
run, and `best.ckpt`, the weights with the best validation metric. They are written at optimizer steps only, never while
gradients accumulate, and where a validation is due after the step, after it.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from ..loading.datamodule import ShardDataModule
from ..shards.dataset import fsync_folder
from . import counters
from .stop import Stopped, StopRequest, agree


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, fsyncs and renames it: after a kill there is the old one or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(path.parent)


class Checkpoints(Checkpoint):
    """Advances the datamodule's place, saves, and stops when a signal asked for it.

    Lightning calls callbacks of type Checkpoint after all others, so what the others note of a step (ledger, meter) is
    noted before the place moves on.

    Args:
        monitor, mode: validation metric of the best weights, and whether `max` or `min` of it is best.
        every_minutes: time between checkpoints within an epoch.
        stop: where a signal is noted.
    """

    def __init__(self, monitor: str, mode: str, every_minutes: float = 10.0, stop: StopRequest | None = None) -> None:
        self.monitor, self.sign, self.every_seconds = monitor, 1 if mode == "max" else -1, 60 * every_minutes
        self.stop = stop or StopRequest()
        self.best: float | None = None
        self._is_best = False  # the checkpoint being written is the best one
        self._validated: tuple[int, int] | None = None  # (epoch, position) of the last validation that was completed
        self._saved_at = time.monotonic()

    # -- what a checkpoint holds of this callback, and how a run goes on from it
    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "is_best": self._is_best, "validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self._validated = state_dict["best"], state_dict["validated"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.stop.take_over(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        data = _data(trainer)  # stands at the checkpoint's place already
        done, left = data.batches(trainer.accumulate_grad_batches) if data.position else (0, 0)
        counters.rewrite(checkpoint["loops"]["fit_loop"], data.epoch, done, left)
        if checkpoint["callbacks"][self.state_key]["is_best"]:
            self._link_best(trainer)  # a kill may have come between the two files

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counters.at_start(trainer, validated=self._validated == _data(trainer).place)
        if (end := self.stop.due(trainer)) and end.status == "budget":
            raise end  # the checkpoint that it began with holds everything

    # -- the course of a training
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        _data(trainer).advance()
        if end := self.stop.due(trainer):
            self.save(trainer)
            raise end
        loop = trainer.fit_loop.epoch_loop
        assert trainer.fit_loop._data_fetcher is not None
        due = time.monotonic() - self._saved_at > self.every_seconds
        later = loop._should_check_val_fx(trainer.fit_loop._data_fetcher) or loop.batch_progress.is_last_batch
        if not later and agree(trainer, due):
            self.save(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self.stop.agreed(trainer):
            self.save(trainer)
            raise Stopped("stopped")  # the resume runs this validation from its begin

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validated = _data(trainer).place
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_with_best(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        measured = self._validated == _data(trainer).place
        _data(trainer).finish_epoch()
        if measured:
            self._save_with_best(trainer)
        else:
            self.save(trainer)

    def on_test_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if self.stop.agreed(trainer):
            raise Stopped("stopped")  # the training is saved; the resume tests anew

    # -- saving
    def save(self, trainer: L.Trainer) -> None:
        """Write `last.ckpt`, on all ranks."""
        trainer.save_checkpoint(self.folder(trainer) / "last.ckpt", weights_only=False)
        self._saved_at = time.monotonic()

    def _save_with_best(self, trainer: L.Trainer) -> None:
        """Save at a place that was just validated."""
        value = trainer.callback_metrics.get(f"val/{self.monitor}")
        score = float(value) if value is not None else math.nan
        self._is_best = not math.isnan(score) and (
            self.best is None or self.sign * (score - self.best) >= 0
        )  # of equals, the later
        if self._is_best:
            self.best = score
        self.save(trainer)
        if self._is_best:
            self._link_best(trainer)
        self._is_best = False

    def _link_best(self, trainer: L.Trainer) -> None:
        """Give `last.ckpt` the second name `best.ckpt`."""
        if not trainer.is_global_zero:
            return
        last, best = self.folder(trainer) / "last.ckpt", self.folder(trainer) / "best.ckpt"
        temporary = best.with_name(f".best.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        os.link(last, temporary)
        temporary.replace(best)
        temporary.unlink(missing_ok=True)  # renaming one name of a file onto another of its names does nothing
        fsync_folder(best.parent)

    @staticmethod
    def folder(trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"


def _data(trainer: L.Trainer) -> ShardDataModule:
    assert isinstance(trainer.datamodule, ShardDataModule)  # type: ignore[attr-defined]
    return trainer.datamodule  # type: ignore[attr-defined]
