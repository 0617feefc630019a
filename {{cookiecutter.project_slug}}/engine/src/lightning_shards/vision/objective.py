"""What the engine asks of a task to show a person what a model makes of single images, and metrics that tasks share.

Shapes: B rows, T targets (classes or numbers).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

LARGEST_MATRIX = 200  # classes; above, a confusion matrix is a carpet


@runtime_checkable
class Shown(Protocol):
    """An objective whose images the report shows; a model has it as its attribute `objective`.

    Its `target_of(batch)`, where it has one, gives the targets; else they are the field `target`.
    """

    def error_score(self, scores: Tensor, targets: Tensor) -> Tensor:
        """How wrong each row of `scores` is, float (B,): 0 where it is right; picks the images of the report."""

    def counts(self) -> MetricCollection:
        """What the report says of each class or number, measured over scores (B, T) and targets.

        Its states have the same size for any number of images. The report knows `confusion` (counts of actual,
        predicted), `stat_scores`, `average_precision`, `auroc`, and for numbers any errors by name.
        """


class IntTargets(Metric):
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
