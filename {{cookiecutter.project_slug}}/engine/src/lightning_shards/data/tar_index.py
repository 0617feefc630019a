"""Where each sample's fields lie in a tar: walk the headers once, keep the result beside the tar, read by position.

A shard is a plain tar as `webdataset`, GNU tar or Python's `tarfile` write it. `walk` reads nothing but headers (ustar,
PAX, GNU long names, base-256 sizes), `ShardIndex.build` groups the members into samples by WebDataset's naming rule
(the key ends at the first dot of the base name), and the result is stored as `<shard>.index`: a NumPy zip without
pickles. Format of the headers: POSIX.1-2024, `pax`; https://www.gnu.org/software/tar/manual/html_node/Standard.html.
"""

from __future__ import annotations

import io
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

BLOCK = 512
SIDECAR_VERSION = 1
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset.tariterators.base_plus_ext
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_REFUSED = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


class Member(NamedTuple):
    """One regular file in a tar: `data` is the offset of its bytes, its own header block ends there."""

    name: str
    data: int
    size: int
    check: int  # CRC-32 of the 512 bytes before `data`: proves at each read that this member still lies here


def _number(field: bytes) -> int:
    """A numeric header field: octal digits, or base-256 where the first bit is set (GNU, sizes of 8 GiB and more)."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _pax_records(data: bytes) -> dict[str, str]:
    """The `length key=value` records of a PAX header."""
    records = {}
    while data and data[0] != 0:
        length = int(data.split(b" ", 1)[0])
        if not 4 < length <= len(data):
            raise ValueError("a PAX record has a wrong length")
        key, _, value = data[:length].split(b" ", 1)[1].rstrip(b"\n").partition(b"=")
        records[key.decode()] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return records


def _header_name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _verify_end(file: BinaryIO, offset: int) -> None:
    """After the first zero block there must be a second, and nothing but zeros behind it."""
    rest = file.read()
    if len(rest) < BLOCK:
        raise ValueError(f"is cut short at byte {offset + BLOCK + len(rest)}: the end-of-archive mark is not whole")
    if rest.strip(b"\0"):
        raise ValueError(
            f"goes on after its end-of-archive mark at byte {offset} (tars joined with cat? split them again)"
        )


def walk(file: BinaryIO) -> Iterator[Member]:
    """Yield the regular files of the tar `file`, in order. Raises ValueError for what is no whole plain tar."""
    offset, extended = 0, {}
    while True:
        file.seek(offset)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise ValueError(f"is cut short at byte {offset + len(block)}: no end-of-archive mark")
        if not block.strip(b"\0"):
            return _verify_end(file, offset)
        stored = _number(block[148:156]) if re.fullmatch(rb"[ 0-7]*[\0 ]*", block[148:156]) else -1
        if stored != sum(block) - sum(block[148:156]) + 8 * 32:
            kind = next((name for magic, name in _COMPRESSED.items() if offset == 0 and block.startswith(magic)), None)
            if kind:
                raise ValueError(f"is compressed with {kind}; decompress it first, shards are read by position")
            raise ValueError(f"is damaged or no tar: the header at byte {offset} has a wrong checksum")
        kind_flag, size = block[156:157], _number(block[124:136])
        data, offset = offset + BLOCK, offset + BLOCK + -(-size // BLOCK) * BLOCK
        if kind_flag in (b"x", b"g", b"L", b"K"):
            content = file.read(size)
            if len(content) < size:
                raise ValueError(f"is cut short at byte {data + len(content)}: inside an extended header")
            if kind_flag == b"L":
                extended["path"] = content.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            elif kind_flag == b"x":
                extended |= _pax_records(content)
            continue
        if "size" in extended:
            size = int(extended["size"])
            offset = data + -(-size // BLOCK) * BLOCK
        name = extended.get("path") or _header_name(block)
        if kind_flag in _REFUSED or kind_flag == b"S" or any(key.startswith("GNU.sparse") for key in extended):
            what = _REFUSED.get(kind_flag, "a sparse file")
            raise ValueError(
                f"holds {what} ({name!r}); write the shard with plain files (tar --dereference, without --sparse)"
            )
        extended = {}
        if kind_flag in (b"0", b"\0", b"7"):
            yield Member(name, data, size, zlib.crc32(block))


# NumPy parses headers by `ast`, in which CPython 3.11 fails now and then where threads take turns (gh-106905).
_parsing = threading.Lock()


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

    def __getitem__(self, row: int) -> str:
        start, end = self.ends[row - 1] if row else 0, self.ends[row]
        return self.text[start:end].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))


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
        samples: dict[str, dict[str, Member]] = {}
        last = None
        try:
            with shard.open("rb") as file:
                stat = os.fstat(file.fileno())
                for member in walk(file):
                    match = _NAME.match(member.name)
                    if not match or (member.name.startswith("__") and member.name.endswith("__")):
                        continue  # as webdataset does: no extension, or its own meta members
                    key, field = match[1], match[2].lower()
                    sample = samples.setdefault(key, {})
                    if key != last and sample:
                        raise ValueError(
                            f"has the members of sample {key!r} in two places; write each sample's files in a row"
                        )
                    if field in sample:
                        raise ValueError(
                            f"has two members {key + '.' + field!r}; a key, all before the first dot, must be unique"
                        )
                    if member.data + member.size > stat.st_size:
                        raise ValueError(f"is cut short: {member.name!r} ends after the file")
                    sample[field] = member
                    last = key
        except OSError as error:
            raise InputError(f"{shard}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise InputError(f"{shard}: {error}") from None
        fields = sorted({field for sample in samples.values() for field in sample})
        table = np.full((3, len(samples), len(fields)), -1, np.int64)
        for row, sample in enumerate(samples.values()):
            for field, member in sample.items():
                table[:, row, fields.index(field)] = member.data, member.size, member.check
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
            content = io.BytesIO(path.read_bytes())
            with _parsing, np.load(content, allow_pickle=False) as arrays:
                if int(arrays["version"]) != SIDECAR_VERSION:
                    return None
                keys = Keys(arrays["keys"].tobytes(), arrays["key_ends"])
                fields, (size, mtime_ns) = arrays["fields"].tolist(), arrays["shard"].tolist()
                return cls(keys, fields, arrays["data"], arrays["size"], arrays["check"], (size, mtime_ns))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None
