"""Who takes which part of the order: the ids of each micro-batch of one rank.

Slices go to (accumulation step, rank) by position, so the global batch of a step is the same set of samples on any
number of devices and with any accumulation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .batcher import PADDING
from .order import Order


@dataclass
class TrainSampler:
    """This rank's micro-batches of an epoch, in the order of the optimizer steps.

    `start` is (epoch, position) of a resume: that epoch begins there, every other one at 0. The length is always the
    whole epoch's, since Lightning counts batches from the epoch's begin. `sides`: of the squares in each epoch, in
    pixels; None: always as large as the loader makes them.
    """

    order: Order
    rank: int
    world: int
    micro: int
    accumulation: int
    start: tuple[int, int]
    epoch: int = 0
    sides: Sequence[int] | None = None

    @property
    def side(self) -> int | None:
        return self.sides[min(self.epoch, len(self.sides) - 1)] if self.sides else None

    @property
    def global_batch(self) -> int:
        return self.micro * self.world * self.accumulation

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def begin(self) -> int:
        """The position at which this epoch begins."""
        return self.start[1] if self.epoch == self.start[0] else 0

    def _rows(self, batch: int) -> tuple[int, int, int]:
        """(epoch, first position, the one behind the last) of a batch, counted from `begin`."""
        first = self.begin + (batch * self.world + self.rank) * self.micro
        return self.epoch, first, first + self.micro

    def occurrences(self, batch: int) -> NDArray[np.int64] | None:
        return self.order.occurrences(*self._rows(batch))

    def shards(self, first: int, last: int) -> Sequence[int]:
        return self.order.shards(self.epoch, self._rows(first)[1], self._rows(last)[2])

    def remaining(self, position: int) -> int:
        """Micro-batches from `position` to the epoch's end."""
        return (len(self.order) - position) // self.global_batch * self.accumulation

    def __len__(self) -> int:
        return self.remaining(0)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        for batch in range(self.remaining(self.begin)):
            yield self.order.ids(*self._rows(batch))


@dataclass
class EvalSampler:
    """This rank's share of samples 0..count-1, unshuffled, the same in every epoch; padded, so that every rank has as
    many batches as the others."""

    count: int
    rank: int
    world: int
    micro: int
    epoch: int = 0
    side: ClassVar[None] = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def occurrences(self, batch: int) -> None:
        return None

    def shards(self, first: int, last: int) -> None:
        return None

    def __len__(self) -> int:
        return -(-self.count // (self.micro * self.world))

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        ids = np.arange(len(self) * self.world * self.micro, dtype=np.int64)
        ids[self.count :] = PADDING
        return iter(ids.reshape(-1, self.world, self.micro)[:, self.rank])
