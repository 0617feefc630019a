"""PNGs, unpacked by libdeflate in less than half the time that OpenCV's zlib takes (W3C PNG, RFC 1951)."""

from __future__ import annotations

import struct

import deflate

MOST_BYTES = 16 << 20  # of unpacked pixels; larger images are rare, and copies of them costly
MOST_CHUNKS = 4096
_HEADER = struct.Struct(">4sIIBBBBB")  # IHDR: kind, width, height, bits, colour type, compression, filter, interlacing
_CHUNK = struct.Struct(">I4s")
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type
_BLOCK = 0xFFFF  # bytes of a stored block at most


def unpack(data: bytes) -> bytes:
    """The same PNG with its pixels stored rather than compressed, so that a decoder only has to undo the filters.

    `data` itself where that is not possible, and left to the decoder: damaged pixels, interlaced or large images.
    """
    if len(data) < 8 + 4 + _HEADER.size:
        return data
    kind, width, height, bits, colour, _, _, interlaced = _HEADER.unpack_from(data, 12)
    size = height * (1 + (width * bits * _SAMPLES.get(colour, 0) + 7) // 8)
    if kind != b"IHDR" or interlaced or size > MOST_BYTES:
        return data
    at, start, parts = 8, 0, []
    for _ in range(MOST_CHUNKS):
        length, kind = _CHUNK.unpack_from(data, at) if at + 12 <= len(data) else (0, b"")
        end = at + 8 + length
        if kind == b"IDAT":
            if data[end : end + 4] != deflate.crc32(data[at + 4 : end]).to_bytes(4, "big"):
                return data
            start = start or at
            parts.append(data[at + 8 : end])
        elif parts or not kind:
            break
        at = end + 4
    try:
        pixels = memoryview(deflate.zlib_decompress(b"".join(parts), size))  # checks their sum
    except deflate.DeflateError:
        return data
    if len(pixels) != size:
        return data
    stored: list[bytes | memoryview] = [b"IDAT\x78\x01"]
    for first in range(0, size, _BLOCK):
        block = pixels[first : first + _BLOCK]
        stored += [struct.pack("<BHH", first + _BLOCK >= size, len(block), len(block) ^ 0xFFFF), block]
    stored.append(deflate.adler32(pixels).to_bytes(4, "big"))
    chunk = b"".join(stored)
    length, check = len(chunk) - 4, deflate.crc32(chunk)
    return b"".join((data[:start], length.to_bytes(4, "big"), chunk, check.to_bytes(4, "big"), data[at:]))
