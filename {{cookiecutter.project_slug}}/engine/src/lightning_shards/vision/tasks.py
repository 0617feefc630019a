"""What a task asks of a model beside the loss and the metrics, which are the team's: what is to be predicted, what a
person is shown of it, and how wrong a single row is. One class a task; the team's objectives derive from them.

Shapes: B rows, T targets (classes or numbers), S image side; logits are the network's float outputs, (B, T).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassConfusionMatrix,
    MulticlassStatScores,
    MultilabelStatScores,
)

from ..data.balance import balancing_factors
from ..data.batch import Batch
from ..data.fields.plane import IGNORED
from ..errors import InputError
from . import boxes, detection
from .box_metrics import BoxPrecision
from .objective import LARGEST_MATRIX, IntTargets
from .ranking import Link, Ranking

ClassWeights = float | dict[str, float] | None


class Task(ABC):
    """One task.

    Args:
        targets: T.
        label_smoothing: share of the target that is spread over all classes.
        loss: where a task has a choice; None: its first.

    Raises InputError for a setting that the task does not have.
    """

    weighable: ClassVar[bool] = True  # whether the loss is of classes, which may have weights
    _weights: Tensor | None = None

    monitor: ClassVar[str]  # the metric that decides which weights are the best
    mode: ClassVar[str] = "max"  # or "min" of it
    choices: ClassVar[tuple[str, ...]] = ()  # of losses, where there are several; the first is the default
    link: ClassVar[Link | None] = None  # what makes probabilities of logits, where scores are some: they are calibrated

    def __init__(self, targets: int, label_smoothing: float = 0.0, loss: str | None = None) -> None:
        if loss and loss not in self.choices:
            raise InputError(f"model.loss {loss} is for another task: give {' or '.join(self.choices) or 'null'}")
        self.targets, self.label_smoothing, self.loss = targets, label_smoothing, loss

    def weigh(self, wanted: ClassWeights, names: Sequence[str], counts: Sequence[int] | None = None) -> ClassWeights:
        """Let the loss of each class count so many times.

        Args:
            wanted: how far to even out the classes, 0 as they are, 1 all alike; or class -> weight, 1 for others.
            names: of the classes, (T,).
            counts: images of each class in an epoch, (T,), which an evening out needs; None: not known yet.

        Returns `wanted`, or the weights by name, once they are reckoned from `counts`.

        Raises InputError for a weight that is none, a class that there is not, and a task that has no classes.
        """
        if wanted is None:
            return None
        if not self.weighable:
            raise InputError("model.class_weights is for classes: set it null for numbers")
        if isinstance(wanted, Mapping):
            if unknown := [name for name in wanted if name not in names]:
                raise InputError(f"model.class_weights: there is no class {unknown[0]!r}; there are {', '.join(names)}")
            for name, weight in wanted.items():
                if not 0 < weight < math.inf:
                    raise InputError(f"model.class_weights: {name} is {weight}, it must be above 0")
            weights = wanted
        elif not 0 <= wanted <= 1:
            raise InputError(
                f"model.class_weights is {wanted}, it must be between 0 and 1, or class names with weights"
            )
        elif self.link != "softmax":
            raise InputError(
                "model.class_weights evens out images of one class: for other tasks give names with weights"
            )
        elif counts is None:
            return wanted
        else:
            factors = balancing_factors(np.asarray(counts, np.int64), wanted).tolist()
            weights = {name: float(f"{factor:.6g}") for name, factor in zip(names, factors, strict=True) if factor}
        self._weights = torch.tensor([float(weights.get(name, 1.0)) for name in names])
        return dict(weights)

    def class_weights(self, like: Tensor) -> Tensor | None:
        """What the loss of each class counts, float (T,), where `like` is; None: all the same."""
        if self._weights is not None and self._weights.device != like.device:
            self._weights = self._weights.to(like.device)
        return self._weights

    def ranking(self, mean: bool = True) -> Metric:
        """`auroc` and `average_precision` of logits, the mean over the classes that occur; without `mean` of scores, of
        each class, (T,)."""
        assert self.link is not None
        return Ranking(self.targets, self.link, mean)

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, float (B,)."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Metrics of validation and test over logits (B, T) and targets."""

    def target_of(self, batch: Batch) -> Tensor:
        """What is to be predicted of a batch."""
        return batch["target"]

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """What is shown to people and written by predictions: probabilities or numbers, (B, T)."""

    @abstractmethod
    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        """How wrong each row of `scores` is, float (B,): 0 where it is right; picks the images of the report."""

    @abstractmethod
    def counts(self) -> MetricCollection:
        """What the report says of each class or number, measured over scores (B, T) and targets; of a fixed size."""


