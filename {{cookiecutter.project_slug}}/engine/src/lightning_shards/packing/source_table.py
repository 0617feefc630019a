"""The images of a source as columns in plain files, so that memory does not grow with their number.

`sources` yields rows, `write_rows` appends them to the files, and `SourceTable` maps the files: in `pack` and in
each of its workers, which read images by their number alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import InputError

BATCH = 16_384  # rows held as Python objects at a time
_MAX_BYTES = 2**28  # no image file is larger; a zip bomb would be


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
        self._root = Path(self.about["root"])
        if self._root.is_file():
            self._zip = os.open(self._root, os.O_RDONLY)
            self._members = np.load(folder / "members.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.splits)

    def path(self, item: int) -> str:
        return os.fsdecode(self._paths[self._ends[item - 1] if item else 0 : self._ends[item]].tobytes())

    def target(self, item: int) -> list[Any]:
        values: list[Any] = self.values[self.value_ends[item - 1] if item else 0 : self.value_ends[item]].tolist()
        return values

    def read(self, item: int) -> bytes:
        """The image file's bytes. Raises OSError or ValueError where it is missing or damaged."""
        path = self.about["lead"] + self.path(item)
        if self._root.is_dir():
            file = os.open(self._root / path, os.O_RDONLY | os.O_CLOEXEC)
            try:  # to read _MAX_BYTES at most would take that much memory for a while
                data = os.read(file, min(os.fstat(file).st_size, _MAX_BYTES) + 1)
            finally:
                os.close(file)
        else:
            data = self._read_member(path)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"is larger than {_MAX_BYTES >> 20} MB")
        return data

    def _read_member(self, name: str) -> bytes:
        hashes, place = self._members["hash"], _hash(name)
        found = int(np.searchsorted(hashes, place))
        if found == len(hashes) or hashes[found] != place:
            raise ValueError("is not in the zip")
        offset, size, check = (int(self._members[field][found]) for field in ("offset", "size", "check"))
        head = os.pread(self._zip, 30, offset)
        skip = 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        data = os.pread(self._zip, size, offset + skip)
        try:
            if head[8:10] == b"\x08\0":
                data = zlib.decompressobj(-15).decompress(data, _MAX_BYTES + 1)
        except zlib.error as error:
            raise ValueError(f"is damaged in the zip ({error})") from None
        if zlib.crc32(data) != check and len(data) <= _MAX_BYTES:
            raise ValueError("is damaged in the zip: wrong checksum")
        return data


def _hash(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little"))


def index_zip(path: Path, folder: Path) -> list[str]:
    """Write where the members lie, by the hash of their names; return the names.

    `zipfile` takes about 1 kB of memory a member while it lists; reading does not go through it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise InputError(f"{path} is no whole zip ({error}): copy or download it again") from None
    for member in members:
        if member.filename.startswith("/") or ".." in member.filename.split("/"):
            raise InputError(f"{path}: member {member.filename!r} points out of the zip; such a zip is not read")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{path}: {member.filename!r} is encrypted or packed in a rare way; unzip it first")
    kind = [("hash", "u8"), ("offset", "i8"), ("size", "i8"), ("check", "u4")]
    table = np.array([(_hash(m.filename), m.header_offset, m.compress_size, m.CRC) for m in members], kind)
    np.save(folder / "members.npy", np.sort(table, order="hash"))
    return [member.filename for member in members]


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
