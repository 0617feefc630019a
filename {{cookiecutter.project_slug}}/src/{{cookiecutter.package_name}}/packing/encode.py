"""From the bytes of an image file to the bytes that a shard stores. Runs in `pack`'s worker processes.

What a file is, its first bytes say, not its name. Every image is decoded once, so that damage is found before
training. Images larger than `short_side` are made smaller (antialiased, aspect kept) and stored as JPEG.
Smaller ones keep their bytes, unless readers could differ about them: an orientation tag, CMYK, a palette,
transparency or 16 bits make them upright 8-bit gray or RGB, as PNG where they were PNG, else as JPEG.
Transparency is dropped.
"""

from __future__ import annotations

import os
import re

MAX_PIXELS = 2**27  # a bomb of 80,000 x 80,000 pixels must not take the machine's memory
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))  # OpenCV reads it when it is imported

import cv2  # noqa: E402
import numpy as np  # noqa: E402

_REDUCED = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
}
# EXIF tag 0x0112, a SHORT, value 2 to 8, in both byte orders: the image is stored turned or mirrored
_TURNED = re.compile(rb"\x01\x12\0\x03\0\0\0\x01\0[\x02-\x08]|\x12\x01\x03\0\x01\0\0\0[\x02-\x08]\0")


def _format(data: bytes) -> str:
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise ValueError("is no JPEG, PNG or WebP image" if data else "is empty")


def _header(kind: str, data: bytes) -> tuple[int, int, bool]:
    """Height, width (0 where unknown) and whether the pixels are 8-bit gray or three colours."""
    if kind == "png":
        plain = data[24:26] in (b"\x08\x00", b"\x08\x02")  # bit depth and colour type
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"), plain
    at = 2
    while kind == "jpg" and at + 9 < len(data) and data[at] == 0xFF:  # segments up to the frame header (T.81, B.2.2)
        if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):
            height, width = (
                int.from_bytes(data[at + 5 : at + 7], "big"),
                int.from_bytes(data[at + 7 : at + 9], "big"),
            )
            return height, width, data[at + 9] in (1, 3)
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0, True


def encode(data: bytes, short_side: int | None, quality: int) -> tuple[str, bytes]:
    """Return the format (`jpg`, `png` or `webp`) and the bytes to store; `short_side` None keeps every byte.

    Raises ValueError for what is damaged or no image.
    """
    kind = _format(data)
    height, width, plain = _header(kind, data)
    if height * width > MAX_PIXELS:
        raise ValueError(f"has {width} x {height} pixels, more than {MAX_PIXELS:,} are not decoded")
    # a large JPEG is decoded at 1/2, 1/4 or 1/8, several times as fast, but never below twice the size wanted
    reduced = next(
        (flag for by, flag in _REDUCED.items() if short_side and min(height, width) >= 2 * by * short_side), 0
    )
    flags = cv2.IMREAD_ANYCOLOR | (reduced if kind == "jpg" else 0)  # applies the orientation tag
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"cannot be decoded ({error.err})") from None
    if image is None:
        raise ValueError("is damaged or cut short")
    smaller = short_side is not None and min(image.shape[:2]) > short_side
    if short_side is None or not (smaller or not plain or _TURNED.search(data)):
        return kind, data
    if short_side is not None and smaller:
        scale = short_side / min(image.shape[:2])
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if kind == "png" and not smaller:
        return "png", cv2.imencode(".png", image)[1].tobytes()
    return "jpg", cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
