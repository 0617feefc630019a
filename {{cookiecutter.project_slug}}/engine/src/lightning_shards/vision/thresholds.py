"""From which score on a label counts as there, chosen on validation.

A label that is rare has low scores: at 0.5 a model may never name it. Each validation of a training chooses for each
label the threshold of the largest F1 score (Lipton et al., 2014, "Optimal Thresholding of Classifiers to Maximize F1
Measure"). No scores are stored: a pass counts the label's images, and the others, at a fixed grid of thresholds.

Thresholds are of logits, which a temperature does not change: of probabilities, they move with it.

Shapes: B rows, T labels, G thresholds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .ranking import LabelCounts, grid, reaching


def best(there: Tensor, others: Tensor) -> Tensor:
    """The threshold of the largest F1 score, logits, float32 (T,).

    Of several such in a row, the middle one. 0 for a label that no image has.

    Args:
        there: images of each label whose logit lies between two thresholds of the grid, int64 (T, G + 1).
        others: the same of the images without it.
    """
    right, wrong = reaching(there).double(), reaching(others).double()
    all_there = there.sum(1, keepdim=True)
    f1 = 2 * right / (right + wrong + all_there).clamp(min=1)
    largest = f1 >= f1.amax(1, keepdim=True) - 1e-12
    first = largest.int().argmax(1)
    behind = (~largest).int().cumsum(1) > (~largest).int().cumsum(1).gather(1, first[:, None])
    length = (largest & ~behind).sum(1)
    chosen = grid(there.device)[first + (length - 1) // 2]
    return torch.where(all_there[:, 0] > 0, chosen, 0.0)


class Thresholds(nn.Module):
    """The threshold of each label, kept with the model's weights; fitted by each validation of a training.

    Args:
        labels: T.
        fit: choose them; else they stay 0, a probability of 0.5.
    """

    logits: Tensor  # float32 (T,)

    def __init__(self, labels: int, fit: bool = True) -> None:
        super().__init__()
        self.register_buffer("logits", torch.zeros(labels))
        self.fit, self._pass = fit, LabelCounts(labels)

    def begin(self) -> None:
        self._pass.reset()

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add B rows that count."""
        self._pass.update(logits, targets)

    def end(self, choose: bool) -> Tensor:
        """What the thresholds come to over the rows of all ranks; with `choose`, they are chosen from these.

        Of each label the true and false positives, true and false negatives, and images with it, int64 (T, 5).
        """
        there, others = self._pass.compute()
        if choose and self.fit:
            self.logits.copy_(best(there, others))
        place = (grid(self.logits.device) < self.logits[:, None] - 1e-6).sum(1, keepdim=True)
        found, false = (reaching(counts).gather(1, place)[:, 0] for counts in (there, others))
        all_there, all_others = there.sum(1), others.sum(1)
        return torch.stack([found, false, all_others - false, all_there - found, all_there], dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        name = f"{prefix}logits"
        if name not in state_dict or not self.fit:  # of an older version, or no longer wanted
            state_dict[name] = torch.zeros_like(self.logits)
        super()._load_from_state_dict(state_dict, prefix, *rest)
