"""What is asked of the model, one class a task: loss of each row, metrics, the metric that picks the best weights, and
what a person is shown. A setting of a loss is a parameter of the constructors here and in model.py.

Shapes: B rows, T targets (classes or numbers); logits are the network's float outputs (B, T).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning_shards.data.batch import Batch
from lightning_shards.data.fields.plane import IGNORED
from lightning_shards.errors import InputError
from lightning_shards.vision.calibration import Link
from lightning_shards.vision.objective import LARGEST_MATRIX, IntTargets
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, R2Score
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
    MulticlassStatScores,
    MultilabelAveragePrecision,
    MultilabelF1Score,
    MultilabelStatScores,
)


class Objective(ABC):
    """One task.

    Args:
        targets: T.
        label_smoothing: share of the target that is spread over all classes.
        loss: where a task has a choice; None: its first.

    Raises InputError for a setting that the task does not have.
    """

    monitor: ClassVar[str]  # the metric that decides which weights are the best
    mode: ClassVar[str]  # "max" or "min" of it
    choices: ClassVar[tuple[str, ...]] = ()  # of losses, where there are several; the first is the default
    link: ClassVar[Link | None] = None  # what makes probabilities of logits, where scores are some: they are calibrated

    def __init__(self, targets: int, label_smoothing: float = 0.0, loss: str | None = None) -> None:
        if loss and loss not in self.choices:
            raise InputError(f"model.loss {loss} is for another task: give {' or '.join(self.choices) or 'null'}")
        self.targets, self.label_smoothing, self.loss = targets, label_smoothing, loss

    def target_of(self, batch: Batch) -> Tensor:
        """What is to be predicted of a batch."""
        return batch["target"]

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, float (B,)."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Metrics of validation and test over logits (B, T) and targets."""

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """What is shown to people and written by predictions: probabilities or numbers, (B, T)."""

    @abstractmethod
    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        """How wrong each row of `scores` is, float (B,): 0 where it is right; picks the images of the report."""

    @abstractmethod
    def counts(self) -> MetricCollection:
        """What the report says of each class or number, measured over scores (B, T) and targets; of a fixed size."""


class SingleLabel(Objective):
    """One class an image. Targets: int64 (B,).

    Binary cross entropy asks of each class whether it is there (Wightman et al., 2021, ResNet strikes back): the mean
    over the classes. Scores sum up to one for either loss.
    """

    monitor, mode = "val/accuracy", "max"
    choices = ("cross_entropy", "binary_cross_entropy")
    link = "softmax"

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss == "binary_cross_entropy":
            smooth = self.label_smoothing / self.targets
            wanted = F.one_hot(targets, self.targets).to(logits.dtype) * (1 - self.label_smoothing) + smooth
            return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)

    def metrics(self) -> MetricCollection:
        chosen: dict[str, Metric] = {"accuracy": MulticlassAccuracy(self.targets, average="micro")}
        if self.targets > 10:
            chosen["accuracy_top5"] = MulticlassAccuracy(self.targets, average="micro", top_k=5)
        return MetricCollection(chosen)  # type: ignore[arg-type]

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)

    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        sure, chosen = scores.max(dim=1)
        return torch.where(chosen == targets, 0.0, sure)

    def counts(self) -> MetricCollection:
        if self.targets <= LARGEST_MATRIX:
            return MetricCollection({"confusion": MulticlassConfusionMatrix(self.targets)})
        return MetricCollection({"stat_scores": MulticlassStatScores(self.targets, average=None)})


