"""Boxes as a person looks at them: drawn into the image, each class in a colour of its own."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.mask_file import bright_colour
from .mask_pictures import GAP

SIDE = 192  # pixels: smaller images are made larger, so that lines are thin beside what they surround


def side_by_side(image: NDArray[np.uint8], truth: NDArray[np.float32], said: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The image with the boxes that are there, and with those that were found: RGB, uint8 (S', 2 S' + gap, 3).

    Args:
        image: RGB, uint8 (S, S, 3).
        truth, said: (N, 6) and (M, 6): left, top, right, bottom in pixels of the image, score, class.
    """
    times = max(1, -(-SIDE // len(image)))
    large = np.ascontiguousarray(image.repeat(times, 0).repeat(times, 1))
    gap = np.full((len(large), GAP, 3), 255, np.uint8)
    return np.concatenate([_drawn(large.copy(), truth, times), gap, _drawn(large.copy(), said, times)], 1)


def _drawn(image: NDArray[np.uint8], boxes: NDArray[np.float32], times: int) -> NDArray[np.uint8]:
    last = len(image) - 1
    for *corners, _, number in boxes.tolist():
        left, top, right, bottom = (min(last, max(0, round(edge * times))) for edge in corners)
        cv2.rectangle(image, (left, top), (right, bottom), bright_colour(int(number)), 2)
    return image
