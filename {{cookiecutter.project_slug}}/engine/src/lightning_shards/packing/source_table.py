"""The images of a source as columns in plain files, so that memory does not grow with their number.

`sources` yields rows, `write_rows` appends them to the files, and `SourceTable` maps the files: in `pack` and in
each of its workers, which read images by their number alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .image_files import ImageFiles
from .tables import BATCH


class Row(NamedTuple):
    path: str
    split: int  # -1 where the source gives none
    target: list[Any]  # class names or numbers
    stamp: int = 0  # changes when the file does


class SourceTable:
    """The rows in `folder`, item 0 to N - 1.

    Attributes:
        names: of the classes, or of the numbers.
        splits: int8 (N,), place in `SPLITS`; -1 where the source gives none.
        values: the targets of all items in a row: class numbers (int32) or numbers (float64).
        value_ends: int64 (N,), where each item's targets end in `values`.
    """

    def __init__(self, folder: Path) -> None:
        self.about: dict[str, Any] = json.loads((folder / "about.json").read_bytes())
        self.task: str = self.about["task"]
        self.names: list[str] = self.about["names"]

        def column(name: str, dtype: DTypeLike) -> NDArray[Any]:
            return np.asarray(np.memmap(folder / name, dtype, "r"))  # of which a slice costs a third

        self.splits: NDArray[np.int8] = column("splits", np.int8)
        self.values = column("values", np.float64 if self.task == "regression" else np.int32)
        self.value_ends, self._ends = column("value_ends", np.int64), column("ends", np.int64)
        self._paths = column("paths", np.uint8)
        members = folder / "members.npy"
        self._files = ImageFiles(
            Path(self.about["root"]), np.load(members, mmap_mode="r") if members.exists() else None
        )

    def __len__(self) -> int:
        return len(self.splits)

    def path(self, item: int) -> str:
        return os.fsdecode(self._paths[self._ends[item - 1] if item else 0 : self._ends[item]].tobytes())

    def target(self, item: int) -> list[Any]:
        values: list[Any] = self.values[self.value_ends[item - 1] if item else 0 : self.value_ends[item]].tolist()
        return values

    def read(self, item: int) -> bytes:
        """The image file's bytes. Raises OSError or ValueError where it is missing or damaged."""
        return self._files.read(self.about["lead"] + self.path(item))


def write_rows(folder: Path, rows: Iterator[Row], numbers: dict[str, int] | None) -> str:
    """Write all rows as columns; returns their hash. Classes get `numbers` as they come (None: none)."""
    digest, path_end, value_end = hashlib.sha256(), 0, 0
    while batch := list(islice(rows, BATCH)):
        paths = [os.fsencode(row.path) for row in batch]
        values = [v if numbers is None else numbers.setdefault(v, len(numbers)) for row in batch for v in row.target]
        columns = {
            "paths": np.frombuffer(b"".join(paths), np.uint8),
            "ends": path_end + np.cumsum([len(path) for path in paths]),
            "splits": np.array([row.split for row in batch], np.int8),
            "values": np.array(values, np.float64 if numbers is None else np.int32),
            "value_ends": value_end + np.cumsum([len(row.target) for row in batch]),
        }
        path_end, value_end = int(columns["ends"][-1]), int(columns["value_ends"][-1])
        digest.update(str([row.stamp for row in batch]).encode())
        for name, column in columns.items():
            digest.update(column.tobytes())
            with (folder / name).open("ab") as file:
                file.write(column.tobytes())
    return digest.hexdigest()


def sort_classes(folder: Path, numbers: dict[str, int]) -> list[str]:
    """Renumber the classes by name (by value where all names are whole numbers) and return them."""
    names = sorted(numbers, key=(lambda n: (int(n), n)) if all(map(str.isdecimal, numbers)) else None)
    places = {name: place for place, name in enumerate(names)}
    new = np.array([places[name] for name in numbers], np.int32)
    values = np.memmap(folder / "values", np.int32, "r+")
    for first in range(0, len(values), BATCH):
        values[first : first + BATCH] = new[values[first : first + BATCH]]
    values.flush()
    return names
