"""Rows of a batch out of the arrays of an embedding. In a decoding process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .array_file import ArrayFile
from .array_rows import ArrayRows, read_ahead
from .batcher import PADDING
from .dataset import Dataset
from .embedding import VALUES, Embedded, Embedding
from .fields import Fields
from .slots import Arrays
from .uniforms import draw


class EmbeddedRows(ArrayRows):
    """The arrays that one embedding has of one split.

    Args:
        embedding: what was made.
        dataset, split: of what.
        parts: part of a record for each field of the batch.
    """

    def __init__(self, embedding: Embedding, dataset: Dataset, split: str, parts: Mapping[str, str]) -> None:
        self._plan, self.parts = embedding.plan(dataset, split), parts
        super().__init__(self._plan, dataset.splits[split])
        self.name = embedding.name
        self.values = [name for name, part in parts.items() if part == VALUES]  # fields
        self._views = int(self._plan.about["views"])
        self._open: dict[int, ArrayFile] = {}
        self._thread = ThreadPoolExecutor(1, "arrays")

    def expect(self, numbers: Sequence[int]) -> None:
        """Have the arrays of these shards at hand, and let go of all others."""
        for number in set(self._open).difference(numbers):
            del self._open[number]
        for number in numbers:
            self.mapped(number)

    def mapped(self, number: int) -> ArrayFile:
        """Raises InputError for a shard without an array that fits."""
        if number not in self._open:
            found = self._plan.open(self.shards[number])
            if found is None:
                raise InputError(
                    f"{self.shards[number].name} has no array {self.name!r} that fits, or its tar has changed: run"
                    " `embed` again, which makes what is missing"
                )
            self._open[number] = found
            self._thread.submit(read_ahead, found)
        return self._open[number]

    def fill(self, ids: NDArray[np.int64], seeds: NDArray[np.int64] | None, arrays: Arrays) -> NDArray[np.int64]:
        """Fill the rows of a batch. Returns the numbers of those whose sample could not be decoded by the network.

        Args:
            ids: of the samples, (B,); PADDING for none.
            seeds: of the samples, (B,), which choose the view; None for the first, the image's centre.
            arrays: memory of each field, (B or more, ...).
        """
        filled, records = self.gather(ids)
        for name, part in self.parts.items():
            values = records[part]
            if part == VALUES:
                view = 0 if seeds is None or self._views == 1 else _views(seeds[filled], self._views)
                values = values[:, 0] if isinstance(view, int) else values[np.arange(len(values)), view]
            arrays[name][filled] = values
        if len(filled) == len(ids):
            return np.empty(0, np.int64)
        others = np.ones(len(ids), np.bool_)
        others[filled] = False
        for name in self.parts:
            arrays[name][: len(ids)][others] = 0
        return np.flatnonzero(others & (ids != PADDING))


def _views(seeds: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return (draw(seeds, 1)[:, 0] * count).astype(np.int64)


def embedded_rows(dataset: Dataset, split: str, fields: Fields) -> list[EmbeddedRows]:
    """What reads those of `fields` that are embedded."""
    parts: dict[str, tuple[Embedding, dict[str, str]]] = {}
    for name, field in fields.items():
        if isinstance(field, Embedded):
            parts.setdefault(field.embedding.name, (field.embedding, {}))[1][name] = field.part
    return [EmbeddedRows(embedding, dataset, split, named) for embedding, named in parts.values()]