class MultiLabel(Objective):
    """Any number of classes an image. Targets: float (B, T) of 0 and 1."""

    monitor, mode = "val/average_precision", "max"
    link = "sigmoid"

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(dim=1)

    def metrics(self) -> MetricCollection:
        # 200 thresholds keep the state at a fixed size, whatever the number of images
        precision, f1 = MultilabelAveragePrecision(self.targets, thresholds=200), MultilabelF1Score(self.targets)
        return MetricCollection({"average_precision": IntTargets(precision), "f1": IntTargets(f1)})

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        furthest = (scores - targets).abs().amax(dim=1)
        return torch.where(furthest < 0.5, 0.0, furthest)

    def counts(self) -> MetricCollection:
        precision = MultilabelAveragePrecision(self.targets, average=None, thresholds=200)
        scores = MultilabelStatScores(self.targets, average=None)
        return MetricCollection({"average_precision": IntTargets(precision), "stat_scores": IntTargets(scores)})


class Regression(Objective):
    """Numbers. Targets: float (B, T); the loss is the squared error, so bring targets to a scale near 1."""

    monitor, mode = "val/mean_absolute_error", "min"

    def __init__(self, targets: int, label_smoothing: float = 0.0, loss: str | None = None) -> None:
        if label_smoothing:
            raise InputError("model.label_smoothing is for classes: set it 0 for numbers")
        super().__init__(targets, loss=loss)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits - targets).square().mean(dim=1)

    def metrics(self) -> MetricCollection:
        absolute, squared = MeanAbsoluteError(), MeanSquaredError(squared=False)
        return MetricCollection({"mean_absolute_error": absolute, "root_mean_squared_error": squared, "r2": R2Score()})

    def scores(self, logits: Tensor) -> Tensor:
        return logits

    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        return (scores - targets).abs().mean(dim=1)

    def counts(self) -> MetricCollection:
        squared = MeanSquaredError(squared=False, num_outputs=self.targets)
        absolute = MeanAbsoluteError(num_outputs=self.targets)
        return MetricCollection({"mean_absolute_error": absolute, "root_mean_squared_error": squared})


COUNTED: dict[str, Any] = {"ignore_index": IGNORED, "validate_args": False}  # looking for other values takes long


class Segmentation(Objective):
    """A class for each pixel. Logits are (B, T, S, S), targets int64 (B, S, S); 255 counts nowhere.

    The loss is the mean cross entropy of the pixels that count, plus 1 - Dice (Milletari et al., 2016, V-Net): the mean
    over the classes, whatever their size, of twice the overlap over the sum of the areas.
    """

    monitor, mode = "val/mean_iou", "max"
    choices = ("cross_entropy_dice", "cross_entropy")

    def target_of(self, batch: Batch) -> Tensor:
        return batch["mask"].long()

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        counted, smooth = targets != IGNORED, self.label_smoothing
        pixels = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none", label_smoothing=smooth)
        entropy = pixels.sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)
        if self.loss == "cross_entropy":
            return entropy
        said, counts = logits.softmax(dim=1), counted[:, None]
        wanted = F.one_hot(targets.where(counted, 0), self.targets).movedim(3, 1)
        overlap, areas = ((x * counts).sum((2, 3)) for x in (said * wanted, said + wanted))
        return entropy + 1 - ((2 * overlap + 1) / (areas + 1)).mean(dim=1)

    def metrics(self) -> MetricCollection:
        mean = MulticlassJaccardIndex(self.targets, **COUNTED)  # of the classes that occur
        accuracy = MulticlassAccuracy(self.targets, average="micro", **COUNTED)
        of_each = MulticlassJaccardIndex(self.targets, average=None, zero_division=float("nan"), **COUNTED)
        return MetricCollection({"mean_iou": mean, "iou": of_each, "pixel_accuracy": accuracy})

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)

    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        counted = targets != IGNORED
        return ((scores.argmax(1) != targets) & counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)

    def counts(self) -> MetricCollection:
        return MetricCollection({"confusion": MulticlassConfusionMatrix(self.targets, **COUNTED)})


OBJECTIVES: dict[str, type[Objective]] = {
    "single_label": SingleLabel,
    "multi_label": MultiLabel,
    "regression": Regression,
    "segmentation": Segmentation,
}
