"""From the bytes of an image or a mask to the bytes that a shard stores. Runs in `pack`'s worker processes.

What a file is, its first bytes say, not its name. Every image is decoded once, so that damage is found before
training. Images larger than `short_side` are made smaller (as the loader does, aspect kept) and stored as JPEG.
Smaller ones keep their bytes, unless readers could differ about them: an orientation tag, CMYK, a palette,
transparency or 16 bits make them upright 8-bit gray or RGB, as PNG where they were PNG, else as JPEG.
Transparency is dropped. A mask gets the size that its image got, without a class that it did not have.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from ..data.crop import resize, resize_nearest
from ..data.decode import Pixels, check_mask_size, decode_mask, refusal, scratch
from ..data.image_header import MAX_PIXELS, Frame, has_end, image_format, is_turned, read_frame
from ..data.png import without_bulk

_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


class Encoded(NamedTuple):
    """An image as it is stored: its format (`jpg`, `png` or `webp`), its bytes, (height, width) before and now."""

    kind: str
    data: bytes
    given: tuple[int, int]
    stored: tuple[int, int]


def _header(kind: str, data: bytes, frame: Frame | None) -> tuple[int, int, bool]:
    """Height, width (0 where unknown) and whether the pixels are upright 8-bit gray or three colours."""
    if frame:
        return frame.height, frame.width, frame.components in (1, 3) and frame.bits == 8 and not frame.turned
    if kind == "png":
        plain = data[24:26] in (b"\x08\x00", b"\x08\x02") and not is_turned(data)  # bit depth, colour type
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"), plain
    return 0, 0, kind == "webp" and not is_turned(data)


def _decode(data: bytes, frame: Frame | None, by: int) -> Pixels:
    """BGR, uint8 (H, W, 3), or gray (H, W), upright, at 1/`by` of its size. Raises ValueError."""
    if frame:  # of an upright JPEG in gray or colour; what the decoder warns of, OpenCV tries too
        shape = (-(-frame.height // by), -(-frame.width // by), frame.components)
        wanted = {"min_height": shape[0], "min_width": shape[1]} if by > 1 else {}
        colours = "GRAY" if frame.components == 1 else "BGR"
        with suppress(ValueError):
            image: Pixels = simplejpeg.decode_jpeg(data, colours, buffer=scratch("decoded", shape), **wanted)
            if image.shape == shape:
                return image if frame.components == 3 else image[:, :, 0]
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | _REDUCED[by])  # turns it upright
    except cv2.error as error:
        raise ValueError(refusal(error)) from None
    if found is None:
        raise ValueError("is damaged or cut short")
    return found  # type: ignore[return-value]


def encode(data: bytes, short_side: int | None, quality: int) -> Encoded:
    """The image file `data` as it is stored; `short_side` None keeps every byte.

    Raises ValueError for what is damaged or no image.
    """
    kind = image_format(data)
    if kind is None:
        raise ValueError("is no JPEG, PNG or WebP image" if data else "is empty")
    frame = read_frame(data) if kind == "jpg" else None
    if kind == "jpg" and not has_end(data, frame):
        raise ValueError("is damaged or cut short")
    given = data
    if kind == "png":
        data = without_bulk(data)
    height, width, plain = _header(kind, data, frame)
    if height * width > MAX_PIXELS:
        raise ValueError(f"has {width} x {height} pixels, more than {MAX_PIXELS:,} are not decoded")
    # a large JPEG is decoded at 1/2, 1/4 or 1/8, several times as fast, but never below twice the size wanted
    most = min(height, width) // (2 * short_side) if short_side and kind == "jpg" else 1
    by = next((by for by in (8, 4, 2) if by <= most), 1)
    image = _decode(data, frame if plain else None, by)
    size = found = _size(image)
    if by > 1:
        size = (height, width) if (height > width) == (found[0] > found[1]) else (width, height)  # turned upright
    smaller = short_side is not None and min(found) > short_side
    if short_side is None:
        return Encoded(kind, given, size, size)
    if plain and not smaller:
        return Encoded(kind, data, size, size)
    if smaller:
        scale = short_side / min(found)
        made = np.empty((round(found[0] * scale), round(found[1] * scale), *image.shape[2:]), np.uint8)
        resize(image, made)
        image = made
    if kind == "png" and not smaller:
        return Encoded("png", cv2.imencode(".png", image)[1].tobytes(), size, size)
    stored = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return Encoded("jpg", stored, size, _size(image))


def _size(image: Pixels) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def encode_mask(data: bytes, image: Encoded) -> bytes:
    """The mask of an image. Raises DecodeError where it is none, or has another size."""
    mask = decode_mask(data)
    check_mask_size(mask.shape, image.given)
    if image.stored == image.given:
        return data
    made = np.empty(image.stored, np.uint8)
    resize_nearest(mask, made)
    return cv2.imencode(".png", made)[1].tobytes()
