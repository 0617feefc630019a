"""Rows of a batch out of the arrays beside the tars, and into them what was decoded from a tar. In a decoding process.

Which samples a pass reads from an array is settled when their shard comes near: nothing is read that another process
is about to write.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..machine import open_files
from ..terminal import say
from .array_file import HERE, MISSING, ArrayFile, PartialFile
from .batcher import PADDING
from .crop import Crop
from .crop_batch import cut_all
from .dataset import Dataset
from .decode import Pixels
from .decoded import SIZE, DecodedPlan
from .slots import Arrays


class DecodedRows:
    """The arrays of one split.

    Args:
        plan: what they hold.
        dataset, split: what they are made from.
        crop: how the square that the model sees is cut from an image.
    """

    def __init__(self, plan: DecodedPlan, dataset: Dataset, split: str, crop: Crop) -> None:
        self._plan, self._crop, self._shards = plan, crop, dataset.splits[split]
        self.others = list(plan.others)  # fields beside the image
        sizes = np.array([shard.samples for shard in self._shards], np.int64)
        self._ends: NDArray[np.int64] = np.cumsum(sizes)
        self._begins = self._ends - sizes
        self._open: dict[int, ArrayFile | PartialFile | None] = {}  # None: neither read nor written
        self._most = max(8, min(256, open_files() // 8))  # files in the making that are open
        self._writes = True
        self._thread = ThreadPoolExecutor(1, "arrays")
        self._rows: dict[int, tuple[NDArray[Any], list[Pixels]]] = {}  # of the slots' memory
        self._buffer = np.empty((0, plan.record.itemsize), np.uint8)
        self._images: list[Pixels] = []  # of the buffer's rows

    def expect(self, numbers: Sequence[int]) -> list[int]:
        """Have these shards at hand, and let go of all others. Returns those whose tars are wanted."""
        for number in set(self._open).difference(numbers):
            self._let_go(number)
        return [number for number in numbers if not isinstance(self._at(number), ArrayFile)]

    def _at(self, number: int) -> ArrayFile | PartialFile | None:
        if number not in self._open:
            shard = self._shards[number]
            found: ArrayFile | PartialFile | None = self._plan.open(shard)
            if isinstance(found, ArrayFile):
                self._thread.submit(_read_ahead, found)
            elif self._writes and sum(isinstance(file, PartialFile) for file in self._open.values()) < self._most:
                found = self._begin(number)
            self._open[number] = found
        return self._open[number]

    def _begin(self, number: int) -> ArrayFile | PartialFile | None:
        shard, failed = self._shards[number], OSError()
        for path in self._plan.places(shard):
            try:
                begun = PartialFile(path, self._plan.record, shard.samples, self._plan.made(shard))
            except OSError as error:
                failed = error
                continue
            finished = self._plan.open(shard)  # by another process, since it was looked for
            if finished:
                begun.place.unlink(missing_ok=True)
            return finished or begun
        self._give_up(failed)
        return None

    def _give_up(self, error: OSError) -> None:
        """Go on without writing: what is kept is a convenience."""
        if self._writes:
            self._writes = False
            say(f"decoded images cannot be kept ({error.strerror}): they are decoded anew each time", sys.stderr)

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
        real = np.flatnonzero(ids != PADDING)
        numbers = self._ends.searchsorted(ids[real], side="right")
        order = numbers.argsort(kind="stable")
        numbers, rows = numbers[order], real[order]
        places = ids[rows] - self._begins[numbers]
        edges = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(rows)]
        there, done = np.ones(len(rows), np.bool_), 0
        self._make_room(len(ids))
        for start, stop in itertools.pairwise(edges if len(rows) else []):
            file, wanted = self._at(int(numbers[start])), places[start:stop]
            mapped = file.written if isinstance(file, PartialFile) else file
            if not mapped:
                there[start:stop] = False
                continue
            if not mapped.whole:
                here = there[start:stop] = mapped.there[wanted] == HERE
                wanted = wanted[here]
            mapped.rows.take(wanted, 0, self._buffer[done : done + len(wanted)], "clip")
            done += len(wanted)
        filled = rows[there]
        self._hand_out(filled, None if seeds is None else seeds[filled], arrays)
        valid[filled] = True
        return np.flatnonzero(~valid & (ids != PADDING))

    def _make_room(self, count: int) -> None:
        plan = self._plan
        if len(self._buffer) < count:
            self._buffer = np.empty((count, plan.record.itemsize), np.uint8)
            images = self._buffer[:, : plan.height * plan.width * 3]
            self._images = [image.reshape(plan.height, plan.width, 3) for image in images]

    def _hand_out(self, filled: NDArray[np.int64], seeds: NDArray[np.int64] | None, arrays: Arrays) -> None:
        """Turn the buffer's first records into the batch's rows `filled`."""
        records = self._buffer[: len(filled)].view(self._plan.record)[:, 0]
        heights, widths = records[SIZE].clip(1, [self._plan.height, self._plan.width]).T  # whoever made the file
        out = self._rows_of(arrays[self._plan.image])
        made = [out[row] for row in filled.tolist()]
        cut_all(self._crop, self._images[: len(filled)], heights, widths, seeds, made)
        for name in self.others:
            arrays[name][filled] = records[name]

    def _rows_of(self, array: NDArray[Any]) -> list[Pixels]:
        """The rows of a slot's memory, as arrays: to make one takes as long as to copy a small image."""
        kept, rows = self._rows.get(id(array), (None, []))
        if kept is not array:
            rows = list(array)
            self._rows[id(array)] = array, rows
        return rows

    def keep(self, sample: int, pixels: Pixels | None, values: dict[str, Any]) -> None:
        """Write what was decoded; without `pixels`, that only the tar has this sample.

        Args:
            sample: its id.
            pixels: of the whole image, uint8 (H, W, 3).
            values: of the other fields.
        """
        number = int(np.searchsorted(self._ends, sample, side="right"))
        file, row = self._open.get(number), int(sample - self._begins[number])
        if not isinstance(file, PartialFile) or file.written.there[row] != MISSING or not self._writes:
            return
        plan = self._plan
        try:
            if pixels is None or pixels.shape[0] > plan.height or pixels.shape[1] > plan.width:
                return file.leave(row)
            record = np.zeros((), plan.record)
            height, width = record[SIZE][:] = pixels.shape[:2]
            record[plan.image][:height, :width] = pixels
            for name, value in values.items():
                record[name] = value
            record["there"] = HERE
            file.put(row, record)
        except OSError as error:
            self._give_up(error)

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


def _read_ahead(file: ArrayFile) -> None:
    """Ask the system for all of a file, where it can be asked."""
    with suppress(AttributeError, OSError):
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
