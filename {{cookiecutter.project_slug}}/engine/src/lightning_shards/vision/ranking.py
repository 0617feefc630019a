"""How well the scores of a class put its images in front of all others, counted without keeping a score.

A pass counts the images of each class, and the others, between fixed thresholds that lie evenly in the logit: so the
scores of a rare class, which are all small, are told apart as finely as those of others.

Shapes: B rows, T classes or labels, G thresholds.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

Link = Literal["softmax", "sigmoid"]  # what makes probabilities of logits: one class a row, or any number of labels
LARGEST, STEPS = 14.0, 561  # the thresholds, in steps of 0.05 of a logit; the one in the middle, 0, is one half


def grid(device: torch.device | str = "cpu") -> Tensor:
    """The thresholds, logits, float32 (G,)."""
    return torch.linspace(-LARGEST, LARGEST, STEPS, device=device)


def reaching(counts: Tensor) -> Tensor:
    """How many reach each threshold, (T, G), of counts between two of them, (T, G + 1)."""
    return counts.flip(1).cumsum(1).flip(1)[:, 1:]


class LabelCounts(Metric):
    """How many images of each label, and how many others, have a logit between two thresholds."""

    counts: Tensor

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(2, labels, STEPS + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add B rows, float (B, T), with targets of 0 and 1, (B, T)."""
        place = torch.bucketize(logits.float(), grid(logits.device), right=True)  # so many thresholds are reached
        which, labels = (targets <= 0.5).long(), torch.arange(logits.shape[1], device=logits.device)
        flat = (which * logits.shape[1] + labels) * (STEPS + 1) + place
        self.counts += torch.bincount(flat.flatten(), minlength=self.counts.numel()).view_as(self.counts)

    def compute(self) -> Tensor:
        """Of the images with the label, and of those without it, int64 (2, T, G + 1)."""
        return self.counts


class Ranking(LabelCounts):
    """`auroc`: how often an image of a class has a larger score for it than another image, a tie counts half. And
    `average_precision`: the mean over the class's images of the precision among all whose score is at least theirs.

    Args:
        targets: T.
        link: what makes probabilities of the outputs.
        mean: outputs are logits, and the values the mean over the classes that have them. Else outputs are
            probabilities, and there is a value for each class, (T,): NaN where no image, or each, is of the class.
    """

    def __init__(self, targets: int, link: Link, mean: bool) -> None:
        super().__init__(targets)
        self.link, self.mean = link, mean

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add B rows, float (B, T); targets int64 (B,) for one class a row, else (B, T) of 0 and 1."""
        outputs = outputs.float()
        if self.mean and self.link == "softmax":
            outputs = outputs.softmax(1)
        if not self.mean or self.link == "softmax":
            outputs = outputs.logit()
        super().update(outputs, F.one_hot(targets, outputs.shape[1]) if targets.ndim == 1 else targets)

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        there, others = self.counts  # whole numbers: CUDA's sums of others are not deterministic
        images, rest = there.sum(1).double(), others.sum(1).double()
        below = others.cumsum(1) - others.double() / 2
        right, wrong = (counts.flip(1).cumsum(1).flip(1) for counts in (there, others))
        said = (right + wrong).double()
        values = {
            "auroc": (there * below).sum(1) / (images * rest),  # 0 / 0 is NaN
            "average_precision": (there * right / said.clamp(min=1)).sum(1) / images,
        }
        return {name: (value.nanmean() if self.mean else value).float() for name, value in values.items()}
