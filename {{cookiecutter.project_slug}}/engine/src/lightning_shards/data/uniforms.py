"""Random numbers that belong to samples: hashed from (seed, epoch, sample id), so nobody's turn decides them.

Raw Philox and SplitMix64 outputs are fixed for good, on any machine.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def draw(seeds: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """The first `count` random numbers in [0, 1) of each of `sample_seeds`: (len(seeds), count).

    Counter-based: SplitMix64 (Steele, Lea and Flood, 2014) over the seed and the column.
    """
    columns = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    draws = _mix(seeds.view(np.uint64)[:, None] + columns) >> np.uint64(11)
    return draws.astype(np.float64) * 2.0**-53


def sample_seeds(
    seed: int, epoch: int, ids: NDArray[np.int64], occurrences: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """One 64-bit seed for each sample in this epoch, shape of `ids`; all its random choices are hashed from it.

    `occurrences`, shape of `ids`: how often each has come before in this epoch.
    """
    start = _start(seed, epoch)
    numbers = ids.astype(np.uint64)
    if occurrences is not None:
        numbers += occurrences.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)  # odd: no two agree by chance
    return _mix(_mix(numbers + start) + start).view(np.int64)


@lru_cache(maxsize=8)
def _start(seed: int, epoch: int) -> np.uint64:
    return np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, on arrays (which wrap around without a warning)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
