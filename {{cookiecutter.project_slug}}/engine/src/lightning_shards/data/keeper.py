"""Writes what is decoded of some samples into the arrays in the making. One thread's.

A record is put together in memory that is kept, a part at a time, in few calls: an image of a few KB is decoded in tens
of microseconds, and keeping it is not to cost much more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .array_file import HERE, MISSING, PartialFile
from .decode import Pixels
from .decoded import SIZE, DecodedPlan
from .slots import Arrays


class Keeper:
    """For samples of a batch.

    Args:
        files: the array in the making of each sample; None: it is not kept.
        places: the sample's record in it.
        arrays: of the batch, with the values of the other fields.
        failed: is called where a record cannot be written; then no more are.
    """

    def __init__(
        self,
        plan: DecodedPlan,
        files: Sequence[PartialFile | None],
        places: Sequence[int],
        arrays: Arrays,
        failed: Callable[[OSError], None],
    ) -> None:
        self._files, self._places, self._failed = list(files), places, failed
        record = np.zeros(1, plan.record)
        record["there"] = HERE
        self._content = memoryview(record.view(np.uint8))  # type: ignore[arg-type]
        self._image, self._size = record[plan.image][0], record[SIZE][0]
        self._room = self._image.shape
        self._values = [(record[name], arrays[name]) for name in plan.others]

    def keep(self, number: int, row: int, pixels: Pixels | None) -> None:
        """Write the sample `number` of these, which is the batch's `row`.

        `pixels`: of its whole image, uint8 (H, W, 3); None: only the tar has this sample.
        """
        file, place = self._files[number], self._places[number]
        if file is None or file.written.there[place] != MISSING:
            return
        try:
            if pixels is None or pixels.shape[0] > self._room[0] or pixels.shape[1] > self._room[1]:
                return file.leave(place)
            height, width, _ = pixels.shape
            if pixels.shape == self._room:
                self._image[:] = pixels
            else:
                self._image[:] = 0
                self._image[:height, :width] = pixels
            self._size[0], self._size[1] = height, width
            for value, array in self._values:
                value[0] = array[row]
            file.put_one(place, self._content)
        except OSError as error:
            self._files = [None] * len(self._files)
            self._failed(error)
