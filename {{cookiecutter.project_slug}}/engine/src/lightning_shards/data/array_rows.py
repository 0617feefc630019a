"""The records of a batch's samples out of the arrays beside the tars. In a decoding process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .array_file import HERE, ArrayFile
from .array_plan import ArrayPlan
from .batcher import PADDING
from .dataset import Shard


class ArrayRows:
    """The records of the samples of one split by id; of its samples not all need have one.

    Args:
        plan: what the arrays hold.
        shards: of the split.
    """

    def __init__(self, plan: ArrayPlan, shards: Sequence[Shard]) -> None:
        self.shards = shards
        sizes = np.array([shard.samples for shard in shards], np.int64)
        self.ends: NDArray[np.int64] = np.cumsum(sizes)
        self.begins = self.ends - sizes
        self._record = plan.record
        self.buffer = np.empty((0, plan.record.itemsize), np.uint8)

    def mapped(self, number: int) -> ArrayFile | None:
        """The array of a shard, by the shard's number; None where there is none."""
        raise NotImplementedError

    def grow(self, count: int) -> None:
        """Have room for so many records in `buffer`."""
        if len(self.buffer) < count:
            self.buffer = np.empty((count, self._record.itemsize), np.uint8)

    def gather(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """The rows of `ids`, int64 (B,), that have a record, and their records, which lie in `buffer`.

        Each shard's are taken at once, so the rows come shard by shard.
        """
        real = np.flatnonzero(ids != PADDING)
        numbers = self.ends.searchsorted(ids[real], side="right")
        order = numbers.argsort(kind="stable")
        numbers, rows = numbers[order], real[order]
        places = ids[rows] - self.begins[numbers]
        edges = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(rows)]
        there, done = np.ones(len(rows), np.bool_), 0
        self.grow(len(ids))
        for start, stop in itertools.pairwise(edges if len(rows) else []):
            file, wanted = self.mapped(int(numbers[start])), places[start:stop]
            if not file:
                there[start:stop] = False
                continue
            if not file.whole:
                here = there[start:stop] = file.there[wanted] == HERE
                wanted = wanted[here]
            file.rows.take(wanted, 0, self.buffer[done : done + len(wanted)], "clip")
            done += len(wanted)
        return rows[there], self.buffer[:done].view(self._record)[:, 0]


def read_ahead(file: ArrayFile) -> None:
    """Ask the system for all of a file, where it can be asked."""
    with suppress(AttributeError, OSError):
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
