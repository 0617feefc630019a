"""The memory in which a decoding process hands over a batch: one array for each field whose rows have a shape."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .fields.base import Fields, row_shape

ALIGNED = 64  # bytes
Arrays = Mapping[str, NDArray[Any]]


class _Place(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int  # bytes from the slot's begin


class SlotLayout:
    """Where each field's rows lie in a slot.

    Args:
        fields: of a sample; ragged ones have no place here.
        side: of the view's square, in pixels.
        rows: of a batch at most.
    """

    def __init__(self, fields: Fields, side: int, rows: int) -> None:
        self._places: list[_Place] = []
        self.bytes = 0
        for name, field in fields.items():
            if field.shape is not None:
                shape, dtype = (rows, *row_shape(field, side)), np.dtype(field.dtype)
                self._places.append(_Place(name, shape, dtype, self.bytes))
                self.bytes += -(-math.prod(shape) * dtype.itemsize // ALIGNED) * ALIGNED
        self.bytes = max(self.bytes, ALIGNED)

    def arrays(self, memory: mmap.mmap | bytearray, slot: int = 0) -> dict[str, NDArray[Any]]:
        """The arrays of a slot by field, (rows, ...) each."""
        at = slot * self.bytes
        return {name: np.ndarray(shape, dtype, memory, at + start) for name, shape, dtype, start in self._places}
