"""Writes the records of an embedding, shard by shard, so that a kill at any moment loses none that was written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..data.array_file import MISSING, ArrayFile, PartialFile
from ..data.array_plan import ArrayPlan
from ..data.dataset import Shard
from ..errors import RunError


def unfinished(plan: ArrayPlan, shards: Sequence[Shard], rank: int, world: int) -> NDArray[np.int64]:
    """The runs of ids, int64 (R, 2), that a rank has yet to embed: of every `world`-th shard, what is not written."""
    runs, begin = [np.empty((0, 2), np.int64)], 0
    for number, shard in enumerate(shards):
        if number % world == rank and not plan.open(shard):
            left = plan.left(shard)
            missing = np.ones(shard.samples, np.bool_) if left is None else left.there == MISSING
            edges = np.flatnonzero(np.diff(missing, prepend=False, append=False))
            runs.append(begin + edges.reshape(-1, 2))
        begin += shard.samples
    return np.concatenate(runs)


class EmbeddingWriter:
    """The arrays of a split while they are made; ids must come in order.

    Raises RunError where the disk is full or cannot be written: what was written is kept.
    """

    def __init__(self, plan: ArrayPlan, shards: Sequence[Shard]) -> None:
        self.record, self._plan, self._shards = plan.record, plan, shards
        self._ends: NDArray[np.int64] = np.cumsum([shard.samples for shard in shards])
        self._number, self._file = -1, None

    _file: ArrayFile | PartialFile | None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._file, PartialFile):
            self._file.close()

    def put(self, ids: NDArray[np.int64], records: NDArray[Any]) -> None:
        """Write records (n,) of `ids`, int64 (n,)."""
        edges = np.flatnonzero(np.diff(ids) != 1) + 1
        numbers = self._ends.searchsorted(ids, side="right")
        edges = np.union1d(edges, np.flatnonzero(np.diff(numbers)) + 1)
        try:
            for some, own in zip(np.split(ids, edges), np.split(records, edges), strict=True):
                self._put(int(some[0]), own)
        except OSError as error:
            raise RunError(
                f"the embedding cannot be written ({error.strerror}): what was made is kept; make room, then run the"
                " same command again"
            ) from None

    def _put(self, first: int, records: NDArray[Any]) -> None:
        number = int(self._ends.searchsorted(first, side="right"))
        if number != self._number:
            self._close()
            self._number, self._file = number, self._plan.begin(self._shards[number])
        if isinstance(self._file, PartialFile):  # else another process has finished it
            self._file.put(first - int(self._ends[number]) + self._shards[number].samples, records)

    def _close(self) -> None:
        if isinstance(self._file, PartialFile):
            self._file.finish()
            self._file.close()
        self._file = None

    def finish(self, numbers: Iterable[int]) -> None:
        """Give the arrays of these shards their names, where a kill came before that."""
        self._close()
        self._number = -1
        for number in numbers:
            if not self._plan.open(self._shards[number]):
                self._file = self._plan.begin(self._shards[number])
                self._close()
