"""From the bytes of an image file to the bytes that a shard stores. Runs in `pack`'s worker processes.

What a file is, its first bytes say, not its name. Every image is decoded once, so that damage is found before
training. Images larger than `short_side` are made smaller (antialiased, aspect kept) and stored as JPEG.
Smaller ones keep their bytes, unless readers could differ about them: an orientation tag, CMYK, a palette,
transparency or 16 bits make them upright 8-bit gray or RGB, as PNG where they were PNG, else as JPEG.
Transparency is dropped.
"""

from __future__ import annotations

import cv2
import numpy as np

from ..shards.image import MAX_PIXELS, image_format, is_turned, read_frame

_REDUCED = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
}


def _header(kind: str, data: bytes) -> tuple[int, int, bool]:
    """Height, width (0 where unknown) and whether the pixels are upright 8-bit gray or three colours."""
    if kind == "png":
        plain = data[24:26] in (b"\x08\x00", b"\x08\x02") and not is_turned(data)  # bit depth, colour type
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"), plain
    if kind == "jpg" and (frame := read_frame(data)):
        return frame.height, frame.width, frame.components in (1, 3) and not frame.turned
    return 0, 0, kind == "webp" and not is_turned(data)


def encode(data: bytes, short_side: int | None, quality: int) -> tuple[str, bytes]:
    """Return the format (`jpg`, `png` or `webp`) and the bytes to store; `short_side` None keeps every byte.

    Raises ValueError for what is damaged or no image.
    """
    kind = image_format(data)
    if kind is None:
        raise ValueError("is no JPEG, PNG or WebP image" if data else "is empty")
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
    if short_side is None or (plain and not smaller):
        return kind, data
    if short_side is not None and smaller:
        scale = short_side / min(image.shape[:2])
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if kind == "png" and not smaller:
        return "png", cv2.imencode(".png", image)[1].tobytes()
    return "jpg", cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
