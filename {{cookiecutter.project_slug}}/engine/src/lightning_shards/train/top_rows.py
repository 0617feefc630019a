"""A fixed number of rows out of any number: those with the highest priority, with their images, over all ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from ..data.batch import Batch


class TopRows(Metric):
    """The `count` rows with the highest priority, over all batches and ranks.

    Args:
        count: rows.
        side: of the images that are kept with them, in pixels; where a batch has none, they are black.
        scores, target, target_type: shape of a row's scores and of its target, and the target's type.
    """

    def __init__(
        self,
        count: int,
        side: int,
        scores: tuple[int, ...],
        target: tuple[int, ...],
        target_type: torch.dtype,
    ) -> None:
        super().__init__()
        self.count, self.side = count, side
        for name, default in {
            "priority": torch.full((count,), -torch.inf),
            "ids": torch.full((count,), -1),
            "images": torch.zeros((count, 3, side, side), dtype=torch.uint8),
            "targets": torch.zeros((count, *target), dtype=target_type),
            "scores": torch.zeros((count, *scores)),
        }.items():
            self.add_state(name, default, dist_reduce_fx=None)  # what the ranks have is put side by side

    def update(self, priority: Tensor, batch: Batch, targets: Tensor, scores: Tensor) -> None:
        """Take the rows of a batch into account; those of priority -inf never count. Nothing waits for the device."""
        rows = priority.topk(min(self.count, len(priority))).indices
        missing = torch.zeros((len(rows), 3, self.side, self.side), dtype=torch.uint8, device=priority.device)
        images = batch["image"][rows] if "image" in batch.fields else missing
        if images.shape[-1] != self.side:
            images = F.interpolate(images.float(), self.side, mode="area").round().to(torch.uint8)
        new = (priority[rows], batch.ids[rows], images, targets[rows], scores[rows].float())
        joined = [torch.cat([old, more]) for old, more in zip(self._parts(), new, strict=True)]
        best = joined[0].topk(self.count).indices
        self.priority, self.ids, self.images, self.targets, self.scores = (part[best] for part in joined)

    def compute(self) -> tuple[Tensor, ...]:
        """The parts of the rows; with several ranks, one more dimension before them."""
        return self._parts()

    def rows(self) -> list[tuple[int, Tensor, Tensor, Tensor]]:
        """(id, image, target, scores) of each row, the highest priority first, on the CPU; the same on every rank."""
        shapes = [default.shape[1:] for default in self._defaults.values() if isinstance(default, Tensor)]
        parts = [part.reshape(-1, *shape) for part, shape in zip(self.compute(), shapes, strict=True)]
        best = parts[0].argsort(descending=True)[: self.count]
        order = best[parts[0][best] > -torch.inf]
        ids, images, targets, scores = (part[order].cpu() for part in parts[1:])
        return list(zip(ids.tolist(), images, targets, scores, strict=True))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.priority, self.ids, self.images, self.targets, self.scores
