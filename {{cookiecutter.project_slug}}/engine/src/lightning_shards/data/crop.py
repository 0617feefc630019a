"""Bytes of an image file -> the square that the model sees: chooses a box, decodes what it needs of it, and resizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .decode import DecodeError, Pixels, check_mask_size, decode_jpeg, decode_other, jpeg_frame, scratch

# reductions up to which linear interpolation will do: as it is, of pixels that are blurred once, or twice
LINEAR, TWICE, BLURRED = 1.25, 2.2, 3.0
WHOLE = 96  # pixels of a side up to which a JPEG is decoded at its own size, whoever keeps it
CROP_SETTINGS = {"crop_scale": "scale", "crop_ratio": "ratio", "flip": "flip", "eval_crop": "center"}  # parts of a Crop


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

    def __call__(self, data: bytes, draws: NDArray[np.float64] | None, out: Pixels) -> None:
        """Write the crop of the image file `data` into `out`, uint8 (size, size, 3). Raises DecodeError."""
        View(self, draws).image(data, out)


class View:
    """What the model sees of one sample: the same box, flip and size for all that lies in the image's plane.

    Attributes:
        crop: how the box is chosen.
        mirrored: whether left and right change places.
        size: (height, width) of the sample's first image; None until it is known.
        box: (top, left, height, width) in that image.
        whole: after `image`, all of that image, where `keeps` asks for it and there is no more than WHOLE of it.
    """

    __slots__ = ("box", "crop", "draws", "keeps", "mirrored", "size", "whole")

    def __init__(self, crop: Crop, draws: NDArray[np.float64] | None, keeps: bool = False) -> None:
        self.crop, self.draws, self.keeps = crop, draws, keeps
        self.whole: Pixels | None = None
        self.mirrored = draws is not None and bool(draws[0] < crop.flip)
        self.size: tuple[int, int] | None = None
        self.box = (0, 0, 0, 0)

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        if self.size is None:
            self.size, self.box = (height, width), self.crop.box(height, width, self.draws)
        return self.box if self.size == (height, width) else self.crop.box(height, width, self.draws)

    def image(self, data: bytes, out: Pixels) -> None:
        """Write what is seen of the image file `data` into `out`, uint8 (size, size, 3). Raises DecodeError.

        A JPEG is decoded at 1/2, 1/4 or 1/8 where no side of the box gets smaller than `out` by that; its edges are
        rounded accordingly.
        """
        image, by, first = None, 1, self.size is None
        if frame := jpeg_frame(data):
            box = self._box(frame.height, frame.width)
            if max(frame.height, frame.width) > WHOLE:
                by = next((by for by in (8, 4, 2) if by * self.crop.size <= min(box[2:])), 1)
                image = decode_jpeg(data, frame, by, box[0] + box[2], keep=False)
            else:
                image = decode_jpeg(data, frame, 1, frame.height if self.keeps else box[0] + box[2], keep=False)
        if image is None:
            image, by = decode_other(data), 1
            self.size = None if first else self.size
            box = self._box(image.shape[0], image.shape[1])
        if self.keeps and max(image.shape[:2]) <= WHOLE:
            self.whole = image
        top, left, h, w = box
        if by > 1:
            top, left, bottom, right = ((edge + by // 2) // by for edge in (top, left, top + h, left + w))
            h, w = bottom - top, right - left
            if first:  # masks and boxes follow what is seen, to the pixel
                self.box = top * by, left * by, h * by, w * by
        self._resize(image[top : top + h, left : left + w], out, resize)

    def cut(self, pixels: NDArray[Any], out: NDArray[Any], nearest: bool = False) -> None:
        """Write what is seen of `pixels` (H, W) or (H, W, C), as large as the image, into `out`.

        With `nearest` each pixel of `out` takes the value of one of them. Raises DecodeError for another size.
        """
        top, left, h, w = self.box_in(*pixels.shape[:2])
        self.fit(pixels[top : top + h, left : left + w], out, nearest)

    def box_in(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) of what is seen of something as large as the image.

        Raises DecodeError for another size.
        """
        box = self._box(height, width)
        check_mask_size((height, width), self.size or (height, width))
        return box

    def fit(self, region: NDArray[Any], out: NDArray[Any], nearest: bool = False) -> None:
        """Write the `region` that lies in the box into `out`, as `cut` does."""
        self._resize(region, out, resize_nearest if nearest else resize)

    def boxes(self, corners: NDArray[np.float32]) -> NDArray[np.float32]:
        """Left, top, right and bottom (n, 4) in the image -> in the square, also beyond its edges.

        Raises DecodeError where the sample has no image.
        """
        if self.size is None:
            raise DecodeError("has boxes but no image")
        top, left, h, w = self.box
        found = (corners - (left, top, left, top)) * (self.crop.size / np.array([w, h, w, h]))
        if self.mirrored:
            found[:, [0, 2]] = self.crop.size - found[:, [2, 0]]
        return found.astype(np.float32)

    def _resize(self, region: NDArray[Any], out: NDArray[Any], how: Callable[[Any, Any], None]) -> None:
        if not self.mirrored:
            return how(region, out)
        made = scratch("mirrored", out.shape) if out.dtype == np.uint8 else np.empty_like(out)
        how(region, made)
        cv2.flip(made, 1, dst=out)


def resize(region: NDArray[Any], out: NDArray[Any]) -> None:
    """Resize `region` (H, W, 3) or (H, W) into `out`, close to an antialiased bilinear filter, several times as fast.

    That filter is a triangle of half the width r, the reduction; linear interpolation is one of half the width 1. After
    a blur whose variance makes up for the difference, (r^2 - 1) / 6, it is nearly the same, and exactly so at r = 2.
    """
    height, width = out.shape[:2]
    reduced_down, reduced_across = region.shape[0] / height, region.shape[1] / width
    most = reduced_down if reduced_down > reduced_across else reduced_across
    interpolation = cv2.INTER_AREA if most > BLURRED else cv2.INTER_LINEAR
    if LINEAR < most <= BLURRED:
        down, across = _blur(reduced_down), _blur(reduced_across)
        blurred = scratch("blurred", region.shape) if region.dtype == np.uint8 else None
        region = cv2.sepFilter2D(region, -1, across, down, dst=blurred, borderType=cv2.BORDER_REPLICATE)
    cv2.resize(region, (width, height), dst=out, interpolation=interpolation)


def resize_nearest(region: NDArray[Any], out: NDArray[Any]) -> None:
    """Each pixel's centre takes what lies there, as linear interpolation has it."""
    cv2.resize(region, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_NEAREST_EXACT)


def _blur(reduction: float) -> NDArray[np.float32]:
    """Weights of 3 pixels, or 5 where 3 would let the finest patterns through."""
    variance = max(0.0, reduction**2 - 1) / 6
    times = 1 if reduction <= TWICE else 2
    weight = variance / times / 2
    once = np.array([weight, 1 - 2 * weight, weight], np.float32)
    return once if times == 1 else np.convolve(once, once)
