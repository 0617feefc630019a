"""Several datasets in one order, each with its share.

Positions are dealt out in blocks. How many of a block belong to each source follows from the cumulated shares, so after
any number of blocks a source has had its share of the positions, to within one; which of them is a permutation of the
block. So each position of an epoch leads to a source and to a position of that source's own, without a walk from the
begin. Each source runs through its own epochs, one after the other, however long the mixture's are: of one source, no
sample comes a second time before all have come once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise, zip_longest
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .order import MIXTURE, Order, Remembering, permutation

BLOCK = 4096
_ONE = 1 << 32  # the sum of all shares
_REPEATS = 1 << 20  # more than a sample comes in one epoch of its source


@dataclass(frozen=True)
class Source:
    """A dataset in a mixture.

    Args:
        order: of its training samples.
        share: of all positions, in relation to the other sources' shares.
        samples, shards: how many the split has, of which `order` may use a part.
        fingerprint: of the dataset.
    """

    order: Order
    share: float
    samples: int
    shards: int
    fingerprint: str


class Mixture(Remembering):
    """An `Order` over several datasets, as long as all of their orders together.

    The ids and shard numbers of each source follow upon those of the source before.
    """

    _REMEMBERED: ClassVar[Mapping[str, int]] = {"_block": 8, "_at_hand": 2}

    def __init__(self, sources: Sequence[Source], seed: int = 0) -> None:
        names = [source.fingerprint for source in sources]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"a mixture has the dataset with the fingerprint {twice[0]} twice: add up its shares")
        self.sources, self.seed = tuple(sources), seed
        total = sum(source.share for source in sources)
        self.settings: Mapping[str, Any] = {
            **sources[0].order.settings,
            "seed": seed,
            "mixture": [
                {"dataset": source.fingerprint, "share": source.share / total, "order": dict(source.order.settings)}
                for source in sources
            ],
        }
        cumulated = np.cumsum([source.share for source in sources]) / total
        self._limits = [0, *(round(float(limit) * _ONE) for limit in cumulated[:-1]), _ONE]
        self._length = sum(len(source.order) for source in sources)
        self._first_ids = [0, *accumulate(source.samples for source in sources)]
        self._first_shards = [0, *accumulate(source.shards for source in sources)]
        self.counts = self._before(self._length)
        for source, count in zip(sources, self.counts, strict=True):
            if not count:
                raise InputError(f"a share of {source.share / total:.3g} gives not one of {self._length} positions")
        self._remember()

    def __len__(self) -> int:
        return self._length

    def ids(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Sample ids at the positions start..stop-1 of `epoch`, int64 (stop - start,)."""
        parts = self._parts(epoch, start, stop)
        ids = np.empty(stop - start, np.int64)
        for source, rows, runs in parts:
            order = self.sources[source].order
            ids[rows] = np.concatenate([order.ids(*run) for run in runs]) + self._first_ids[source]
        return ids

    def occurrences(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Epochs that the sample's source has begun in this epoch of the mixture before the one it belongs to."""
        parts = self._parts(epoch, start, stop)
        found = np.empty(stop - start, np.int64)
        for source, rows, runs in parts:
            order = self.sources[source].order
            first = epoch * self.counts[source] // len(order)
            pieces = []
            for own, begin, end in runs:
                inner = order.occurrences(own, begin, end)
                repeats = np.zeros(end - begin, np.int64) if inner is None else inner
                pieces.append(repeats + (own - first) * _REPEATS)
            found[rows] = np.concatenate(pieces)
        return found

    def shards(self, epoch: int, start: int, stop: int) -> list[int]:
        """Those that the touched blocks need, of each source in turns; where a source comes to its epoch's end, with
        the next one's first."""
        return self._at_hand(epoch, start // BLOCK * BLOCK, min(self._length, -(-stop // BLOCK) * BLOCK))

    def _at_hand(self, epoch: int, start: int, stop: int) -> list[int]:
        lists = []
        for source, _, runs in self._parts(epoch, start, stop):
            order, offset = self.sources[source].order, self._first_shards[source]
            found = [shard for run in runs for shard in order.shards(*run)]
            own, begin, _ = runs[-1]
            if order.shards(own, begin, len(order)) == order.shards(*runs[-1]):
                found += order.shards(own + 1, 0, 0)
            lists.append([offset + shard for shard in found])
        turns = chain.from_iterable(zip_longest(*lists))
        return list(dict.fromkeys(shard for shard in turns if shard is not None))

    def reach(self, samples: int) -> int:
        return sum(self.reaches(samples))

    def reaches(self, samples: int) -> list[int]:
        """`reach` of each source alone: its samples lie within its share of the blocks that are touched."""
        blocks = samples + 2 * BLOCK
        return [
            source.order.reach((limit - before) * blocks // _ONE + 2)
            for source, before, limit in zip(self.sources, self._limits, self._limits[1:], strict=False)
        ]

    def _before(self, position: int) -> list[int]:
        """Positions of each source among the first `position` of an epoch, at the edge of a block."""
        ends = [(limit * position + _ONE // 2) // _ONE for limit in self._limits]
        return [end - begin for begin, end in pairwise(ends)]

    def _block(self, epoch: int, block: int) -> NDArray[np.int64]:
        """The number of the source at each position of a block, (BLOCK,) or less at an epoch's end."""
        begin, end = self._before(block * BLOCK), self._before(min((block + 1) * BLOCK, self._length))
        numbers = np.repeat(np.arange(len(begin)), np.subtract(end, begin))
        return numbers[permutation(len(numbers), self.seed, MIXTURE, epoch, block)]

    def _parts(
        self, epoch: int, start: int, stop: int
    ) -> list[tuple[int, NDArray[np.int64], list[tuple[int, int, int]]]]:
        """For each source in start..stop-1: its number, which of these positions it has, and which of its own: runs
        of (its epoch, first position, the one behind the last)."""
        if not 0 <= start <= stop <= self._length:
            raise IndexError(f"positions {start}..{stop} of an order of {self._length}")
        first = start // BLOCK
        blocks = [self._block(epoch, block) for block in range(first, -(-stop // BLOCK))] or [np.empty(0, np.int64)]
        numbers = np.concatenate(blocks)
        skipped, numbers = numbers[: start - first * BLOCK], numbers[start - first * BLOCK : stop - first * BLOCK]
        before, parts = self._before(first * BLOCK), []
        for number, source in enumerate(self.sources):
            rows = np.flatnonzero(numbers == number)
            if len(rows):
                begin = epoch * self.counts[number] + before[number] + int(np.count_nonzero(skipped == number))
                parts.append((number, rows, epoch_runs(begin, begin + len(rows), len(source.order))))
        return parts


def epoch_runs(begin: int, end: int, length: int) -> list[tuple[int, int, int]]:
    """The positions begin..end-1 of epochs of `length`, one behind the other, as (epoch, first, behind the last)."""
    runs = []
    while begin < end:
        epoch, first = divmod(begin, length)
        last = min(length, first + end - begin)
        runs.append((epoch, first, last))
        begin += last - first
    return runs
