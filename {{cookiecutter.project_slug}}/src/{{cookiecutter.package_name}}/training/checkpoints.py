"""Checkpoints, the place in the training, and stopping on a signal: everything that must agree when a run goes on.

Two files a run: `last.ckpt`, written every few minutes, at the end of each epoch and when a signal asks for the end,
and `best.ckpt`, the weights with the best validation metric. They are written at optimizer steps only, never while
gradients accumulate, and where a validation is due after the step, after it.
"""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from ..loading.datamodule import ShardDataModule
from ..shards.dataset import fsync_folder

STOPPED = 75  # exit status: stopped by a signal with everything saved (EX_TEMPFAIL of sysexits.h: try again)


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
    """

    def __init__(self, monitor: str, mode: str, every_minutes: float = 10.0) -> None:
        self.monitor, self.sign, self.every_seconds = monitor, 1 if mode == "max" else -1, 60 * every_minutes
        self.best: float | None = None
        self.signal = 0
        self._saved_at = time.monotonic()
        self._validation_pending = False
        self._previous_handlers: dict[int, Any] = {}

    # -- what a checkpoint holds of this callback
    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    # -- signals
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # not earlier: Lightning sets its own handlers between on_fit_start and here
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[number] = signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            os._exit(128 + number)  # a second Ctrl-C: at once
        self.signal = number

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    # -- the course of a training
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        _data(trainer).advance()
        loop = trainer.fit_loop.epoch_loop
        assert trainer.fit_loop._data_fetcher is not None
        validation_due = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        if self._agree(trainer, bool(self.signal)):
            self.save(trainer, validation_pending=validation_due)
            raise SystemExit(STOPPED)
        time_due = time.monotonic() - self._saved_at > self.every_seconds
        if not validation_due and not loop.batch_progress.is_last_batch and self._agree(trainer, time_due):
            self.save(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._agree(trainer, bool(self.signal)):
            self.save(trainer, validation_pending=True)
            raise SystemExit(STOPPED)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (
            trainer.state.fn == "fit"
            and not trainer.sanity_checking
            and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        ):
            self._save_with_best(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _data(trainer).finish_epoch()
        self._save_with_best(trainer)

    # -- saving
    def save(self, trainer: L.Trainer, validation_pending: bool = False) -> None:
        """Write `last.ckpt`, on all ranks; with a pending validation so that the resume runs it from its begin."""
        self._validation_pending = validation_pending
        trainer.save_checkpoint(self.folder(trainer) / "last.ckpt", weights_only=False)
        self._validation_pending = False
        self._saved_at = time.monotonic()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._validation_pending:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress["current"] = {"ready": 0, "started": 0, "processed": 0, "completed": 0}

    def _save_with_best(self, trainer: L.Trainer) -> None:
        value = trainer.callback_metrics.get(f"val/{self.monitor}")
        score = float(value) if value is not None else math.nan
        better = not math.isnan(score) and (
            self.best is None or self.sign * (score - self.best) >= 0
        )  # of equals, the later
        if better:
            self.best = score
        self.save(trainer)
        if better and trainer.is_global_zero:
            last, best = self.folder(trainer) / "last.ckpt", self.folder(trainer) / "best.ckpt"
            temporary = best.with_name(f".best.{os.getpid()}.tmp")
            temporary.unlink(missing_ok=True)
            os.link(last, temporary)
            temporary.replace(best)
            fsync_folder(best.parent)

    @staticmethod
    def folder(trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"

    @staticmethod
    def _agree(trainer: L.Trainer, flag: bool) -> bool:
        """True on every rank if it is on one: ranks must save and stop at the same step."""
        if trainer.world_size == 1:
            return flag
        return bool(trainer.strategy.reduce_boolean_decision(flag, all=False))


def _data(trainer: L.Trainer) -> ShardDataModule:
    assert isinstance(trainer.datamodule, ShardDataModule)  # type: ignore[attr-defined]
    return trainer.datamodule  # type: ignore[attr-defined]
