"""Boxes of a batch in one tensor, (B, N, 6): left, top, right, bottom in pixels of the square, score, class.

Rows that are no box have the class NONE. A box that is the truth has the score 1. All of an image that counts nowhere
have the class NOWHERE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

NONE, NOWHERE = -1.0, -2.0
MOST = 100  # boxes of an image that are found and counted, the surest first
SURE = 0.3  # a person is shown boxes of at least this score
OVERLAP = 0.5  # intersection over union from which on a box has found its thing


def padded(boxes: Sequence[Mapping[str, Tensor]], valid: Tensor) -> Tensor:
    """The boxes of a batch's field, {"boxes": (n, 4), "labels": (n,)} of each row, as (B, N, 6).

    Args:
        valid: which rows count, bool (B,); its device is that of what is returned.
    """
    found = torch.zeros(
        len(boxes), max([1, *(len(one["labels"]) for one in boxes)]), 6, device=boxes[0]["boxes"].device
    )
    found[:, :, 5] = NONE
    for row, one in zip(found, boxes, strict=True):
        count = len(one["labels"])
        row[:count, :4], row[:count, 4], row[:count, 5] = one["boxes"], 1.0, one["labels"].float()
    found = found.to(valid.device, non_blocking=True)
    return torch.where(valid[:, None, None], found, NOWHERE)


def there(boxes: Tensor) -> Tensor:
    """Which rows are boxes, bool (..., N)."""
    return boxes[..., 5] >= 0


def overlaps(said: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of each two boxes of one class, (B, N, M); 0 where the classes differ, or one is none."""
    found = torch.stack([box_iou(one[:, :4], true[:, :4]) for one, true in zip(said, truth, strict=True)])
    same = (said[:, :, None, 5] == truth[:, None, :, 5]) & there(said)[:, :, None]
    return torch.where(same, found.nan_to_num(0.0), 0.0)


def found(said: Tensor, truth: Tensor) -> int:
    """How many boxes of `truth`, (M, 6), have one of `said`, (N, 6)."""
    with_one = (overlaps(said[None], truth[None]) >= OVERLAP).any(1).sum() if len(said) and len(truth) else 0
    return min(int(with_one), len(said))


def share_wrong(said: Tensor, truth: Tensor) -> Tensor:
    """Of each row, (B,), the share of the boxes that is missed, or that no thing is in: 0 where all is right.

    Boxes of `said` count from the score SURE on.
    """
    sure = torch.where((there(said) & (said[:, :, 4] >= SURE))[:, :, None], said, said.new_full((), NONE))
    things, boxes = there(truth).sum(1), there(sure).sum(1)
    found = torch.minimum((overlaps(sure, truth) >= OVERLAP).any(1).sum(1), boxes)
    wrong = (things - found) + (boxes - found)
    return wrong / (found + wrong).clamp(min=1)
