"""Writes what is decoded of some samples into the arrays in the making. One thread's.

Records are put together in memory that is kept, in few calls, and written one after the other when all are decoded:
between two images, each of which takes tens of microseconds, the system would need three times as long for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .array_file import HERE, MISSING, PartialFile
from .decode import Pixels
from .decoded import SIZE, DecodedPlan
from .slots import Arrays


class Keeper:
    """For samples of a batch.

    Args:
        records: memory for as many; what an earlier batch has left is in it.
        files: the array in the making of each sample; None: it is not kept.
        places: the sample's record in it.
        arrays: of the batch, with the values of the other fields.
    """

    def __init__(
        self,
        plan: DecodedPlan,
        records: NDArray[Any],
        files: Sequence[PartialFile | None],
        places: Sequence[int],
        arrays: Arrays,
    ) -> None:
        self._files, self._places, self.records = files, places, records
        self._images, self._sizes = records[plan.image], records[SIZE]
        self._room = self._images.shape[1:]
        self._values = [(records[name], arrays[name]) for name in plan.others]
        self._wholes: list[int] = []
        self._lacking: list[int] = []

    def keep(self, number: int, row: int, pixels: Pixels | None) -> None:
        """Note the sample `number` of these, which is the batch's `row`.

        `pixels`: of its whole image, uint8 (H, W, 3); None: only the tar has this sample.
        """
        file = self._files[number]
        if file is None or file.written.there[self._places[number]] != MISSING:
            return
        if pixels is None or pixels.shape[0] > self._room[0] or pixels.shape[1] > self._room[1]:
            self._lacking.append(number)
            return
        image, (height, width, _) = self._images[number], pixels.shape
        if pixels.shape == self._room:
            image[:] = pixels
        else:
            image[:] = 0
            image[:height, :width] = pixels
        size = self._sizes[number]
        size[0], size[1] = height, width
        for values, array in self._values:
            values[number] = array[row]
        self._wholes.append(number)

    def write(self) -> None:
        """Raises OSError."""
        self.records["there"] = HERE
        size = self.records.itemsize
        content = memoryview(self.records.view(np.uint8))  # type: ignore[arg-type]
        for number in self._wholes:
            if file := self._files[number]:
                file.put_one(self._places[number], content[number * size : (number + 1) * size])
        for number in self._lacking:
            if file := self._files[number]:
                file.leave(self._places[number])
