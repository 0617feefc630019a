"""A callback that counts images and joules while a trainer runs, warm-up left out, and ends it after a time."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Trainer

from ..cost.energy import EnergyMeter
from ..data.batch import Batch

WARM_SECONDS = 20.0  # after the first batch; enough where a batch takes long


class Clock(L.Callback):
    """Counts images while a trainer runs, once that is warm, and ends it after `seconds`.

    Attributes: `images`, `seconds`, and the `joules` that were taken meanwhile, None where they are not known.
    """

    def __init__(self, limit: float, meter: EnergyMeter | None = None) -> None:
        self.limit, self.meter = limit, meter
        self.images, self.seconds, self.joules = 0, 0.0, None if meter is None else 0.0
        self._batches, self._first, self._began = 0, 0.0, 0.0
        self._joules: float | None = None

    @property
    def rate(self) -> float:
        """Images per second; 0 where the trainer ended before it was warm."""
        return self.images / self.seconds if self.seconds else 0.0

    def on_train_batch_end(self, trainer: Trainer, model: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        whole = not trainer.fit_loop._should_accumulate()  # an optimizer step is done
        trainer.should_stop = self._tick(trainer, batch, whole)

    def on_validation_batch_end(self, trainer: Trainer, model: Any, outputs: Any, batch: Batch, *_: Any) -> None:
        if self._tick(trainer, batch, True):
            raise Enough

    def _tick(self, trainer: Trainer, batch: Batch, whole: bool) -> bool:
        """Note a batch; whether it was the last one."""
        now = time.perf_counter()
        if self._began:
            self.images += len(batch.ids)
            if whole and now - self._began > self.limit:
                _synchronize(trainer)
                self.seconds = time.perf_counter() - self._began
                joules = self.meter.joules() if self.meter else None
                self.joules = None if joules is None or self._joules is None else joules - self._joules
                return True
            return False
        self._batches, self._first = self._batches + 1, self._first or now
        ahead = trainer.datamodule.made_ahead  # type: ignore[attr-defined]  # is used up before it counts
        if whole and (self._batches > ahead or now - self._first > WARM_SECONDS):
            _synchronize(trainer)
            self._joules = self.meter.joules() if self.meter else None
            self._began = time.perf_counter()
        return False


class Enough(Exception):
    """Ends a validation that was measured for long enough."""


def _synchronize(trainer: Trainer) -> None:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()
