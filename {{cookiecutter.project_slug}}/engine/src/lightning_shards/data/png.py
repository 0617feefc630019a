"""PNGs, unpacked by libdeflate in less than half the time that OpenCV's zlib takes (W3C PNG, RFC 1951)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import cv2
import deflate
import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 16 << 20  # of unpacked pixels; larger images are rare, and copies of them costly
MOST_CHUNKS = 4096
_HEADER = struct.Struct(">4sIIBBBBB")  # IHDR: kind, width, height, bits, colour type, compression, filter, interlacing
_CHUNK = struct.Struct(">I4s")
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type
_BULK = 1 << 20  # bytes of a chunk that decoders refuse to hold, or hold in vain
_SUB, _UP = 1, 2  # filters: a byte is the difference from the one on the left, or above
_MOST_SUMMED = 8 << 20  # numbers of which a sum fits 31 bits
_BLOCK = 0xFFFF  # bytes of a stored block at most
_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk


def without_bulk(data: bytes) -> bytes:
    """The same PNG without long chunks that have nothing to do with its pixels, such as a program's text or a film.

    Decoders give up at such a chunk. Frames of an animation and EXIF, which may say how the image is turned, stay.
    """
    if len(data) < _BULK:
        return data
    at, parts, kept = 8, [], 0
    while at + 12 <= len(data):
        length, kind = _CHUNK.unpack_from(data, at)
        end = at + 12 + length
        if length > _BULK and kind[0] & 0x20 and kind not in (b"eXIf", b"fdAT"):  # the bit means: not needed
            parts.append(data[kept:at])
            kept = end
        at = end
    return b"".join((*parts, data[kept:])) if parts else data


@dataclass(frozen=True)
class Inflated:
    """A PNG's unpacked scan lines, each behind the number of its filter, and where its IDAT chunks lie in the file."""

    lines: memoryview
    height: int
    chunks: slice

    def stored(self, data: bytes) -> bytes:
        """The same PNG with its pixels stored rather than compressed: a decoder only has to undo the filters."""
        return b"".join((data[: self.chunks.start], _stored(self.lines), data[self.chunks.stop :]))

    def gray(self, data: bytes, first: int, last: int) -> tuple[bytes, int]:
        """Rows `first` to `last` of a gray or palette PNG as a gray one of its numbers, stored; and its first row.

        That may lie above: most filters need the row above.
        """
        first = self._begin(first)
        size = len(self.lines) // self.height
        header = b"IHDR" + data[16:20] + (last - first).to_bytes(4, "big") + data[24:25] + b"\0\0\0\0"
        check = deflate.crc32(header).to_bytes(4, "big")
        return b"".join((data[:12], header, check, _stored(self.lines[first * size : last * size]), _END)), first

    def numbers(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8] | None:
        """What is stored of one byte a pixel in a box, uint8 (height, width), in a third of the time of a decoder.

        None where filters depend on two neighbours: that is left to a decoder.
        """
        first, last, right = self._begin(top), top + height, left + width
        lines = self._rows[first:last]
        filters, pixels = lines[:, 0], lines[:, 1 : 1 + right]
        most, least = int(filters.max()), int(filters.min())
        if most > _UP:
            return None
        if least == most == _SUB:
            pixels = _sums(pixels)
        elif most:
            pixels, summed = pixels.copy(), filters == _SUB
            if summed.any():
                pixels[summed] = _sums(pixels[summed])
            for row in np.flatnonzero(filters == _UP).tolist():
                if row:
                    pixels[row] += pixels[row - 1]
        return pixels[top - first :, left:]

    @property
    def _rows(self) -> NDArray[np.uint8]:
        return np.frombuffer(self.lines, np.uint8).reshape(self.height, -1)

    def _begin(self, row: int) -> int:
        """The nearest row up from `row` whose filter needs none above."""
        filters = self._rows[: row + 1, 0]
        return row if filters[-1] <= _SUB else int(np.flatnonzero(filters <= _SUB)[-1:].sum())


def _stored(lines: memoryview) -> bytes:
    """A chunk with scan lines that are not compressed."""
    parts: list[bytes | memoryview] = [b"IDAT\x78\x01"]
    for start in range(0, len(lines), _BLOCK):
        block = lines[start : start + _BLOCK]
        parts += [struct.pack("<BHH", start + _BLOCK >= len(lines), len(block), len(block) ^ 0xFFFF), block]
    parts.append(deflate.adler32(lines).to_bytes(4, "big"))
    chunk = b"".join(parts)
    return b"".join(((len(chunk) - 4).to_bytes(4, "big"), chunk, deflate.crc32(chunk).to_bytes(4, "big")))


def _sums(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each number plus all on its left, modulo 256: OpenCV sums up the rows above, too, which are taken off again."""
    made, step = [], max(1, _MOST_SUMMED // rows.shape[1])
    for first in range(0, len(rows), step):
        sums = cv2.integral(rows[first : first + step]).astype(np.uint8)
        made.append(sums[1:, 1:] - sums[:-1, 1:])
    return made[0] if len(made) == 1 else np.concatenate(made)


def inflate(data: bytes) -> Inflated | None:
    """Unpack the scan lines. None for what is left to a decoder: damaged pixels, interlaced or large images."""
    if len(data) < 8 + 4 + _HEADER.size:
        return None
    kind, width, height, bits, colour, _, _, interlaced = _HEADER.unpack_from(data, 12)
    size = height * (1 + (width * bits * _SAMPLES.get(colour, 0) + 7) // 8)
    if kind != b"IHDR" or interlaced or not 0 < size <= MOST_BYTES:
        return None
    at, first, parts = 8, 0, []
    for _ in range(MOST_CHUNKS):
        length, kind = _CHUNK.unpack_from(data, at) if at + 12 <= len(data) else (0, b"")
        end = at + 8 + length
        if kind == b"IDAT":
            if data[end : end + 4] != deflate.crc32(data[at + 4 : end]).to_bytes(4, "big"):
                return None
            first = first or at
            parts.append(data[at + 8 : end])
        elif parts or not kind:
            break
        at = end + 4
    try:
        lines = memoryview(deflate.zlib_decompress(b"".join(parts), size))  # checks their sum
    except deflate.DeflateError:
        return None
    return Inflated(lines, height, slice(first, at)) if len(lines) == size else None


def unpack(data: bytes) -> bytes:
    """The same PNG with its pixels stored; `data` itself where that is left to the decoder."""
    found = inflate(data)
    return found.stored(data) if found else data


def as_gray(data: bytes) -> bytes:
    """The same PNG as gray: the numbers of its palette, or its gray values, and no transparency, colour or gamma.

    `data` itself where its chunks cannot be followed; a decoder says what is wrong then.
    """
    header = data[12:25] + b"\0" + data[26:29]
    parts = [data[:12], header, deflate.crc32(header).to_bytes(4, "big")]
    at = 33
    while at + 12 <= len(data):
        length, kind = _CHUNK.unpack_from(data, at)
        end = at + 12 + length
        if kind in (b"IDAT", b"IEND"):
            parts.append(data[at:end])
        if kind == b"IEND" or end > len(data):
            break
        at = end
    return b"".join(parts)
