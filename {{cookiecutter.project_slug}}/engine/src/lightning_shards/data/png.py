"""PNGs, unpacked by libdeflate in less than half the time that OpenCV's zlib takes (W3C PNG, RFC 1951)."""

from __future__ import annotations

import struct

import deflate

MOST_BYTES = 16 << 20  # of unpacked pixels; larger images are rare, and copies of them costly
MOST_CHUNKS = 4096
_HEADER = struct.Struct(">4sIIBBBBB")  # IHDR: kind, width, height, bits, colour type, compression, filter, interlacing
_CHUNK = struct.Struct(">I4s")
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type
_BULK = 1 << 20  # bytes of a chunk that decoders refuse to hold, or hold in vain
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
