"""Random numbers on the device that belong to samples, by the same counter-based hash as on the host.

Everything is done in operations of fixed shape, without a look at the values: the host never waits for the device, and
torch.compile takes it whole.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

FIRST_COLUMN = 1 << 10  # of the hash; those before belong to the decoding processes
OPERATIONS_COLUMN = 1 << 11  # from here on to `random_operations`: they share no numbers with what a team draws


def uniform(seeds: Tensor, count: int, first: int = FIRST_COLUMN) -> Tensor:
    """Random numbers in [0, 1) that belong to the samples, float32 (B, count), for seeds int64 (B,).

    The first 24 bits of what `data.uniforms.uniform` gives in the columns from `first` on: exact in float32, so the
    same on every device.
    """
    columns = torch.arange(first + 1, first + 1 + count, device=seeds.device) * _signed(0x9E3779B97F4A7C15)
    return _shift(splitmix(seeds[:, None] + columns), 40).float() * 2.0**-24


def splitmix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, as in `data.uniforms`, on int64 for uint64: products wrap around all the same."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, where `>>` fills with the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64)


def beta_quantiles(alpha: float, steps: int = 1024) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at 0, 1/steps, ..., 1, float32 (steps + 1,), right to about 0.001.

    The density is integrated from 0 to 1/2, where x^(alpha - 1) may have its pole: that factor exactly, the other one
    at the middle of each of 4096 cells. The upper half mirrors the lower one.
    """
    x = np.linspace(0, 0.5, 4097)
    mass = np.diff(x**alpha) * (1 - (x[1:] + x[:-1]) / 2) ** (alpha - 1)
    cumulative = np.concatenate([[0], np.cumsum(mass)])
    lower = np.interp(np.linspace(0, 1, steps // 2 + 1), cumulative / cumulative[-1], x)
    return torch.from_numpy(np.concatenate([lower, 1 - lower[-2::-1]])).float()


def quantile(table: Tensor, at: Tensor) -> Tensor:
    """Look up `at` in [0, 1) in a table of evenly spaced quantiles, with linear interpolation."""
    place = at * (len(table) - 1)
    index = place.long()
    return torch.lerp(table.float()[index], table.float()[index + 1], place - index)
