"""Which sample stands at which position of an epoch: pure functions, the same on any hardware.

`Order` is what a loader asks. `WindowedOrder` shuffles one dataset; `balance` and `mixture` have others.

An epoch's order is made in two steps. The shards are permuted; consecutive shards of that permutation form *windows* of
bounded samples and bytes; the samples inside a window are permuted. So any slice of the order costs memory and time of
the windows it touches, whatever the size of the dataset, and reading touches only one window's shards at a time.
World size, workers and micro-batches do not enter: they only say who takes which slice.

All randomness comes from raw Philox outputs, which are fixed for good; NumPy's own `permutation` may change between
versions and is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ..machine import memory_bytes

WINDOW_BYTES = 4 << 30
_SUBSET, _SHARDS, _WINDOW, BALANCE, MIXTURE = range(5)  # what a permutation is for: each has a stream of its own


def permutation(count: int, *key: int) -> NDArray[np.int64]:
    """A permutation of range(count) that `key` alone decides, the same with every NumPy version."""
    draws = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(draws, kind="stable")


def default_window_bytes() -> int:
    """4 GiB, at most a quarter of the memory: a window's shards should stay in the page cache."""
    return min(WINDOW_BYTES, memory_bytes() // 4)


class Order(Protocol):
    """Position -> sample id. Picklable: each decoding process has its own.

    `settings` are plain values that decide the order together with the dataset: a resume compares them.
    """

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def __len__(self) -> int:
        """Positions of an epoch, the same in every epoch."""

    def ids(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Sample ids at the positions start..stop-1 of `epoch`, int64 (stop - start,)."""

    def occurrences(self, epoch: int, start: int, stop: int) -> NDArray[np.int64] | None:
        """How often each of these samples has come before in `epoch`; None where each comes once.

        It goes into the sample's seed: each time, the same image is cropped and flipped in another way.
        """

    def shards(self, epoch: int, start: int, stop: int) -> Sequence[int]:
        """The shards to have at hand for these positions, in the order of reading: theirs, and those that come next."""

    def reach(self, samples: int) -> int:
        """Bytes at most of the shards at hand for `samples` positions in a row, in any epoch."""


class Remembering:
    """Keeps the newest results of some of its methods; a pickled copy begins without them."""

    _REMEMBERED: ClassVar[Mapping[str, int]] = {}  # method -> results to keep

    def _remember(self) -> None:
        for name, count in self._REMEMBERED.items():
            vars(self)[name] = lru_cache(maxsize=count)(getattr(type(self), name).__get__(self))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self._REMEMBERED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remember()


class WindowedOrder(Remembering):
    """The shuffled order of one split's samples, for every epoch.

    Args:
        samples: samples in each shard.
        shard_bytes: bytes of each shard.
        seed: decides everything random here.
        fraction: share of the samples to use, in (0, 1]: the first shards of a permutation that does not change from
            epoch to epoch, as many as are needed to reach it.
        window_samples, window_bytes: a window is closed before either would be exceeded; it has at least one shard.
    """

    _REMEMBERED: ClassVar[Mapping[str, int]] = {"_window": 2, "_plan": 2}

    def __init__(
        self,
        samples: Sequence[int],
        shard_bytes: Sequence[int],
        seed: int = 0,
        fraction: float = 1.0,
        window_samples: int = 1 << 62,
        window_bytes: int = 1 << 62,
    ) -> None:
        self.seed = seed
        self.settings: Mapping[str, Any] = {
            "seed": seed,
            "fraction": fraction,
            "window_samples": window_samples,
            "window_bytes": window_bytes,
        }
        self._samples = np.asarray(samples, np.int64)
        self._bytes = np.asarray(shard_bytes, np.int64)
        self._first_id = np.cumsum(self._samples) - self._samples
        self._limits = window_samples, window_bytes
        subset = permutation(len(self._samples), seed, _SUBSET)
        reached = np.cumsum(self._samples[subset])
        enough = int(np.searchsorted(reached, fraction * reached[-1] - 1e-9)) + 1 if len(reached) else 0
        self._subset = np.sort(subset[:enough])
        self._set_positions(self._samples)
        self._remember()

    @property
    def shards_in_use(self) -> list[int]:
        """The numbers of the shards that it has samples of."""
        return self._subset.tolist()  # type: ignore[no-any-return]

    def _set_positions(self, positions: NDArray[np.int64]) -> None:
        """How many positions each shard has in an epoch."""
        self._positions, self._length = positions, int(positions[self._subset].sum())

    def __len__(self) -> int:
        return self._length

    def ids(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Sample ids at the positions start..stop-1 of `epoch`, int64 (stop - start,)."""
        ids: NDArray[np.int64] = self._rows(epoch, start, stop)[0]
        return ids

    def occurrences(self, epoch: int, start: int, stop: int) -> NDArray[np.int64] | None:
        return None

    def shards(self, epoch: int, start: int, stop: int) -> list[int]:
        """The shards of the windows that the positions start..stop-1 touch, and of the window behind them."""
        shards, edges, positions = self._plan(epoch)
        first = int(np.searchsorted(positions, start, side="right")) - 1
        behind = max(first, int(np.searchsorted(positions, stop, side="left")))
        return shards[edges[first] : edges[min(behind + 1, len(edges) - 1)]].tolist()  # type: ignore[no-any-return]

    def reach(self, samples: int) -> int:
        """Bytes at most of the windows that `samples` in a row touch, in any epoch: two windows and what is between."""
        count, size = self._positions[self._subset], self._bytes[self._subset]
        densest = float((size / np.maximum(count, 1)).max())
        window = max(int(size.max()), min(self._limits[1], int(self._limits[0] * densest)))
        return min(int(size.sum()), 2 * window + int(samples * densest) + 1)

    def _rows(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """What `_samples_of` says of these positions, (R, stop - start)."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"positions {start}..{stop} of an order of {len(self)}")
        positions = self._plan(epoch)[2]
        pieces = [np.empty((2, 0), np.int64)] if start == stop else []
        window = int(np.searchsorted(positions, start, side="right")) - 1
        while start < stop:
            first, last = int(positions[window]), int(positions[window + 1])
            pieces.append(self._window(epoch, window)[:, start - first : min(stop, last) - first])
            start, window = min(stop, last), window + 1
        return np.concatenate(pieces, axis=1)

    def _plan(self, epoch: int) -> tuple[NDArray[np.int64], list[int], NDArray[np.int64]]:
        """The epoch's shards, where each window begins among them, and at which position of the order."""
        shards = self._subset[permutation(len(self._subset), self.seed, _SHARDS, epoch)]
        counts = self._positions[shards]
        edges, samples, size = [0], 0, 0
        for number, (n, b) in enumerate(zip(counts.tolist(), self._bytes[shards].tolist(), strict=True)):
            if number > edges[-1] and (samples + n > self._limits[0] or size + b > self._limits[1]):
                edges.append(number)
                samples, size = 0, 0
            samples, size = samples + n, size + b
        edges.append(len(shards))
        ends = np.concatenate([[0], np.cumsum(counts)])
        return shards, edges, ends[edges]

    def _window(self, epoch: int, window: int) -> NDArray[np.int64]:
        shards, edges, _ = self._plan(epoch)
        rows = np.concatenate([self._samples_of(epoch, s) for s in shards[edges[window] : edges[window + 1]]], axis=1)
        return rows.take(permutation(rows.shape[1], self.seed, _WINDOW, epoch, window), axis=1)

    def _samples_of(self, epoch: int, shard: int) -> NDArray[np.int64]:
        """(1, n): ids of a shard's samples in the epoch, before they are shuffled. A subclass may add rows."""
        return np.arange(self._first_id[shard], self._first_id[shard] + self._samples[shard])[None]