class SingleLabel(Task):
    """One class an image. Targets: int64 (B,)."""

    link = "softmax"

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)

    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        sure, chosen = scores.max(dim=1)
        return torch.where(chosen == targets, 0.0, sure)

    def counts(self) -> MetricCollection:
        if self.targets > LARGEST_MATRIX:
            return MetricCollection({"stat_scores": MulticlassStatScores(self.targets, average=None)})
        matrix = MulticlassConfusionMatrix(self.targets)
        return MetricCollection({"confusion": matrix, "ranking": self.ranking(mean=False)})


class MultiLabel(Task):
    """Any number of classes an image. Targets: float (B, T) of 0 and 1."""

    link = "sigmoid"

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        furthest = (scores - targets).abs().amax(dim=1)
        return torch.where(furthest < 0.5, 0.0, furthest)

    def counts(self) -> MetricCollection:
        counts = IntTargets(MultilabelStatScores(self.targets, average=None))
        return MetricCollection({"stat_scores": counts, "ranking": self.ranking(mean=False)})


class Regression(Task):
    """Numbers. Targets: float (B, T)."""

    weighable = False

    def __init__(self, targets: int, label_smoothing: float = 0.0, loss: str | None = None) -> None:
        if label_smoothing:
            raise InputError("model.label_smoothing is for classes: set it 0 for numbers")
        super().__init__(targets, loss=loss)

    def scores(self, logits: Tensor) -> Tensor:
        return logits

    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        return (scores - targets).abs().mean(dim=1)

    def counts(self) -> MetricCollection:
        squared = MeanSquaredError(squared=False, num_outputs=self.targets)
        absolute = MeanAbsoluteError(num_outputs=self.targets)
        return MetricCollection({"mean_absolute_error": absolute, "root_mean_squared_error": squared})


class Segmentation(Task):
    """A class for each pixel. Logits are (B, T, S, S), targets int64 (B, S, S); 255 counts nowhere."""

    ignored: ClassVar[int] = IGNORED
    counted: ClassVar[dict[str, Any]] = {"ignore_index": IGNORED, "validate_args": False}  # of torchmetrics; to look
    # for values that are no class takes long, and the loader has done it

    def target_of(self, batch: Batch) -> Tensor:
        return batch["mask"].long()

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)

    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        counted = targets != IGNORED
        return ((scores.argmax(1) != targets) & counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)

    def counts(self) -> MetricCollection:
        return MetricCollection({"confusion": MulticlassConfusionMatrix(self.targets, **self.counted)})


class Detection(Task):
    """Boxes around things. Targets are (B, N, 6), as in `boxes`; outputs are what a network of `detection` gives."""

    def __init__(self, targets: int, label_smoothing: float = 0.0, loss: str | None = None) -> None:
        if label_smoothing:
            raise InputError("model.label_smoothing is for classes of images: set it 0 for boxes")
        super().__init__(targets, loss=loss)

    def target_of(self, batch: Batch) -> Tensor:
        return boxes.padded(batch["boxes"], batch.valid)

    def scores(self, logits: Tensor) -> Tensor:
        return logits if logits.ndim == 3 else detection.find(logits)

    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        return boxes.share_wrong(scores, targets)

    def precision(self) -> Metric:
        """`map`, `map_50`, and `ap` of each class, over outputs and targets."""
        return BoxPrecision(self.targets, self.scores)

    def counts(self) -> MetricCollection:
        return MetricCollection({"precision": BoxPrecision(self.targets, counts=True)})
