"""What a pass over a split adds up: loss and metrics, and its rows, so that each sample is known to be counted once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from ..data.batch import Batch
from ..vision.calibration import Calibration
from . import ema
from .contract import goal


class EvalMetrics(nn.Module):
    """Loss and metrics of one pass over a split, over all ranks; rows that are not valid count nowhere."""

    def __init__(self, metrics: MetricCollection) -> None:
        super().__init__()
        self.metrics, self.loss = metrics, MeanMetric(nan_strategy="ignore")

    def update(self, losses: Tensor, outputs: Tensor, targets: Tensor, valid: Tensor) -> None:
        """Add B rows: their losses, float (B,), what the metrics take, and which of them count, bool (B,).

        Losses are NaN where a model has none but in training.
        """
        self.loss.update(losses, weight=valid.float())
        if bool(valid.any()):  # waits for the device, as torchmetrics does in any case: this is no training step
            self.metrics.update(outputs[valid], targets[valid])

    def compute(self) -> dict[str, Tensor]:
        loss = self.loss.compute()
        return {**({} if loss.isnan() else {"loss": loss}), **self.metrics.compute()}

    def reset(self) -> None:
        for metric in (self.metrics, self.loss):
            metric.reset()


class EvalPass(L.Callback):
    """Counts the rows of each pass over a validation or test split, and logs what the model's `measures` added up.

    A validation of a training fits temperature and thresholds of the model's `calibration`, so that each checkpoint has
    those of its own weights.

    Every sample of a split is counted once, over all ranks. Where Lightning's flags leave batches out, this is not
    asked.
    """

    def __init__(self) -> None:
        self._rows = self._skipped = torch.zeros((), dtype=torch.int64)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(pl_module, fit=trainer.state.fn == "fit" and not trainer.sanity_checking)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        self._count(batch)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        self._count(batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(trainer, pl_module, "val", trainer.num_val_batches, trainer.val_dataloaders)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(trainer, pl_module, "test", trainer.num_test_batches, trainer.test_dataloaders)

    def _begin(self, model: Any, fit: bool = False) -> None:
        self._rows = self._skipped = torch.zeros((), dtype=torch.int64, device=model.device)
        if (measures := getattr(model, "measures", None)) is not None:
            measures.reset()  # a pass may have been left early
        if isinstance(calibration := getattr(model, "calibration", None), Calibration):
            calibration.begin(fit)

    def _count(self, batch: Batch) -> None:
        there = batch.ids >= 0
        self._rows = self._rows + there.sum()
        self._skipped = self._skipped + (there & ~batch.valid).sum()

    def _end(self, trainer: L.Trainer, model: Any, split: str, batches: Any, loader: Any) -> None:
        """Raises RuntimeError where a whole pass has not counted every sample once: that is a defect of the loader."""
        rows, skipped = (int(trainer.strategy.reduce(n, reduce_op="sum")) for n in (self._rows, self._skipped))
        wanted = trainer.datamodule.dataset.samples(split)  # type: ignore[attr-defined]
        whole = not trainer.sanity_checking and sum(batches) == len(loader)
        if whole and rows != wanted:
            raise RuntimeError(f"{split}: {rows} rows were measured, the split has {wanted}")
        values: dict[str, Any] = {}
        if (measures := getattr(model, "measures", None)) is not None:
            values = measures.compute()
            measures.reset()
        if isinstance(calibration := getattr(model, "calibration", None), Calibration):
            values = {**calibration.end(), **values}  # a metric of the model's own comes first
            ema.keep_fitted(trainer, calibration)
        for name, value in _of_classes(values, trainer):
            shown = split == "val" and (name == "loss" or f"val/{name}" == goal(model)[0])
            model.log(f"{split}/{name}", value, prog_bar=shown, batch_size=max(1, rows))
        model.log(f"{split}/skipped", float(skipped), batch_size=max(1, rows))


def _of_classes(values: Mapping[str, Any], trainer: L.Trainer) -> Iterator[tuple[str, Any]]:
    """Each value with its name. A vector has one of each class, named `metric/class`: only where a trained model is
    measured, and not of classes that do not occur (NaN). The validations of a training would draw a curve of each."""
    names = trainer.datamodule.targets  # type: ignore[attr-defined]
    for name, value in values.items():
        if not getattr(value, "ndim", 0):
            yield name, value
        elif trainer.state.fn != "fit":
            yield from ((f"{name}/{names[n]}", one) for n, one in enumerate(value) if not one.isnan())
