"""Some samples more often than others: each comes the floor or the ceiling of its class's factor, or its own, times.

A shard has the same number of positions in every epoch, from how many samples of each class it holds. Which of its
samples come once more than others is drawn anew in each epoch, by systematic sampling over the samples in the order of
their classes, shuffled within each: so the classes, too, come as often as their factors say, to within one in a shard.

Factors are whole multiples of 1 / SCALE: all of this is arithmetic of whole numbers, the same on any machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .order import BALANCE, WindowedOrder

SCALE = 1 << 20
WEIGHT_STEPS = 1024  # of a sample's own weight: it is a whole multiple of 1 / WEIGHT_STEPS
MOST_REPEATS = 1000  # a sample in an epoch


def balancing_factors(counts: NDArray[np.int64], strength: float) -> NDArray[np.float64]:
    """How often each sample of a class comes in an epoch, (C,), where `counts` (C,) are the samples of each class.

    A class's share of the epoch is proportional to count ** (1 - strength): as in the dataset with 0, the same for all
    classes with 1. The epoch stays as long as the dataset.
    """
    some = np.maximum(counts, 1).astype(np.float64)
    shares = np.where(counts > 0, some ** (1 - strength), 0.0)
    factors: NDArray[np.float64] = shares / some * (counts.sum() / max(shares.sum(), 1.0))
    return factors


def count_classes(numbers: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Samples of each class, (classes,), of class numbers (n,), of which negative ones are none."""
    counts: NDArray[np.int64] = np.bincount(np.maximum(numbers.astype(np.int64), -1) + 1, minlength=classes + 1)
    return counts[1:]


class BalancedOrder(WindowedOrder):
    """`WindowedOrder`, in which the samples of each class come as often as the class's factor says.

    Args:
        samples, shard_bytes, seed, fraction, window_samples, window_bytes: as there; a window's samples are positions.
        classes: a file as `numpy.save` writes it: the class numbers of all samples, whole numbers (N,). A negative one
            is no class: its sample comes once.
        balance: the strength, of `balancing_factors` over the samples in use; or class number -> factor, 1 for others;
            None: the file has the samples' own weights, in steps of 1 / WEIGHT_STEPS.

    Attributes:
        counts: samples in use of each class, (C,).
        factors: how often each of them comes in an epoch, on average, (C,).
    """

    def __init__(
        self,
        samples: Sequence[int],
        shard_bytes: Sequence[int],
        classes: Path,
        balance: float | Mapping[int, float] | None,
        **others: Any,
    ) -> None:
        super().__init__(samples, shard_bytes, **others)
        self._file, shards = classes, self._subset.tolist()
        self._classes = np.load(classes, mmap_mode="r")
        width = int(self._classes.max(initial=-1)) + 1
        self.counts = sum((count_classes(self._numbers(shard), width) for shard in shards), np.zeros(width, np.int64))
        if balance is None:
            self.factors = np.arange(width) / WEIGHT_STEPS
        elif isinstance(balance, Mapping):
            self.factors = np.array([balance.get(number, 1.0) for number in range(width)])
        else:
            self.factors = balancing_factors(self.counts, balance)
        self._weights = np.append(np.rint(self.factors * SCALE).astype(np.int64), SCALE)  # the last: of no class
        self.settings = {
            **self.settings,
            "balance": {str(k): v for k, v in balance.items()} if isinstance(balance, Mapping) else balance,
            "class_numbers": f"{zlib.crc32(self._classes.tobytes()):08x}",
        }
        totals = np.zeros(len(self._samples), np.int64)
        totals[shards] = [self._weights[self._numbers(shard)].sum() for shard in shards]
        self._set_positions(np.diff((np.cumsum(totals) + SCALE // 2) // SCALE, prepend=0))

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["_classes"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._classes = np.load(self._file, mmap_mode="r")

    def occurrences(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        occurrences: NDArray[np.int64] = self._rows(epoch, start, stop)[1]
        return occurrences

    def _numbers(self, shard: int) -> NDArray[np.int64]:
        """The class numbers of a shard's samples, -1 for none."""
        first = self._first_id[shard]
        numbers: NDArray[np.int64] = self._classes[first : first + self._samples[shard]].astype(np.int64)
        return np.maximum(numbers, -1)

    def _samples_of(self, epoch: int, shard: int) -> NDArray[np.int64]:
        """(2, n): ids, each as often as it comes, and its occurrence."""
        numbers, positions = self._numbers(shard), int(self._positions[shard])
        key = np.random.SeedSequence((self.seed, BALANCE, epoch, shard))
        draws = np.random.Philox(key).random_raw(len(numbers) + 1)
        samples = np.lexsort((draws[1:], numbers))
        ends = np.cumsum(self._weights[numbers[samples]])
        total = int(ends[-1]) if len(ends) else 0
        low, high = max(0, positions * SCALE - total), min(SCALE, (positions + 1) * SCALE - total)
        times = np.diff((ends + low + int(draws[0]) % (high - low)) // SCALE, prepend=0)
        before = np.cumsum(times) - times
        ids = self._first_id[shard] + np.repeat(samples, times)
        return np.stack([ids, np.arange(positions) - np.repeat(before, times)])
