"""Average precision of boxes, as COCO's own program counts it: by torchmetrics and pycocotools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.utilities import dim_zero_cat

from .boxes import MOST, there

# As COCO has them; torchmetrics' own have the rounding of float32, by which a recall can miss its threshold.
_OVERLAPS, _RECALLS = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0, 1, 101).tolist()


class BoxPrecision(Metric):
    """`map`, the mean of the classes' average precision over overlaps from 0.5 to 0.95, `map_50`, that at 0.5, and
    `ap`, that of each class, (T,), NaN where there are no boxes of it.

    The boxes of a split are kept until they are counted, 32 bytes each.

    Args:
        classes: T.
        find: makes boxes (B, N, 6) of what is given to `update`; None: that is boxes already.
        counts: give a table's columns in place of the means: `ap`, `ap_50`, and how many `boxes` there are.
    """

    rows: list[Tensor] | Tensor

    def __init__(self, classes: int, find: Callable[[Tensor], Tensor] | None = None, counts: bool = False) -> None:
        super().__init__()
        self.classes, self._find, self._table, self._images = classes, find, counts, 0
        # One flat list of numbers, which ranks with any number of boxes, or none, can put together.
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, truth: Tensor) -> None:
        said = self._find(outputs) if self._find else outputs
        rank, ranks = _ranks()
        numbers = (self._images + torch.arange(len(truth), device=truth.device)) * ranks + rank
        self._images += len(truth)
        for boxes, kind in ((said, 0.0), (truth, 1.0)):
            images = numbers[:, None, None].expand(-1, boxes.shape[1], 1).float()
            rows = torch.cat([boxes.float(), images, torch.full_like(images, kind)], 2)[there(boxes)]
            assert isinstance(self.rows, list)
            self.rows.append(rows.flatten())

    def compute(self) -> dict[str, Tensor]:
        rows = dim_zero_cat([torch.zeros(0, device=self.device), *_parts(self.rows)]).cpu().view(-1, 8)
        truth, (_, places) = rows[:, 7] == 1, rows[:, 6].unique(return_inverse=True)
        each, boxes = torch.full((2, self.classes), torch.nan), rows[truth, 5].long().bincount(minlength=self.classes)
        if len(rows):
            metric = MeanAveragePrecision(
                iou_thresholds=_OVERLAPS,
                rec_thresholds=_RECALLS,
                max_detection_thresholds=[1, 10, MOST],
                extended_summary=True,
                sync_on_compute=False,
            )
            images = int(places.max()) + 1
            metric.update(*(_by_image(rows[kind], places[kind], images) for kind in (~truth, truth)))
            found: dict[str, Any] = metric.compute()
            precision = found["precision"][:, :, :, 0, -1]  # of overlap, recall and class
            for place, number in enumerate(found["classes"].reshape(-1).long().tolist()):
                if boxes[number]:
                    each[0, number], each[1, number] = precision[:, :, place].mean(), precision[0, :, place].mean()
        mean, mean_50 = each.nanmean(1).nan_to_num(0.0)
        of_all = {"map": mean, "map_50": mean_50}
        values = {"ap": each[0], **({"ap_50": each[1], "boxes": boxes.float()} if self._table else of_all)}
        return {name: value.to(self.device) for name, value in values.items()}

    def reset(self) -> None:
        super().reset()
        self._images = 0


def _ranks() -> tuple[int, int]:
    """(rank, ranks) of this process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _parts(rows: list[Tensor] | Tensor) -> list[Tensor]:
    return rows if isinstance(rows, list) else [rows]  # one, where the ranks' were put together


def _by_image(rows: Tensor, places: Tensor, images: int) -> list[dict[str, Tensor]]:
    """The rows of each of the `images` as torchmetrics has them; `places`, (n,), says which image each is of."""
    parts = rows[places.argsort(stable=True)].split(places.bincount(minlength=images).tolist())
    return [{"boxes": part[:, :4], "scores": part[:, 4], "labels": part[:, 5].long()} for part in parts]
