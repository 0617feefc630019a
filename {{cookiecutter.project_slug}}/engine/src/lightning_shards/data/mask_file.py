"""Masks as PNGs that say the classes to a program and show them in colours to a person; and colours for boxes."""

from __future__ import annotations

import colorsys
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray

PALETTE_END = 33 + 12 + 3 * 256  # of what `palette_png` writes: signature and header, then the palette's chunk


def palette() -> NDArray[np.uint8]:
    """The colours of the classes 0 to 255, RGB, uint8 (256, 3): those of Pascal VOC (Everingham et al., 2010).

    A class's bits go by turns to red, green and blue, from the highest bit down.
    """
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = numbers >> 3 * place + channel & 1
            colours[:, channel] |= (bit << 7 - place).astype(np.uint8)
    return colours


def bright_colour(number: int) -> tuple[int, int, int]:
    """The colour of the boxes of a class, RGB: no darker than what it is drawn on, and far from those of its
    neighbours, whose hues lie a golden section apart."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75 - 0.3 * (number % 3 == 1), 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def palette_png(mask: NDArray[np.uint8]) -> bytes:
    """A mask (H, W) as a PNG whose stored numbers are the classes, and which shows them in their colours.

    OpenCV writes gray ones only: the palette is put in front of the pixels, and the header says so (W3C PNG, 11.2).
    """
    gray = cv2.imencode(".png", mask)[1].tobytes()
    header = gray[12:25] + b"\3" + gray[26:29]
    return b"".join((gray[:8], _chunk(header), _palette_chunk(), gray[33:]))


def has_our_palette(begin: bytes) -> bool:
    """Whether `palette_png` has written a file of which these are the first PALETTE_END bytes."""
    return begin[33:] == _palette_chunk()


def _palette_chunk() -> bytes:
    return _chunk(b"PLTE" + palette().tobytes())


def _chunk(content: bytes) -> bytes:
    """A chunk of a PNG, of its kind and data."""
    length, check = len(content) - 4, zlib.crc32(content)
    return length.to_bytes(4, "big") + content + check.to_bytes(4, "big")
