"""The crops of a whole batch whose pixels are at hand: the same boxes, flips and pixels as `View`, in a few calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .crop import LINEAR, Crop, resize
from .decode import Pixels, scratch
from .uniforms import draw

Ints = NDArray[np.int64]
Boxes = tuple[Ints, Ints, Ints, Ints]


def boxes(crop: Crop, heights: Ints, widths: Ints, seeds: Ints | None) -> Boxes:
    """(top, left, height, width) of `Crop.box` for each image, (B,) each.

    Args:
        heights, widths: of the images.
        seeds: of the samples, of which `draw` makes what `Crop.box` takes; None for the centred squares.
    """
    if seeds is None:
        sides = np.maximum(1, np.rint(crop.center * np.minimum(heights, widths)).astype(np.int64))
        return (heights - sides) // 2, (widths - sides) // 2, sides, sides
    found, fits = _try(crop, heights, widths, draw(seeds, 1 + 4)[:, 1:])
    left = np.flatnonzero(~fits)  # images that have no box yet
    draws = draw(seeds[left], crop.draws)
    for first in range(1 + 4, crop.draws, 4):
        if not len(left):
            return found
        boxes, fits = _try(crop, heights[left], widths[left], draws[:, first : first + 4])
        for edge, values in zip(found, boxes, strict=True):
            edge[left[fits]] = values[fits]
        left, draws = left[~fits], draws[~fits]
    for row, numbers in zip(left.tolist(), draws, strict=True):  # no box fits: the largest centred one
        for edge, value in zip(found, crop.box(int(heights[row]), int(widths[row]), numbers), strict=True):
            edge[row] = value
    return found


def _try(crop: Crop, heights: Ints, widths: Ints, draws: NDArray[np.float64]) -> tuple[Boxes, NDArray[np.bool_]]:
    """A box by four random numbers each, and whether it fits into the image: one turn of `Crop.box`."""
    (low, high), log_low, log_high = crop.scale, math.log(crop.ratio[0]), math.log(crop.ratio[1])
    scale, ratio, y, x = draws.T
    area = (low + scale * (high - low)) * heights * widths
    # by Python, from whose last bit NumPy's may differ
    aspect = np.array(list(map(math.exp, (log_low + ratio * (log_high - log_low)).tolist())))
    w, h = np.rint(np.sqrt(area * aspect)).astype(np.int64), np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (w > 0) & (w <= widths) & (h > 0) & (h <= heights)
    return ((y * (heights - h + 1)).astype(np.int64), (x * (widths - w + 1)).astype(np.int64), h, w), fits


def cut_all(
    crop: Crop,
    images: Sequence[Pixels],
    heights: Ints,
    widths: Ints,
    seeds: Ints | None,
    out: Sequence[NDArray[Any]],
) -> None:
    """Write the crop of each of `images`, uint8 (at least height, at least width, 3), into its array of `out`.

    Args: as for `boxes`; `out`: uint8 (crop.size, crop.size, 3) each.
    """
    tops, lefts, tall, wide = boxes(crop, heights, widths, seeds)
    mirrored = [False] * len(images) if seeds is None else (draw(seeds, 1)[:, 0] < crop.flip).tolist()
    edges = zip(tops.tolist(), (tops + tall).tolist(), lefts.tolist(), (lefts + wide).tolist(), strict=True)
    size, made = (crop.size, crop.size), scratch("mirrored", (crop.size, crop.size, 3))
    if max(tall.max(initial=0), wide.max(initial=0)) > LINEAR * crop.size:  # some are made smaller
        for image, (top, bottom, left, right), turned, row in zip(images, edges, mirrored, out, strict=False):
            resize(image[top:bottom, left:right], made if turned else row)
            if turned:
                cv2.flip(made, 1, row)
        return
    linear, enlarge, flip = cv2.INTER_LINEAR, cv2.resize, cv2.flip
    for image, (top, bottom, left, right), turned, row in zip(images, edges, mirrored, out, strict=False):
        if turned:
            enlarge(image[top:bottom, left:right], size, made, 0, 0, linear)
            flip(made, 1, row)
        else:
            enlarge(image[top:bottom, left:right], size, row, 0, 0, linear)
