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
        parts: list[bytes | memoryview] = [b"IDAT\x78\x01"]
        for start in range(0, len(self.lines), _BLOCK):
            block = self.lines[start : start + _BLOCK]
            last = start + _BLOCK >= len(self.lines)
            parts += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
        parts.append(deflate.adler32(self.lines).to_bytes(4, "big"))
        chunk = b"".join(parts)
        length, check = (len(chunk) - 4).to_bytes(4, "big"), deflate.crc32(chunk).to_bytes(4, "big")
        return b"".join((data[: self.chunks.start], length, chunk, check, data[self.chunks.stop :]))

    def numbers(self) -> NDArray[np.uint8] | None:
        """What is stored of one byte a pixel, uint8 (height, width), in a third less time than a decoder takes.

        None where filters depend on two neighbours: that is left to a decoder.
        """
        lines = np.frombuffer(self.lines, np.uint8).reshape(self.height, -1)
        filters, pixels = lines[:, 0], lines[:, 1:].copy()
        if not pixels.size or filters.max() > _UP:
            return None
        left = filters == _SUB
        if left.any():
            pixels[left] = _sums(pixels[left])
        for row in np.flatnonzero(filters == _UP).tolist():
            if row:
                pixels[row] += pixels[row - 1]
        return pixels


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
