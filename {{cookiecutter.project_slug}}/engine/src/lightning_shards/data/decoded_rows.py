"""Rows of a batch out of the arrays beside the tars, and into them what was decoded from a tar. In a decoding process.

Which samples a pass reads from an array is settled when their shard comes near: nothing is read that another process
is about to write.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..machine import memory_bytes, open_files
from ..terminal import say
from .array_file import ArrayFile, PartialFile
from .array_rows import ArrayRows, read_ahead
from .batcher import PADDING
from .crop import Crop
from .crop_batch import cut_all
from .dataset import Dataset
from .decode import Pixels
from .decoded import SIZE, DecodedPlan
from .keeper import Keeper
from .slots import Arrays


class DecodedRows(ArrayRows):
    """The arrays of one split.

    Args:
        plan: what they hold.
        dataset, split: what they are made from.
        crop: how the square that the model sees is cut from an image; may be set anew between two passes.
    """

    def __init__(self, plan: DecodedPlan, dataset: Dataset, split: str, crop: Crop) -> None:
        super().__init__(plan, dataset.splits[split])
        self._plan, self.crop = plan, crop
        self.others = list(plan.others)  # fields beside the image
        # whoever made the file may have written any number
        self._checks = {name: one.possible for name, one in plan.others.items() if hasattr(one, "possible")}
        self._open: dict[int, ArrayFile | PartialFile | None] = {}  # None: neither read nor written
        self._most = max(8, min(256, open_files() // 8))  # files in the making that are open
        self._writes, self._limit = True, max(memory_bytes() // 2, plan.needed(self.shards))  # as if nothing were set
        self._thread = ThreadPoolExecutor(1, "arrays")
        self._rows: dict[int, tuple[NDArray[Any], list[Pixels]]] = {}  # of the slots' memory
        self._images: list[Pixels] = []  # of the buffer's rows
        self._spare: list[NDArray[Any]] = []  # memory of keepers

    def expect(self, numbers: Sequence[int]) -> list[int]:
        """Have these shards at hand, and let go of all others. Returns those whose tars are wanted."""
        for number in set(self._open).difference(numbers):
            self._let_go(number)
        return [number for number in numbers if not isinstance(self._at(number), ArrayFile)]

    def _at(self, number: int) -> ArrayFile | PartialFile | None:
        if number not in self._open:
            shard = self.shards[number]
            found: ArrayFile | PartialFile | None = self._plan.open(shard)
            if isinstance(found, ArrayFile):
                self._thread.submit(read_ahead, found)
            elif self._writes and sum(isinstance(file, PartialFile) for file in self._open.values()) < self._most:
                found = self._begin(number)
            self._open[number] = found
        return self._open[number]

    def _begin(self, number: int) -> ArrayFile | PartialFile | None:
        try:
            return self._plan.begin(self.shards[number], self._limit)
        except OSError as error:
            self._give_up(error)
            return None

    def _give_up(self, error: OSError) -> None:
        """Go on without writing: what is kept is a convenience."""
        if self._writes:
            self._writes = False
            say(f"decoded images cannot be kept ({error.strerror}): they are decoded anew each time", sys.stderr)

    def mapped(self, number: int) -> ArrayFile | None:
        file = self._at(number)
        return (file.written if file.begun else None) if isinstance(file, PartialFile) else file

    def fill(
        self, ids: NDArray[np.int64], seeds: NDArray[np.int64] | None, arrays: Arrays, valid: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Fill the rows of a batch whose samples are in an array. Returns the numbers of the others.

        Args:
            ids: of the samples, (B,); PADDING for none.
            seeds: of the samples, (B,); None for the centred crop.
            arrays: memory of each field, (B or more, ...), the same at each turn of a slot.
            valid: becomes true for the rows that are filled, (B,).
        """
        filled, records = self.gather(ids)
        images = self._images[: len(filled)]
        for name, possible in self._checks.items():
            if not (right := possible(records[name])).all():  # the tars have these
                filled, records = filled[right], records[right]
                images = list(itertools.compress(images, right))
        room = self._plan.height, self._plan.width
        heights, widths = records[SIZE].clip(1, room).T  # whoever made the file
        out = self._rows_of(arrays[self._plan.image])
        made = [out[row] for row in filled.tolist()]
        cut_all(self.crop, images, heights, widths, None if seeds is None else seeds[filled], made)
        for name in self.others:
            arrays[name][filled] = records[name]
        valid[filled] = True
        return np.flatnonzero(~valid & (ids != PADDING))

    def grow(self, count: int) -> None:
        if len(self.buffer) < count:
            super().grow(count)
            height, width = self._plan.height, self._plan.width
            images = self.buffer[:, : height * width * 3]
            self._images = [image.reshape(height, width, 3) for image in images]

    def _rows_of(self, array: NDArray[Any]) -> list[Pixels]:
        """The rows of a slot's memory, as arrays: to make one takes as long as to copy a small image."""
        kept, rows = self._rows.get(id(array), (None, []))
        if kept is not array:
            rows = list(array)
            self._rows[id(array)] = array, rows
        return rows

    def keeper(self, ids: NDArray[np.int64], arrays: Arrays) -> Keeper:
        """For what is decoded of the samples `ids`, (n,), into rows of `arrays`; to be handed to `keep`."""
        numbers = self.ends.searchsorted(ids, side="right")
        open_ = [
            file if isinstance(file := self._open.get(number), PartialFile) else None for number in numbers.tolist()
        ]
        records = self._spare.pop() if self._spare else np.zeros(0, self._plan.record)
        if len(records) < len(ids):
            records = np.zeros(len(ids), self._plan.record)
        return Keeper(self._plan, records, open_, (ids - self.begins[numbers]).tolist(), arrays)

    def keep(self, keeper: Keeper) -> None:
        """Write what was decoded."""
        try:
            if self._writes:
                keeper.write()
        except OSError as error:
            self._give_up(error)
        self._spare.append(keeper.records)

    def _let_go(self, number: int) -> None:
        file = self._open.pop(number)
        if isinstance(file, PartialFile):
            self._thread.submit(_finish, file)

    def close(self) -> None:
        """The end of a pass: what was written gets its name, what was read stays mapped for the next."""
        for number, file in list(self._open.items()):
            if not isinstance(file, ArrayFile):
                self._let_go(number)


def _finish(file: PartialFile) -> None:
    with suppress(OSError):  # it stays as it is, to go on with
        file.finish()
    file.close()
