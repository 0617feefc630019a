"""The images of a source as columns in plain files, so that memory does not grow with their number.

`sources` yields rows, `write_rows` appends them to the files, and `SourceTable` maps the files: in `pack` and in
each of its workers, which read images by their number alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..data.dataset import TARGET_FIELDS
from .image_files import ImageFiles
from .spelling import sort_names
from .tables import BATCH


class Row(NamedTuple):
    path: str
    split: int  # -1 where the source gives none
    target: list[Any]  # class names or numbers
    stamp: int = 0  # changes when the file does
    fields: Sequence[str] = ()  # the text of each further field; empty where the image has none


class SourceTable:
    """The rows in `folder`, item 0 to N - 1.

    Attributes:
        names: of the classes, or of the numbers.
        splits: int8 (N,), place in `SPLITS`; -1 where the source gives none.
        values: the targets of all items in a row: class numbers (int32) or numbers (float64).
        value_ends: int64 (N,), where each item's targets end in `values`.
        fields: what `describe_listed` says of each further field.
        target_field: which of them, the first, is what is predicted; empty: none.
    """

    def __init__(self, folder: Path) -> None:
        self.about: dict[str, Any] = json.loads((folder / "about.json").read_bytes())
        self.task: str = self.about["task"]
        self.names: list[str] = self.about["names"]
        self.fields: list[dict[str, Any]] = self.about["fields"]
        self.target_field = TARGET_FIELDS.get(self.task, "")

        def column(name: str, dtype: DTypeLike) -> NDArray[Any]:
            path = folder / name
            if not path.stat().st_size:  # which cannot be mapped
                return np.empty(0, dtype)
            return np.asarray(np.memmap(path, dtype, "r"))  # of which a slice costs a third

        self.splits: NDArray[np.int8] = column("splits", np.int8)
        self.values = column("values", np.float64 if self.task == "regression" else np.int32)
        self.value_ends, self._ends = column("value_ends", np.int64), column("ends", np.int64)
        self._paths = column("paths", np.uint8)
        texts = [(f"field-{n}", f"field-{n}-ends") for n in range(len(self.fields))]
        self._texts = [(column(text, np.uint8), column(ends, np.int64)) for text, ends in texts]
        members = folder / "members.npy"
        self._files = ImageFiles(
            Path(self.about["root"]), np.load(members, mmap_mode="r") if members.exists() else None
        )

    def __len__(self) -> int:
        return len(self.splits)

    def path(self, item: int) -> str:
        return os.fsdecode(_cell(self._paths, self._ends, item))

    def target(self, item: int) -> list[Any]:
        values: list[Any] = self.values[self.value_ends[item - 1] if item else 0 : self.value_ends[item]].tolist()
        return values

    def text(self, field: int, item: int) -> str:
        """What the source says of a further field; empty where the image has none."""
        return os.fsdecode(_cell(*self._texts[field], item))

    def read(self, path: str) -> bytes:
        """A file's bytes. Raises OSError or ValueError where it is missing or damaged."""
        return self._files.read(self.about["lead"] + path)

    def changed(self, path: str, moment: float) -> bool:
        """Whether a file is another one than at the time `moment`; in a zip, whether the zip is."""
        root = self._files.root
        with suppress(OSError):  # it is missing still
            return (root if root.is_file() else root / (self.about["lead"] + path)).stat().st_ctime > moment
        return False


def _cell(column: NDArray[np.uint8], ends: NDArray[np.int64], item: int) -> bytes:
    return column[ends[item - 1] if item else 0 : ends[item]].tobytes()


def write_rows(folder: Path, rows: Iterator[Row], numbers: dict[str, int] | None) -> str:
    """Write all rows as columns; returns their hash. Classes get `numbers` as they come (None: none)."""
    digest, ends = hashlib.sha256(), dict[str, int]()

    def texts(name: str, name_of_ends: str, column: Sequence[str]) -> dict[str, NDArray[Any]]:
        joined = "".join(column)
        cells: Sequence[str | bytes] = column if joined.isascii() else list(map(os.fsencode, column))
        return {name: np.frombuffer(os.fsencode(joined), np.uint8), name_of_ends: np.cumsum(list(map(len, cells)))}

    while batch := list(islice(rows, BATCH)):
        paths, splits, targets, stamps, fields = zip(*batch, strict=True)
        values = [value for target in targets for value in target]
        if numbers is not None:
            for name in dict.fromkeys(values):
                numbers.setdefault(name, len(numbers))
            values = list(map(numbers.__getitem__, values))
        columns = {
            **texts("paths", "ends", paths),
            "splits": np.array(splits, np.int8),
            "values": np.array(values, np.float64 if numbers is None else np.int32),
            "value_ends": np.cumsum(list(map(len, targets))),
        }
        for number, column in enumerate(zip(*fields, strict=True)):
            columns |= texts(f"field-{number}", f"field-{number}-ends", column)
        digest.update(str(list(stamps)).encode())
        for name, content in columns.items():
            if name.endswith("ends"):
                content += ends.get(name, 0)
                ends[name] = int(content[-1])
            digest.update(content.tobytes())
            with (folder / name).open("ab") as file:
                file.write(content.tobytes())
    return digest.hexdigest()


def sort_classes(folder: Path, numbers: dict[str, int]) -> list[str]:
    """Renumber the classes by name (by value where all names are whole numbers) and return them."""
    names = sort_names(numbers)
    places = {name: place for place, name in enumerate(names)}
    new = np.array([places[name] for name in numbers], np.int32)
    values = np.memmap(folder / "values", np.int32, "r+")
    for first in range(0, len(values), BATCH):
        values[first : first + BATCH] = new[values[first : first + BATCH]]
    values.flush()
    return names
