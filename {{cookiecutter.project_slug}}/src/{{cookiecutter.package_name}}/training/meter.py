"""Speed as it is: images per second, the share of time spent waiting for data, and the seconds of training."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar


class Meter(L.Callback):
    """Measures a training, validation excluded, over all its attempts.

    Every `trainer.log_every_n_steps` steps `speed/...` goes to the loggers. The rate of the whole run leaves out the
    first batch of each attempt: starting threads, compiling and choosing kernels is no speed.
    """

    def __init__(self) -> None:
        self.seconds = 0.0  # training and validation, all attempts
        self.rate = 0.0  # images per second, of late
        self.wait = 0.0  # share of the time that the trainer waited for batches, of late
        self._totals = {"images": 0, "seconds": 0.0, "waited": 0.0}  # without each attempt's first batch
        self._began = self._since = self._waited = 0.0
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
        return {"seconds": self.seconds + time.monotonic() - self._began, "totals": dict(self._totals)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self._totals = state_dict["seconds"], dict(state_dict["totals"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._warm:
            self._warm = True
            self._restart(trainer)
            return
        self._images += len(batch.ids) * trainer.world_size
        if trainer._logger_connector.should_update_logs and not trainer.fit_loop._should_accumulate():
            self._flush(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._warm and trainer.state.fn == "fit":
            self._flush(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._restart(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.close(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.close(trainer)

    def close(self, trainer: L.Trainer) -> None:
        """Count what has run so far."""
        if self._began:
            if self._warm:
                self._flush(trainer)
            self.seconds += time.monotonic() - self._began
            self._began = 0.0
            self._since = 0.0

    def _elapsed(self) -> float:
        return time.monotonic() - self._since if self._since else 0.0

    def _restart(self, trainer: L.Trainer) -> None:
        self._since, self._images = time.monotonic(), 0
        self._waited = trainer.datamodule.wait_seconds  # type: ignore[attr-defined]

    def _flush(self, trainer: L.Trainer) -> None:
        """Close the current stretch: add it to the totals, send its speed to the loggers."""
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
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        self._restart(trainer)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with the speed beside the loss."""

    def __init__(self, meter: Meter) -> None:
        super().__init__(refresh_rate=20)
        self.meter = meter

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning tells the bar what an epoch is when one begins, so not after a resume in the middle of one."""
        super().on_train_start(trainer, pl_module)
        self.train_progress_bar.reset(trainer.num_training_batches)
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch}")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The loss is read here, when it is shown: logged with `prog_bar`, Lightning would read it in every step."""
        items = {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
        if (loss := trainer.callback_metrics.get("train/loss")) is not None:
            items = {"train/loss": float(loss), **items}
        if self.meter.rate:
            items |= {"img/s": f"{self.meter.rate:,.0f}", "wait": f"{self.meter.wait:.0%}"}
        return items
