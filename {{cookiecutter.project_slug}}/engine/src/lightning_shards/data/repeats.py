"""Repeated augmentation: each sample comes several times in one global batch, each time cropped in another way.

Hoffer et al., 2020 (Augment your batch) and Touvron et al., 2021 (DeiT). As there, an epoch stays as long as it was:
with R repeats it has one R-th of the samples, each R times, and the next epoch goes on with those that have not come.
So in R epochs each sample comes R times.

Two samples take turns, a b a b a b: a row's neighbour, with which mixup and cutmix mix it, is another image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .mixture import Mixture, epoch_runs
from .order import Order

_TURNS = 2  # samples that take turns
_EPOCHS = 1 << 40  # more than a sample has occurrences in one epoch of any order


class Repeated:
    """An `Order` in which each position of another one comes `repeats` times, within 2 x `repeats` positions.

    The other order runs through its own epochs, one after the other. A global batch that is a multiple of
    `unit` has all views of its samples.
    """

    def __init__(self, order: Order, repeats: int) -> None:
        self.order, self.repeats, self.unit = order, repeats, _TURNS * repeats
        self._samples = len(order) // self.unit * _TURNS  # different ones in an epoch
        if not self._samples:
            raise InputError(f"data.repeats {repeats} is too many for {len(order)} training samples")
        self.settings: Mapping[str, Any] = {**order.settings, "repeats": repeats}

    def __len__(self) -> int:
        return self._samples * self.repeats

    def ids(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Sample ids at the positions start..stop-1 of `epoch`, int64 (stop - start,)."""
        rows, _ = self._places(start, stop)
        runs = self._runs(epoch, start, stop)
        ids: NDArray[np.int64] = np.concatenate([np.empty(0, np.int64), *(self.order.ids(*run) for run in runs)])[rows]
        return ids

    def occurrences(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """The number of the view, beyond how often the sample has come in the other order."""
        rows, views = self._places(start, stop)
        first, pieces = epoch * self._samples // len(self.order), [np.empty(0, np.int64)]
        for own, begin, end in self._runs(epoch, start, stop):
            inner = self.order.occurrences(own, begin, end)
            pieces.append((np.zeros(end - begin, np.int64) if inner is None else inner) + (own - first) * _EPOCHS)
        return np.concatenate(pieces)[rows] * self.repeats + views

    def shards(self, epoch: int, start: int, stop: int) -> list[int]:
        """Those of the other order; where it comes to its epoch's end, with the next one's first."""
        order, runs = self.order, self._runs(epoch, start, max(stop, start + 1))
        found = [shard for run in runs for shard in order.shards(*run)]
        own, last = runs[-1][0], len(order)
        if found[-1] == order.shards(own, last - 1, last)[-1]:
            found += order.shards(own + 1, 0, 1)
        return list(dict.fromkeys(found))

    def reach(self, samples: int) -> int:
        return sum(self.reaches(samples))

    def reaches(self, samples: int) -> list[int]:
        """`reach` of each source of a mixture: twice that of the other order, where two of its epochs meet."""
        order, some = self.order, samples // self.repeats + 2 * _TURNS
        whole, part = (
            order.reaches(count) if isinstance(order, Mixture) else [order.reach(count)] for count in (len(order), some)
        )
        return [min(all_of_it, 2 * once) for all_of_it, once in zip(whole, part, strict=True)]

    def _places(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each position: which of the samples that `_runs` names it has, and which view of it."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"positions {start}..{stop} of an order of {len(self)}")
        turns, within = np.divmod(np.arange(start, stop), self.unit)
        return (turns - start // self.unit) * _TURNS + within % _TURNS, within // _TURNS

    def _runs(self, epoch: int, start: int, stop: int) -> list[tuple[int, int, int]]:
        """The positions of the other order that have these samples: (its epoch, first, behind the last)."""
        begin = epoch * self._samples
        first, last = start // self.unit, -(-stop // self.unit)
        return epoch_runs(begin + first * _TURNS, begin + last * _TURNS, len(self.order))
