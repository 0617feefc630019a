"""What is asked of the model, one class a task: loss of each row, metrics, and the metric that picks the best weights.

Shapes: B rows, T targets (classes or numbers); logits are the network's float outputs (B, T).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, R2Score
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassStatScores,
    MultilabelAveragePrecision,
    MultilabelF1Score,
    MultilabelStatScores,
)

LARGEST_MATRIX = 200  # classes; above, a confusion matrix is a carpet


class Objective(ABC):
    """One task."""

    monitor: ClassVar[str]  # the validation metric that decides which weights are the best
    mode: ClassVar[str]  # "max" or "min"

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Loss of each row, float (B,)."""

    @abstractmethod
    def metrics(self, targets: int) -> MetricCollection:
        """Metrics over logits (B, T) and targets."""

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """What is shown to people and written by predictions: probabilities or numbers, (B, T)."""

    @abstractmethod
    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        """How wrong each row of `scores` is, float (B,): 0 where it is right; picks the images of the report."""

    @abstractmethod
    def counts(self, targets: int) -> MetricCollection:
        """What the report says of each class or number, measured over scores (B, T) and targets; of a fixed size."""


class SingleLabel(Objective):
    """One class an image. Targets: int64 (B,)."""

    monitor, mode = "accuracy", "max"

    def losses(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)

    def metrics(self, targets: int) -> MetricCollection:
        chosen: dict[str, Metric] = {"accuracy": MulticlassAccuracy(targets, average="micro")}
        if targets > 10:
            chosen["accuracy_top5"] = MulticlassAccuracy(targets, average="micro", top_k=5)
        return MetricCollection(chosen)  # type: ignore[arg-type]

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)

    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        sure, chosen = scores.max(dim=1)
        return torch.where(chosen == targets, 0.0, sure)

    def counts(self, targets: int) -> MetricCollection:
        if targets <= LARGEST_MATRIX:
            return MetricCollection({"confusion": MulticlassConfusionMatrix(targets)})
        return MetricCollection({"stat_scores": MulticlassStatScores(targets, average=None)})


class MultiLabel(Objective):
    """Any number of classes an image. Targets: float (B, T) of 0 and 1."""

    monitor, mode = "average_precision", "max"

    def losses(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        smooth = targets * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(dim=1)

    def metrics(self, targets: int) -> MetricCollection:
        # 200 thresholds keep the state at a fixed size, whatever the number of images
        precision, f1 = MultilabelAveragePrecision(targets, thresholds=200), MultilabelF1Score(targets)
        return MetricCollection({"average_precision": _IntTargets(precision), "f1": _IntTargets(f1)})

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        furthest = (scores - targets).abs().amax(dim=1)
        return torch.where(furthest < 0.5, 0.0, furthest)

    def counts(self, targets: int) -> MetricCollection:
        precision = MultilabelAveragePrecision(targets, average=None, thresholds=200)
        scores = MultilabelStatScores(targets, average=None)
        return MetricCollection({"average_precision": _IntTargets(precision), "stat_scores": _IntTargets(scores)})


class Regression(Objective):
    """Numbers. Targets: float (B, T); the loss is the squared error, so bring targets to a scale near 1."""

    monitor, mode = "mean_absolute_error", "min"

    def losses(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        return (logits - targets).square().mean(dim=1)

    def metrics(self, targets: int) -> MetricCollection:
        return MetricCollection(
            {
                "mean_absolute_error": MeanAbsoluteError(),
                "root_mean_squared_error": MeanSquaredError(squared=False),
                "r2": R2Score(),
            }
        )

    def scores(self, logits: Tensor) -> Tensor:
        return logits

    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        return (scores - targets).abs().mean(dim=1)

    def counts(self, targets: int) -> MetricCollection:
        return MetricCollection(
            {
                "mean_absolute_error": MeanAbsoluteError(num_outputs=targets),
                "root_mean_squared_error": MeanSquaredError(squared=False, num_outputs=targets),
            }
        )


class _IntTargets(Metric):
    """Hand a multi-label metric the integer targets that it asks for."""

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric = metric

    def update(self, scores: Tensor, targets: Tensor) -> None:
        self.metric.update(scores, targets.to(torch.int64))

    def compute(self) -> Tensor:
        return self.metric.compute()

    def reset(self) -> None:
        super().reset()
        self.metric.reset()


OBJECTIVES: dict[str, type[Objective]] = {
    "single_label": SingleLabel,
    "multi_label": MultiLabel,
    "regression": Regression,
}
