"""Speed as it is: images per second, the share of time spent waiting for data, and what the training takes."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ..cost.usage import Usage
from ..data.sizes import relative_work
from ..runs.values import is_number
from ..terminal import say
from . import loop_state
from .cost_tracker import CostTracker
from .nan_guard import loss_of

EXPECT_AFTER = 10.0  # seconds of training from which its rate is known
VALIDATION = 0.5  # time of an image in validation, for one in training: a forward of forward and backward, and decoding


class Throughput(L.Callback):
    """Measure the speed of a training, validation excluded, and its time, energy and money, over all its attempts.

    Every `trainer.log_every_n_steps` steps `speed/...` and `cost/...` go to the loggers. The rate of the whole run
    leaves out the first batch of each attempt: starting threads, compiling and choosing kernels is no speed. Once the
    rate is known, a line says what the run is expected to take.
    """

    state_key = "lightning_shards/throughput"

    def __init__(self, spending: CostTracker) -> None:
        self.spending = spending
        self.rate = 0.0  # images per second, of late
        self.wait = 0.0  # share of the time that the trainer waited for batches, of late
        self.total = Usage(0.0)  # what the run has taken, of late
        self._totals = {"images": 0, "seconds": 0.0, "waited": 0.0}  # without each attempt's first batch
        self._since = self._waited = 0.0
        self._before = dict(self._totals)  # what earlier attempts did
        self._validation: float | None = None  # seconds that one takes
        self._announced = False
        self._images = 0
        self._warm = False

    @property
    def images_per_second(self) -> float | None:
        """Of the whole run; None before the second batch."""
        images, seconds = self._totals["images"] + self._images, self._totals["seconds"] + self._elapsed()
        return images / seconds if images and seconds else None

    @property
    def data_wait_fraction(self) -> float | None:
        seconds = self._totals["seconds"]
        return self._totals["waited"] / seconds if seconds else None

    def state_dict(self) -> dict[str, Any]:
        return {"spending": self.spending.state_dict(), "totals": dict(self._totals)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.spending.load_state_dict(state_dict["spending"])
        totals = {name: state_dict["totals"][name] for name in self._totals}
        if not all(map(is_number, totals.values())):
            raise ValueError(f"totals are {totals}")
        self._totals, self._before = totals, dict(totals)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.spending.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._warm:
            self._warm = True
            self._restart(trainer)
            return
        self._images += len(batch.ids) * trainer.world_size
        if trainer._logger_connector.should_update_logs and not trainer.fit_loop._should_accumulate():
            self._flush(trainer, loss_of(outputs))
            if self._totals["seconds"] - self._before["seconds"] > EXPECT_AFTER:
                self._tell_expected(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._warm and trainer.state.fn == "fit":
            self._flush(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._validation = self._elapsed() or None
            self._restart(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.close(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.close(trainer)

    def close(self, trainer: L.Trainer) -> None:
        """Count what has run so far."""
        if self._warm:
            self._flush(trainer)
        self.spending.stop()
        self._since = 0.0

    def _elapsed(self) -> float:
        return time.monotonic() - self._since if self._since else 0.0

    def _restart(self, trainer: L.Trainer) -> None:
        self._since, self._images = time.monotonic(), 0
        self._waited = trainer.datamodule.wait_seconds  # type: ignore[attr-defined]

    def _flush(self, trainer: L.Trainer, loss: Tensor | None = None) -> None:
        """Close the current stretch: add it to the totals, send its speed to the loggers.

        The loss goes with it for a model that logs none itself.
        """
        seconds, images = self._elapsed(), self._images
        if not self._since or not images:
            return
        waited = trainer.datamodule.wait_seconds - self._waited  # type: ignore[attr-defined]
        self._totals["images"] += images
        self._totals["seconds"] += seconds
        self._totals["waited"] += waited
        self.rate, self.wait = images / seconds, waited / seconds
        figures = {"speed/images_per_second": self.rate, "speed/data_wait_fraction": self.wait}
        if trainer.strategy.root_device.type == "cuda":
            figures["speed/gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self.total = self.spending.total
        figures |= {"cost/kwh": self.total.kwh} if self.total.kwh is not None else {}
        figures |= {"cost/money": self.total.cost} if self.total.cost is not None else {}
        if loss is not None and not any("loss" in name and "val" not in name for name in trainer.callback_metrics):
            figures["train/loss"] = float(loss)
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        self._restart(trainer)

    def _tell_expected(self, trainer: L.Trainer) -> None:
        """Say once what the whole run will take, at this attempt's rate."""
        images, seconds = (self._totals[name] - self._before[name] for name in ("images", "seconds"))
        if self._announced or not images or not trainer.is_global_zero:
            return
        self._announced = True
        data, epochs = trainer.datamodule, trainer.max_epochs or 1  # type: ignore[attr-defined]
        steps, left = sum(data.batches(1)), data.batches(1)[1]
        work, side = relative_work(data.sides, data.epoch, epochs), f" of {data.side} pixels" if data.sides else ""
        done = work[min(data.epoch, epochs - 1)] * (1 - left / steps)  # of the epoch that the training is in
        ahead = (sum(work[data.epoch :]) - done) / sum(work)
        if self._validation is None:
            held_out = data.dataset.samples("val") if data.dataset.splits.get("val") else 0
            self._validation = held_out * VALIDATION * seconds / images
        training = sum(work) * steps * data.global_batch_size * seconds / images
        validating = loop_state.validations(trainer, steps, epochs) * self._validation
        expected = self.spending.expect((training + validating) * ahead)
        bar = trainer.progress_bar_callback
        tell = bar.print if bar else say
        tell(f"expected: {expected} in all, at {images / seconds:,.0f} images/s{side}")
