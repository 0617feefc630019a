"""The rows of one batch in the making: each member of a sample is decoded into its field's row, then transformed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .crop import Crop, View
from .decode import DecodeError
from .fields.base import Field, Fields, empty_row, in_plane
from .slots import Arrays
from .transform import Transform, apply

USUAL = ("image", "target")  # whose damage is described without the field's name


class _Step(NamedTuple):
    """What becomes of one member of each sample."""

    decode: Callable[[bytes, View, NDArray[Any] | None], Any]
    rows: Any  # array (B, ...), or a list of B values
    whole: bool  # a row is an array, so the decoder may write into it
    missing: tuple[Any, ...]  # the row of a sample that lacks it; empty where it is required


class BatchRows:
    """B rows of each field.

    Args:
        fields: of a sample, in the order in which they are decoded.
        arrays: memory (B, ...) for each field with a shape; what is left of an earlier batch is in it.
        count: B.
        crop: how the view of each sample is chosen.
        transform: None, or what changes each sample, with its `seeds`, int64 (B,).
        keeps: whether `decode` gives the whole image.

    Attributes:
        draws: random numbers (B, crop.draws) for the views; None for the centre.
    """

    draws: NDArray[np.float64] | None = None

    def __init__(
        self,
        fields: Fields,
        arrays: Arrays,
        count: int,
        crop: Crop,
        seeds: NDArray[np.int64],
        transform: Transform | None,
        keeps: bool = False,
    ) -> None:
        self.arrays = {name: array[:count] for name, array in arrays.items()}
        self.ragged = {name: [empty_row(field)] * count for name, field in fields.items() if field.shape is None}
        self.valid = np.zeros(count, np.bool_)
        for name, field in fields.items():
            if field.shape is not None and not in_plane(field):
                self.arrays[name][:] = 0
        self._fields, self._crop, self._seeds = fields, crop, seeds
        self._transform, self._keeps = transform, keeps
        self._steps = [self._step(name, field) for name, field in fields.items()]

    def _step(self, name: str, field: Field) -> _Step:
        rows: Any = self.ragged[name] if field.shape is None else self.arrays[name]
        return _Step(field.decode, rows, bool(field.shape), () if field.required else (empty_row(field),))

    def decode(self, row: int, members: list[bytes]) -> NDArray[np.uint8] | None:
        """Make a row of the sample's members, one for each field. Raises DecodeError, with the number of the field.

        Returns the pixels of its whole image, where they are to be kept and are few; valid until the thread's next row.
        """
        draws, step = self.draws, None
        view = View(self._crop, None if draws is None else draws[row], self._keeps)
        try:
            for step, data in zip(self._steps, members, strict=True):
                decode, rows, whole, missing = step
                if missing and not data:
                    rows[row] = missing[0]
                elif whole:
                    out = rows[row]
                    value = decode(data, view, out)
                    if value is not out:
                        self._put(step, row, value)
                else:
                    rows[row] = decode(data, view, None)
            if self._transform:
                self._change(self._transform, row)
        except DecodeError as error:
            if step and not error.transform:
                error.member = self._number(step)
                if (name := list(self._fields)[error.member]) not in USUAL:
                    error.args = (f"{name}: {error.args[0]}",)
            raise
        self.valid[row] = True
        return view.whole

    def _number(self, step: _Step) -> int:
        """Of its field."""
        return next(number for number, other in enumerate(self._steps) if other is step)

    def _put(self, step: _Step, row: int, value: Any) -> None:
        if np.shape(value) != step.rows.shape[1:]:
            name, room = list(self._fields)[self._number(step)], step.rows.shape[1:]
            raise InputError(f"the field {name!r} gave a row {np.shape(value)}, but its shape is {room}")
        step.rows[row] = value

    def _change(self, transform: Transform, row: int) -> None:
        before = {name: (self.ragged if name in self.ragged else self.arrays)[name][row] for name in self._fields}
        sample = dict(before)
        apply(transform, sample, self._fields, int(self._seeds[row]))
        for name, value in sample.items():
            if value is not before[name]:
                (self.ragged if name in self.ragged else self.arrays)[name][row] = value

    def fill(self, inputs: Iterable[str] = ()) -> None:
        """Give rows that are not valid the values of valid ones, in the image's plane and in these other `inputs` of
        the model: zeros never enter BatchNorm."""
        if self.valid.all():
            return
        good, bad = np.flatnonzero(self.valid), np.flatnonzero(~self.valid)
        for name in (*(name for name, field in self._fields.items() if in_plane(field)), *inputs):
            array = self.arrays[name]
            array[bad] = array[good[bad % len(good)]] if len(good) else 0
        for name, values in self.ragged.items():
            for row in bad.tolist():
                values[row] = empty_row(self._fields[name])
