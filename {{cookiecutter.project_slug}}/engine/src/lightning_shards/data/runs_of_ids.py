"""A sampler over runs of ids, for what each sample needs once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .batcher import PADDING


@dataclass
class RunsOfIds:
    """Batches of the samples first..last-1 of each run, in order, each `views` times in a row; padded at the end.

    Attributes:
        runs: int64 (R, 2), first and last of each.
        micro: B, a multiple of `views`.
        views: how often a sample comes, as different occurrences.
    """

    runs: NDArray[np.int64]
    micro: int
    views: int = 1
    epoch: int = 0
    side: ClassVar[None] = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def occurrences(self, batch: int) -> NDArray[np.int64] | None:
        return None if self.views == 1 else np.tile(np.arange(self.views), self.micro // self.views)

    def shards(self, first: int, last: int) -> None:
        return None

    def __len__(self) -> int:
        return -(-int((self.runs[:, 1] - self.runs[:, 0]).sum()) * self.views // self.micro)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        room, ids = self.micro // self.views, np.empty(0, np.int64)
        for first, last in self.runs.tolist():
            while first < last:
                taken = np.arange(first, min(last, first + room - len(ids)))
                ids, first = np.append(ids, taken), int(taken[-1]) + 1
                if len(ids) == room:
                    yield ids.repeat(self.views)
                    ids = ids[:0]
        if len(ids):
            yield np.append(ids, np.full(room - len(ids), PADDING)).repeat(self.views)
