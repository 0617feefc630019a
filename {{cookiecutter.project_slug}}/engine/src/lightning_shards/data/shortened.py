"""A training on a part of each epoch: for a first try, or to see whether a model can learn a few batches by heart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .order import Order


class Shortened:
    """An `Order` of the first `length` positions of each epoch of another one.

    Args:
        order: the whole.
        length: positions that an epoch keeps.
        same: every epoch has the samples of the first one, in the same order. A place in it is then none in `order`.
    """

    def __init__(self, order: Order, length: int, same: bool = False) -> None:
        self.whole, self._length, self._same = order, length, same
        self.settings: Mapping[str, Any] = {**order.settings, "overfit_batches": True} if same else order.settings

    def __len__(self) -> int:
        return self._length

    def ids(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        return self.whole.ids(self._epoch(epoch), start, stop)

    def occurrences(self, epoch: int, start: int, stop: int) -> NDArray[np.int64] | None:
        return self.whole.occurrences(self._epoch(epoch), start, stop)

    def shards(self, epoch: int, start: int, stop: int) -> Sequence[int]:
        return self.whole.shards(self._epoch(epoch), start, stop)

    def reach(self, samples: int) -> int:
        return self.whole.reach(samples)

    def _epoch(self, epoch: int) -> int:
        return 0 if self._same else epoch
