"""Bytes -> pixels and numbers: one sample at a time, in any thread (the decoders release the interpreter lock).

Only JPEG, PNG and WebP are decoded, recognised by their first bytes and not by their names. simplejpeg (libjpeg-turbo)
decodes JPEGs into memory that each thread keeps, for fresh memory costs as much as a good part of the decoding, and no
more rows than are wanted. OpenCV has the rest: it turns EXIF orientation, CMYK, palette and alpha into upright RGB;
libdeflate unpacks PNGs for it.
"""

from __future__ import annotations

import math
import threading

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from .file_names import IMAGE_FIELDS as IMAGE_FIELDS
from .image_header import MAX_PIXELS, Frame, has_end, image_format, is_turned, read_frame
from .png import as_gray, inflate, unpack, without_bulk

cv2.setNumThreads(0)  # the loader's threads are the parallelism

KEPT_BYTES = 16 << 20  # of a thread's memory for one purpose
EDGE = 8  # rows beyond those wanted: chroma is interpolated from the rows around
MARK = [1, 254, 1]  # a last pixel that nothing was written over; as an image's own it only makes OpenCV try
Pixels = NDArray[np.uint8]


class DecodeError(Exception):
    """A sample's bytes are no picture or no target: the row is masked and a line goes to `skipped/`."""

    member = 0  # which of the fields it is about
    transform = False  # whether a transform raised it


class Unusable(DecodeError):
    """A mask or boxes that are whole, and of no use, such as a mask of another size than its image."""


_kept = threading.local()


def scratch(name: str, shape: tuple[int, ...]) -> Pixels:
    """An array of this thread, uint8, for use until it asks for `name` again; large ones are not kept."""
    size = math.prod(shape)
    array: Pixels | None = getattr(_kept, name, None)
    if array is None or len(array) < size:
        array = np.empty(size, np.uint8)
        if size <= KEPT_BYTES:
            setattr(_kept, name, array)
    return array[:size].reshape(shape)


def jpeg_frame(data: bytes) -> Frame | None:
    """The frame of a JPEG file that `decode_jpeg` can decode; None for an image that is left to OpenCV.

    Raises DecodeError for what is cut short, too large, or no image.
    """
    kind = image_format(data)
    if kind is None:
        raise DecodeError("is no JPEG, PNG or WebP image")
    if kind != "jpg":
        return None
    frame = read_frame(data)
    if not has_end(data, frame):  # the decoder would fill the missing rows with gray
        raise DecodeError("the JPEG is cut short")
    if not frame or frame.turned or frame.components not in (1, 3) or frame.process > 2 or frame.bits != 8:
        return None
    if frame.height * frame.width > MAX_PIXELS:
        raise DecodeError(f"has {frame.width} x {frame.height} pixels, more than {MAX_PIXELS:,} are not decoded")
    return frame if frame.height and frame.width else None


