"""The files in a tar, by its headers alone: time and memory follow the size of the file, whatever the headers say.

ustar, PAX, GNU long names, base-256 sizes. Format: POSIX.1-2024, `pax`;
https://www.gnu.org/software/tar/manual/html_node/Standard.html.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
MOST_EXTENDED = 1 << 20  # bytes of an extended header; names and attributes take a thousandth of it
MOST_NAME = 4096  # bytes, as long as Linux lets a path be
_CHUNK = 1 << 20
_EXTENDED = (b"x", b"g", b"L", b"K")
_DIGITS = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_REFUSED = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


class Member(NamedTuple):
    """One regular file in a tar: `data` is the offset of its bytes, its own header block ends there."""

    name: str
    data: int
    size: int
    check: int  # CRC-32 of the 512 bytes before `data`: proves at each read that this member still lies here


def header_number(field: bytes) -> int:
    """A numeric header field: octal digits, or base-256 where the first bit is set (GNU, sizes of 8 GiB and more).

    Raises ValueError for anything else, negative numbers among it.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = _DIGITS.fullmatch(field)
    if not digits:
        raise ValueError(f"is damaged: the size {field!r} is no number")
    return int(digits[1] or b"0", 8)


def header_name(block: bytes) -> str:
    """The name in a header block; an extended header before it may have a longer one."""
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(name: bytes) -> str:
    if len(name) > MOST_NAME:
        raise ValueError(f"is damaged: a name has {len(name):,} bytes, {MOST_NAME:,} are the most")
    return name.decode("utf-8", "surrogateescape")


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each `length key=value` record of a PAX header."""
    at = 0
    while at < len(data) and data[at]:
        length = data[at : at + 20].partition(b" ")[0]
        size = int(length) if length.isdigit() else 0
        if not len(length) + 3 < size <= len(data) - at:
            raise ValueError("is damaged: a PAX record has a wrong length")
        key, _, value = data[at + len(length) + 1 : at + size].rstrip(b"\n").partition(b"=")
        yield key, value
        at += size


class _Extended:
    """What extended headers say of the member behind them."""

    def __init__(self) -> None:
        self.path, self.size, self.sparse = "", -1, False

    def read(self, kind: bytes, content: bytes) -> None:
        if kind == b"L":
            self.path = _text(content.split(b"\0", 1)[0])
        if kind not in (b"x", b"g"):
            return
        for key, value in _pax_records(content):
            if key in (b"path", b"size") and kind == b"g":
                raise ValueError(f"is damaged: a global header gives every file the same {key.decode()}")
            if key == b"path":
                self.path = _text(value)
            elif key == b"size":
                if not value.isdigit() or len(value) > 20:
                    raise ValueError(f"is damaged: a PAX header gives the size {value[:40]!r}")
                self.size = int(value)
            self.sparse |= key.startswith(b"GNU.sparse")


def _content(file: BinaryIO, size: int) -> bytes:
    """Of an extended header."""
    if size > MOST_EXTENDED:
        raise ValueError(
            f"is damaged: an extended header says that it has {size:,} bytes, {MOST_EXTENDED:,} are the most"
        )
    content = file.read(size)
    if len(content) < size:
        raise ValueError("is cut short inside an extended header")
    return content


def _verify_end(file: BinaryIO, offset: int) -> None:
    """After the first zero block there must be a second, and nothing but zeros behind it."""
    rest = 0
    while chunk := file.read(_CHUNK):
        rest += len(chunk)
        if chunk.strip(b"\0"):
            raise ValueError(
                f"goes on after its end-of-archive mark at byte {offset} (tars joined with cat? split them again)"
            )
    if rest < BLOCK:
        raise ValueError(f"is cut short at byte {offset + BLOCK + rest}: the end-of-archive mark is not whole")


def _verify_checksum(block: bytes, offset: int) -> None:
    """Raises ValueError for a block that is no header."""
    stored = _DIGITS.fullmatch(block[148:156])
    if not stored or int(stored[1] or b"0", 8) != sum(block) - sum(block[148:156]) + 8 * 32:
        kind = next((name for magic, name in _COMPRESSED.items() if offset == 0 and block.startswith(magic)), None)
        if kind:
            raise ValueError(f"is compressed with {kind}; decompress it first, shards are read by position")
        raise ValueError(f"is damaged or no tar: the header at byte {offset} has a wrong checksum")


def walk(file: BinaryIO) -> Iterator[Member]:
    """Yield the regular files of the tar `file`, in order. Raises ValueError for what is no whole plain tar."""
    end, offset, extended = file.seek(0, os.SEEK_END), 0, _Extended()
    while True:
        file.seek(offset)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise ValueError(f"is cut short at byte {offset + len(block)}: no end-of-archive mark")
        if not block.strip(b"\0"):
            return _verify_end(file, offset)
        _verify_checksum(block, offset)
        kind, data = block[156:157], offset + BLOCK
        try:
            size = header_number(block[124:136])
            if kind in _EXTENDED:
                extended.read(kind, _content(file, size))
            name = extended.path or header_name(block)
        except ValueError as error:
            raise ValueError(f"{error} (header at byte {offset})") from None
        if kind in _EXTENDED:
            offset = data + -(-size // BLOCK) * BLOCK
            continue
        size = extended.size if extended.size >= 0 else size
        if kind in _REFUSED or kind == b"S" or extended.sparse:
            what = _REFUSED.get(kind, "a sparse file")
            raise ValueError(
                f"holds {what} ({name!r}); write the shard with plain files (tar --dereference, without --sparse)"
            )
        if data + size > end and kind != b"5":
            raise ValueError(f"is cut short: {name!r} ends at byte {data + size}, after the file")
        if kind in (b"0", b"\0", b"7"):
            yield Member(name, data, size, zlib.crc32(block))
        offset = data if kind == b"5" else data + -(-size // BLOCK) * BLOCK  # of a folder it says nothing
        extended = _Extended()
