"""Where each sample's fields lie in a tar: walk the headers once, keep the result beside the tar, read by position.

A shard is a plain tar as `webdataset`, GNU tar or Python's `tarfile` write it. `ShardIndex.build` groups its files into
samples by WebDataset's naming rule (the key ends at the first dot of the base name), without hidden files and those of
a system, and stores the result as `<shard>.index`: a NumPy zip without pickles. A sidecar is somebody's data, too: it
is used where all in it fits, and a member's own header confirms its name and size at each read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..machine import persistently
from .file_names import is_system_file
from .sidecar import read_arrays
from .tar_walk import BLOCK, Member, walk

# what a sidecar holds, and of which type and how many dimensions
_KINDS = {
    "version": ("i8", 0), "keys": ("u1", 1), "key_ends": ("i8", 1), "fields": ("U", 1),
    "data": ("i8", 2), "size": ("i8", 2), "check": ("u4", 2), "shard": ("i8", 1),
}  # fmt: skip
MOST_FIELDS = 256  # of a shard: the index has a place for each field of each sample
SIDECAR_VERSION = 1
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset.tariterators.base_plus_ext


@dataclass(frozen=True, eq=False)
class Keys:
    """Sample keys in one piece of memory, a third of what so many strings take: `text`, and where each ends there."""

    text: bytes  # UTF-8
    ends: NDArray[np.int64]  # (N,)

    @classmethod
    def of(cls, keys: Iterable[str]) -> Keys:
        encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
        return cls(b"".join(encoded), np.cumsum([len(key) for key in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def encoded(self, row: int) -> bytes:
        ends = self.ends.data  # of which a number costs a third
        return self.text[ends[row - 1] if row else 0 : ends[row]]

    def __getitem__(self, row: int) -> str:
        return self.encoded(row).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))


def _group(members: Iterable[Member]) -> tuple[dict[str, dict[str, Member]], list[str]]:
    """Members by key and field, and the names of all fields. Raises ValueError for what are no samples."""
    samples: dict[str, dict[str, Member]] = {}
    fields: set[str] = set()
    last = None
    for member in members:
        match = _NAME.match(member.name)
        if not match or (member.name.startswith("__") and member.name.endswith("__")) or is_system_file(member.name):
            continue  # as webdataset does: no extension, or its own meta members
        key, field = match[1], match[2].lower()
        sample = samples.setdefault(key, {})
        if key != last and sample:
            raise ValueError(f"has the members of sample {key!r} in two places; write each sample's files in a row")
        if field in sample:
            raise ValueError(f"has two members {key + '.' + field!r}; a key, all before the first dot, must be unique")
        fields.add(field)
        if len(fields) > MOST_FIELDS:
            raise ValueError(
                f"has more than {MOST_FIELDS} different fields, such as {field!r}: a sample's key ends at the first "
                "dot of the file's name, and the rest is the field; rename the files without dots in their keys"
            )
        sample[field] = member
        last = key
    return samples, sorted(fields)


def _walked(shard: Path) -> tuple[os.stat_result, tuple[dict[str, dict[str, Member]], list[str]]]:
    with shard.open("rb") as file:
        return os.fstat(file.fileno()), _group(walk(file))


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard: N samples with F fields.

    Attributes:
        keys: sample keys, in the order of the tar.
        fields: the F field names in lower case, such as `jpg` and `cls`.
        data: int64 (N, F), offset of the field's bytes in the tar; -1 where the sample lacks the field.
        size: int64 (N, F), its length in bytes.
        check: uint32 (N, F), CRC-32 of the member's header block (the 512 bytes before `data`).
        stamp: (bytes, modification time in ns) of the tar when it was walked; others make the index stale.
    """

    keys: Keys
    fields: list[str]
    data: NDArray[np.int64]
    size: NDArray[np.int64]
    check: NDArray[np.uint32]
    stamp: tuple[int, int]

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def build(cls, shard: Path) -> ShardIndex:
        """Walk the headers of `shard`. Raises InputError for what is no whole plain tar of samples."""
        try:
            stat, (samples, fields) = persistently(lambda: _walked(shard))
        except OSError as error:
            raise InputError(f"{shard}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise InputError(f"{shard}: {error}") from None
        columns = {field: column for column, field in enumerate(fields)}
        table = np.full((3, len(samples), len(fields)), -1, np.int64)
        for row, sample in enumerate(samples.values()):
            for field, member in sample.items():
                table[:, row, columns[field]] = member.data, member.size, member.check
        check, stamp = table[2].astype(np.uint32), (stat.st_size, stat.st_mtime_ns)
        return cls(Keys.of(samples), fields, table[0], table[1], check, stamp)

    def pick(self, wanted: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]:
        """`data`, `size` and `check`, each (N,), of each sample's first `wanted` field; data is -1 without any."""
        columns = [self.fields.index(field) for field in wanted if field in self.fields]
        rows = np.arange(len(self))
        if not columns:
            return np.full(len(self), -1), np.zeros(len(self), np.int64), np.zeros(len(self), np.uint32)
        first = np.array(columns)[np.argmax(self.data[:, columns] >= 0, axis=1)]
        return self.data[rows, first], self.size[rows, first], self.check[rows, first]

    def save(self, path: Path) -> None:
        """Write the sidecar under a temporary name and rename it."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(
                file,
                version=SIDECAR_VERSION,
                keys=np.frombuffer(self.keys.text, np.uint8),
                key_ends=self.keys.ends,
                fields=np.array(self.fields, dtype=np.str_),
                data=self.data,
                size=self.size,
                check=self.check,
                shard=np.array(self.stamp, np.int64),
            )
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> ShardIndex | None:
        """Read a sidecar; None where it is missing, damaged or of another version: it is made anew then."""
        try:
            arrays = read_arrays(path, _KINDS)
            keys = Keys(arrays["keys"].tobytes(), arrays["key_ends"])
            (size, mtime_ns), fields = arrays["shard"].tolist(), arrays["fields"].tolist()
            index = cls(keys, fields, arrays["data"], arrays["size"], arrays["check"], (size, mtime_ns))
            return index if arrays["version"] == SIDECAR_VERSION and index._fits() else None
        except Exception:  # whatever zipfile and NumPy raise for damage: a dozen kinds
            return None

    def _fits(self) -> bool:
        """Whether this can be the index of a tar of `stamp[0]` bytes: its shapes, and members in their order."""
        shape, ends, most = (len(self), len(self.fields)), self.keys.ends, self.stamp[0]
        if any(array.shape != shape for array in (self.data, self.size, self.check)):
            return False
        if len(set(self.fields)) < len(self.fields) or (len(self) and not self.fields):
            return False
        if np.any(np.diff(ends, prepend=0) < 0) or (ends[-1] if len(ends) else 0) != len(self.keys.text):
            return False
        there = self.data >= 0
        if np.any(self.data > most) or np.any(self.size > most) or np.any(self.size[there] < 0):
            return False
        first = np.where(there, self.data - BLOCK, most)
        last = np.where(there, self.data + self.size, -1)
        if np.any(first < 0) or np.any(last > most):
            return False
        return len(self) < 2 or bool(np.all(first.min(axis=1)[1:] >= last.max(axis=1)[:-1]))