def decode_jpeg(data: bytes, frame: Frame, by: int, rows: int, keep: bool) -> Pixels | None:
    """Decode the first `rows` of a JPEG's rows, or a few more, at 1/`by` (1, 2, 4 or 8) of its size.

    With `by` above 1 the image must have 8 x `by` pixels on each side: its scale is chosen by the size that comes out.
    Returns RGB, uint8 (H, W, 3); with `keep` false it is valid until this thread decodes another. None where OpenCV
    must try, which is less strict.
    """
    height = frame.height
    if frame.one_scan and rows + EDGE * by < height:  # a smaller height in the header ends the decoding there
        height = rows + EDGE * by
        data = b"".join((data[: frame.at], height.to_bytes(2, "big"), data[frame.at + 2 :]))
    shape = (-(-height // by), -(-frame.width // by), 3)
    wanted = {"min_height": shape[0], "min_width": shape[1]} if by > 1 else {}
    buffer = np.empty(shape, np.uint8) if keep else scratch("decoded", shape)
    buffer[-1, -1] = MARK  # not strict, an error after a warning goes unsaid and leaves the rows behind it as they were
    try:  # what is left behind the last row is worth a warning; in several scans one may come before any row is there
        image: Pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=buffer, strict=not frame.one_scan, **wanted)
    except ValueError:
        return None
    return image if image.shape == shape and image[-1, -1].tolist() != MARK else None


def refusal(error: cv2.error) -> str:
    """What OpenCV refuses, without the place in its code."""
    if "CV_IO_MAX_IMAGE" in error.err:
        return f"has more than {MAX_PIXELS:,} pixels, or a side of more than {1 << 20:,}: such are not decoded"
    return f"cannot be decoded ({' '.join(error.err.split())[:200]})"


def decode_other(data: bytes) -> Pixels:
    """Decode any image by OpenCV into RGB, uint8 (height, width, 3). Raises DecodeError."""
    if image_format(data) == "png":
        data = unpack(without_bulk(data))
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise DecodeError(refusal(error)) from None
    if image is None:
        raise DecodeError("cannot be decoded: damaged")
    return image  # type: ignore[return-value]


def decode_image(data: bytes) -> Pixels:
    """Decode a JPEG, PNG or WebP file into RGB, uint8 (height, width, 3). Raises DecodeError."""
    frame = jpeg_frame(data)
    image = decode_jpeg(data, frame, 1, frame.height, keep=True) if frame else None
    return decode_other(data) if image is None else image


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an image once it is decoded, from its header where that tells. Raises DecodeError."""
    if frame := jpeg_frame(data):
        return frame.height, frame.width
    if image_format(data) == "png" and not is_turned(data):
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    height, width, _ = decode_image(data).shape
    return height, width


def check_mask_size(mask: tuple[int, ...], image: tuple[int, ...]) -> None:
    """Raise Unusable where a mask is not of its image's (height, width)."""
    if mask[:2] != image[:2]:
        raise Unusable(f"has {mask[1]} x {mask[0]} pixels, the image {image[1]} x {image[0]}")


def mask_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a mask. Raises Unusable for another kind of image, DecodeError for what is none."""
    kind = image_format(data)
    if kind != "png" or len(data) < 33:
        error = Unusable if kind not in (None, "png") else DecodeError
        raise error("is no PNG, which a mask must be: others are lossy, or mix its classes with colours")
    bits, colour = data[24], data[25]
    if bits > 8 or colour not in (0, 3):
        raise Unusable("is in colour or has 16 bits: a mask must be a gray or palette PNG of 8 bits at most")
    height, width = int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if height * width > MAX_PIXELS:
        raise DecodeError(f"has {width} x {height} pixels, more than {MAX_PIXELS:,} are not decoded")
    return height, width


def decode_mask(data: bytes, box: tuple[int, int, int, int] | None = None) -> Pixels:
    """Decode a gray or palette PNG of 8 bits at most into its stored values, uint8 (height, width). Raises DecodeError.

    No colour plays a part: of a palette the numbers count, of 1, 2 or 4 bits too. Where only the `box` (top, left,
    height, width) is wanted, no more than the rows that it takes is decoded.
    """
    height, width = mask_size(data)
    top, left, h, w = box or (0, 0, height, width)
    found, bits, above = inflate(data), data[24], 0
    if found and bits == 8 and (numbers := found.numbers(top, left, h, w)) is not None:
        return numbers
    try:
        gray, above = found.gray(data, top, top + h) if found else (as_gray(data), 0)
        mask = cv2.imdecode(np.frombuffer(gray, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error as error:
        raise DecodeError(refusal(error)) from None
    if mask is None or mask.shape != (top + h - above if found else height, width):
        raise DecodeError("cannot be decoded: damaged")
    mask = mask[top - above :][:h, left : left + w]
    return mask if bits == 8 else mask // np.uint8(255 // ((1 << bits) - 1))  # type: ignore[return-value]
