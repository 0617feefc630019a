"""Masks of whole images, as large as these are, by a network that looks at squares.

image -> squares that cover it, each as large as the one of a validation -> scores of each square's pixels
    -> resized to where the square lies, added where squares overlap -> the class with the highest sum
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .. import machine
from ..data.crop import Crop, resize
from ..data.decode import DecodeError, Pixels, decode_image
from ..data.fields import Image
from ..data.transform import Transform, apply
from .images import Images

Scores = Callable[[Pixels], NDArray[np.float32]]  # of squares (N, S, S, 3): (N, T, S, S)


class Cut(NamedTuple):
    """An image in squares."""

    number: int
    size: tuple[int, int]  # (height, width) of the image
    side: int  # of each square, in the image's pixels
    corners: list[tuple[int, int]]  # (top, left) of each
    squares: Pixels  # (N, S, S, 3), as the network sees them
    error: str  # why there are none; empty where there are


def corners(height: int, width: int, side: int) -> list[tuple[int, int]]:
    """(top, left) of squares of `side` that cover an image: as few as do, evenly apart."""

    def places(length: int) -> list[int]:
        count = math.ceil(length / side)
        return [round(place * (length - side) / max(1, count - 1)) for place in range(count)]

    return [(top, left) for top in places(height) for left in places(width)]


def masks(
    images: Images, crop: Crop, size: int, scores: Scores, transform: Transform | None
) -> Iterator[tuple[int, Pixels | None, str]]:
    """(number, mask, error) of all `images`, in their order; the mask is uint8 (height, width), None after an error.

    Args:
        crop: its `center` decides how large the squares are, as in a validation.
        size: squares that are looked at together.
        transform: changes each square, as a sample that has an image only.
    """
    waiting: list[Cut] = []
    for cut in _all_cut(images, crop, size, transform):
        waiting.append(cut)
        if sum(len(one.corners) for one in waiting) >= size:
            yield from _looked_at(waiting, size, scores)
            waiting = []
    yield from _looked_at(waiting, size, scores)


def _looked_at(cuts: Sequence[Cut], size: int, scores: Scores) -> Iterator[tuple[int, Pixels | None, str]]:
    found = deque[NDArray[np.float32]]()  # of each square
    squares = np.concatenate([cut.squares for cut in cuts]) if cuts else np.empty(0, np.uint8)
    for first in range(0, len(squares), size):
        found.extend(scores(squares[first : first + size]))
    for cut in cuts:
        own = [found.popleft() for _ in cut.corners]
        yield cut.number, None if cut.error else joined(cut.size, cut.side, cut.corners, own), cut.error


def joined(
    size: tuple[int, int], side: int, places: Sequence[tuple[int, int]], scores: Sequence[NDArray[np.float32]]
) -> Pixels:
    """The class with the highest sum at each pixel, uint8 `size`, of scores (T, S, S) of squares at `places`."""
    best, mask = np.full(size, -np.inf, np.float32), np.zeros(size, np.uint8)
    for number in range(len(scores[0])):
        total = np.zeros(size, np.float32)
        for (top, left), square in zip(places, scores, strict=True):
            total[top : top + side, left : left + side] += cv2.resize(square[number], (side, side))
        better = total > best
        mask[better], best[better] = number, total[better]
    return mask


def _all_cut(images: Images, crop: Crop, size: int, transform: Transform | None) -> Iterator[Cut]:
    """All images, in their order, by a thread for each CPU core, which are ahead by `size` images at most."""
    pool = ThreadPoolExecutor(machine.cpus(), "decode")
    pending = deque[Future[Cut]]()
    ahead = min(size, 4 * machine.cpus())
    try:
        for number in range(len(images)):
            if number % ahead == 0:
                images.expect(number, min(number + ahead, len(images)) - 1)
            pending.append(pool.submit(_cut, images, number, crop, transform))
            if len(pending) == ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        images.close()


def _cut(images: Images, number: int, crop: Crop, transform: Transform | None) -> Cut:
    try:
        pixels = decode_image(images.read(number))
        height, width = pixels.shape[:2]
        side = max(1, round(crop.center * min(height, width)))
        places = corners(height, width, side)
        squares = np.empty((len(places), crop.size, crop.size, 3), np.uint8)
        for (top, left), out in zip(places, squares, strict=True):
            resize(pixels[top : top + side, left : left + side], out)
            if transform:
                sample = {"image": out}
                apply(transform, sample, {"image": Image()}, number)
                out[:] = sample["image"]
    except (DecodeError, OSError, ValueError, KeyError) as error:
        why = str(getattr(error, "strerror", None) or (error.args or ["cannot be read"])[0])
        return Cut(number, (0, 0), 0, [], np.empty((0, crop.size, crop.size, 3), np.uint8), why)
    return Cut(number, (height, width), side, places, squares, "")
