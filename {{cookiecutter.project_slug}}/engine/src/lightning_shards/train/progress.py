"""What a person sees of a training as it goes: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar as AnyBar
from lightning.pytorch.callbacks import TQDMProgressBar

from ..cost.usage import money, number
from ..terminal import say
from .throughput import Throughput

QUIET_SECONDS = 30.0  # between two lines


def progress_bar(meter: Throughput) -> AnyBar:
    """What fits standard output: a bar that is drawn over itself would be one line of kilobytes in a file."""
    return ProgressBar(meter) if sys.stdout.isatty() else ProgressLines(meter)


class _WithSpeed(AnyBar):
    """The speed beside the loss."""

    meter: Throughput

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The loss is read here, when it is shown: logged with `prog_bar`, Lightning would read it in every step."""
        items = {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
        if (loss := trainer.callback_metrics.get("train/loss")) is not None:
            items = {"train/loss": float(loss), **items}
        if self.meter.rate:
            items |= {"img/s": f"{self.meter.rate:,.0f}", "wait": f"{self.meter.wait:.0%}"}
            total = self.meter.total
            items |= {"kWh": number(total.kwh)} if total.kwh is not None else {}
            items |= {str(total.currency): money(total.cost)} if total.cost is not None else {}
        return items


class ProgressBar(_WithSpeed, TQDMProgressBar):
    """Lightning's bar with the speed beside the loss."""

    def __init__(self, meter: Throughput) -> None:
        super().__init__(refresh_rate=20)
        self.meter = meter

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning tells the bar what an epoch is when one begins, so not after a resume in the middle of one."""
        super().on_train_start(trainer, pl_module)
        self.train_progress_bar.reset(trainer.num_training_batches)
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch}")


class ProgressLines(_WithSpeed):
    """A line after each validation, and one in every half minute of training."""

    def __init__(self, meter: Throughput) -> None:
        super().__init__()
        self.meter = meter
        self._last = time.monotonic()
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        say(" ".join(map(str, args)))

    def disable(self) -> None:
        """Lightning asks for it on the ranks that say nothing."""
        self._enabled = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._last > QUIET_SECONDS:
            self._line(trainer, pl_module, f"batch {batch_idx + 1:,} of {trainer.num_training_batches:,}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._line(trainer, pl_module, "validated")

    def _line(self, trainer: L.Trainer, pl_module: L.LightningModule, where: str) -> None:
        self._last = time.monotonic()
        if self._enabled:
            items = self.get_metrics(trainer, pl_module).items()
            values = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in items)
            say(f"epoch {trainer.current_epoch}, {where}: {', '.join(values)}")
