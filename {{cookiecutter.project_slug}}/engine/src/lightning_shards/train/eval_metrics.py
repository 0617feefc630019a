"""What a pass over a split adds up: loss, metrics, and rows, so that each sample is known to be counted once."""

from __future__ import annotations

from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection, SumMetric

from ..data.batch import Batch


class EvalMetrics(nn.Module):
    """Loss, row counts and metrics of one pass over a split, over all ranks; rows that are not valid count nowhere."""

    def __init__(self, metrics: MetricCollection) -> None:
        super().__init__()
        self.metrics, self.loss = metrics, MeanMetric()
        self.valid, self.skipped = SumMetric(), SumMetric()

    def update(self, losses: Tensor, outputs: Tensor, batch: Batch) -> None:
        valid = batch.valid
        self.loss.update(losses, weight=valid.float())
        self.valid.update(valid.sum())
        self.skipped.update(((batch.ids >= 0) & ~valid).sum())
        if bool(valid.any()):  # waits for the device, as torchmetrics does in any case: this is no training step
            self.metrics.update(outputs[valid], batch["target"][valid])

    def compute(self) -> dict[str, Tensor]:
        skipped = self.skipped.compute()
        return {
            "loss": self.loss.compute(),
            **self.metrics.compute(),
            "skipped": skipped,
            "rows": self.valid.compute() + skipped,
        }

    def reset(self) -> None:
        for metric in (self.metrics, self.loss, self.valid, self.skipped):
            metric.reset()
