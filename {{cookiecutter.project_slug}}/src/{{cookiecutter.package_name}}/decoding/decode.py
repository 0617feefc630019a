"""Bytes -> pixels and numbers: one sample at a time, in any thread (OpenCV releases the interpreter lock).

Only JPEG, PNG and WebP are decoded, recognised by their first bytes and not by their names. OpenCV turns EXIF
orientation, grayscale, palette and alpha images into upright RGB.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 27))  # 134 megapixels: a bomb fails instead of filling RAM
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # what is damaged is told in our own words
import cv2

cv2.setNumThreads(0)  # the loader's threads are the parallelism

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp")
Pixels = NDArray[np.uint8]


class DecodeError(Exception):
    """A sample's bytes are no picture or no target: the row is masked and a line goes to `skipped/`."""


def decode_image(data: bytes) -> Pixels:
    """Decode a JPEG, PNG or WebP file into RGB, uint8 (height, width, 3). Raises DecodeError."""
    if data[:3] == b"\xff\xd8\xff":
        if data.rfind(b"\xff\xd9", -4096) < 0:  # the decoder would fill the missing rows with gray
            raise DecodeError("the JPEG is cut short")
    elif data[:8] != b"\x89PNG\r\n\x1a\n" and not (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        raise DecodeError("is no JPEG, PNG or WebP image")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise DecodeError(f"cannot be decoded: {' '.join(str(error).split())[:200]}") from None
    if image is None:
        raise DecodeError("cannot be decoded: damaged")
    return image  # type: ignore[return-value]


def target_decoder(task: str, targets: int) -> tuple[tuple[str, ...], Callable[[bytes], int | NDArray[np.float32]]]:
    """The fields that may hold the target of `task`, and a function from their bytes to the target.

    `single_label` gives a class number, the others float32 (targets,): 0 or 1 for each class, or the numbers.
    """
    if task == "single_label":

        def label(data: bytes) -> int:
            try:
                number = int(data)
            except ValueError:
                raise DecodeError(f"its class {data[:40]!r} is no number") from None
            if not 0 <= number < targets:
                raise DecodeError(f"its class {number} is not in 0..{targets - 1}")
            return number

        return ("cls",), label

    def numbers(data: bytes) -> NDArray[np.float32]:
        try:
            content = json.loads(data)
            if task == "regression":
                values = np.array(content["targets"], np.float32)
            else:
                values = np.zeros(targets, np.float32)
                values[np.array(content["labels"], np.int64)] = 1
                if min(content["labels"], default=0) < 0:
                    raise IndexError("a class number is negative")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DecodeError(f"its target cannot be read ({error})") from None
        if values.shape != (targets,) or not np.isfinite(values).all():
            raise DecodeError(f"its target is not {targets} finite numbers")
        return values

    return ("json",), numbers


@dataclass(frozen=True)
class Crop:
    """Cut a square of `size` pixels out of an image.

    In training: a random box whose share of the image lies in `scale` and whose width / height lies in `ratio`
    (torchvision's RandomResizedCrop: ten tries, then the largest centred box), mirrored with probability `flip`. Else
    the centred square of `center` times the shorter side.
    """

    size: int
    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    center: float = 0.875
    tries: int = 10

    @property
    def draws(self) -> int:
        """Random numbers that one training crop takes."""
        return 1 + 4 * self.tries

    def box(self, height: int, width: int, draws: NDArray[np.float64] | None) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the box, chosen by `draws` in [0, 1); None for the centred square."""
        if draws is None:
            side = max(1, round(self.center * min(height, width)))
            return (height - side) // 2, (width - side) // 2, side, side
        low, high = self.scale
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for first in range(1, self.draws, 4):
            scale, ratio, y, x = draws[first : first + 4].tolist()
            area = (low + scale * (high - low)) * height * width
            aspect = math.exp(log_low + ratio * (log_high - log_low))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
        h, w = min(height, round(width / self.ratio[0])), min(width, round(height * self.ratio[1]))
        return (height - h) // 2, (width - w) // 2, h, w

    def __call__(self, image: Pixels, draws: NDArray[np.float64] | None, out: Pixels) -> None:
        """Write the crop of `image` (H, W, 3) into `out` (size, size, 3).

        Linear interpolation up to a reduction of 1.25, area averaging beyond: the pair nearest to an antialiased
        filter at its cost (see docs/performance.md of Lightning Shards).
        """
        top, left, h, w = self.box(image.shape[0], image.shape[1], draws)
        region = image[top : top + h, left : left + w]
        filter_ = cv2.INTER_AREA if max(h, w) > 1.25 * self.size else cv2.INTER_LINEAR
        if draws is not None and draws[0] < self.flip:
            cv2.flip(cv2.resize(region, (self.size, self.size), interpolation=filter_), 1, dst=out)
        else:
            cv2.resize(region, (self.size, self.size), dst=out, interpolation=filter_)
