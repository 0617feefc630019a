"""What the loader hands out: the rows of one micro-batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """B rows. Shape suffixes: B batch, S image side, T targets."""

    images: Tensor  # uint8 (B, 3, S, S), channels_last in memory
    targets: Tensor  # int64 (B,) class numbers, or float32 (B, T)
    ids: Tensor  # int64 (B,) sample ids; -1 is padding
    seeds: Tensor  # int64 (B,) where all random choices for the sample are hashed from
    valid: Tensor  # bool (B,) false for padding and for samples that could not be decoded
