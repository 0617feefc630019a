"""What a network that looks at squares says of whole images: masks as large as these are, and boxes in their pixels.

image -> squares that cover it, each as large as the one of a validation -> what the network says of each square
    masks: resized to where the square lies, added where squares overlap -> the class with the highest sum
    boxes: moved to where the square lies -> of those of one class that overlap by half, the surest
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms

from .. import machine
from ..data.crop import Crop, resize
from ..data.decode import DecodeError, Pixels, decode_image
from ..data.fields import Image
from ..data.transform import Transform, apply
from ..vision.boxes import MOST
from .images import Images

Scores = Callable[[Pixels], NDArray[np.float32]]  # of squares (N, S, S, 3): (N, T, S, S) or boxes (N, M, 6)
Found = NDArray[Any]


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


class Seen(NamedTuple):
    """What was said of an image."""

    number: int
    size: tuple[int, int]  # (height, width)
    found: Found | None  # a mask, uint8 (height, width), or boxes, float32 (M, 6); None after an error
    error: str


Join = Callable[[Cut, Sequence[NDArray[np.float32]]], Found]


def look_at(
    images: Images, crop: Crop, size: int, scores: Scores, transform: Transform | None, join: Join
) -> Iterator[Seen]:
    """What `scores` says of all `images`, in their order.

    Args:
        crop: its `center` decides how large the squares are, as in a validation.
        size: squares that are looked at together.
        transform: changes each square, as a sample that has an image only.
        join: makes one of what is said of an image's squares: `mask` or `boxes`.
    """
    waiting: list[Cut] = []
    for cut in _all_cut(images, crop, size, transform):
        waiting.append(cut)
        if sum(len(one.corners) for one in waiting) >= size:
            yield from _looked_at(waiting, size, scores, join)
            waiting = []
    yield from _looked_at(waiting, size, scores, join)


def _looked_at(cuts: Sequence[Cut], size: int, scores: Scores, join: Join) -> Iterator[Seen]:
    found = deque[NDArray[np.float32]]()  # of each square
    squares = np.concatenate([cut.squares for cut in cuts]) if cuts else np.empty(0, np.uint8)
    for first in range(0, len(squares), size):
        found.extend(scores(squares[first : first + size]))
    for cut in cuts:
        own = [found.popleft() for _ in cut.corners]
        yield Seen(cut.number, cut.size, None if cut.error else join(cut, own), cut.error)


def mask(cut: Cut, scores: Sequence[NDArray[np.float32]]) -> Pixels:
    """The mask of an image, uint8 (height, width), of scores (T, S, S) of its squares."""
    return joined(cut.size, cut.side, cut.corners, scores)


def boxes(cut: Cut, found: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The boxes of an image, float32 (M, 6), the surest first, of those (N, 6) of its squares.

    Each is left, top, right and bottom in pixels of the image, score, class.
    """
    scale = cut.side / cut.squares.shape[1]
    moved = [
        np.concatenate([one[:, :4] * scale + (left, top, left, top), one[:, 4:]], 1)[one[:, 5] >= 0]
        for (top, left), one in zip(cut.corners, found, strict=True)
    ]
    there = torch.from_numpy(np.concatenate(moved)).float()
    if len(moved) == 1:  # the network has chosen already
        return there[there[:, 4].argsort(descending=True, stable=True)].numpy()
    return there[batched_nms(there[:, :4], there[:, 4], there[:, 5], 0.5)[:MOST]].numpy()


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
