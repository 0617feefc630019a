"""Masks as a person looks at them: each class in a colour of its own, and where a prediction differs from the truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..data.fields.plane import IGNORED
from ..data.mask_file import palette

GAP = 2  # pixels between pictures side by side
WRONG = (230, 40, 40)
Pixels = NDArray[np.uint8]


def side_by_side(image: Pixels, truth: Pixels, said: Pixels) -> Pixels:
    """Image, truth, prediction, and the image in gray with what is wrong in red: RGB, uint8 (S, 4 S + gaps, 3).

    Args:
        image: RGB, uint8 (S, S, 3).
        truth, said: classes, uint8 (S, S); where the truth is 255, nothing is wrong.
    """
    colours, nowhere = palette(), truth == IGNORED  # whose colour is cream
    gray = image.mean(2, keepdims=True).repeat(3, 2) * 0.4 + 150
    wrong = gray.astype(np.uint8)
    wrong[(truth != said) & ~nowhere] = WRONG
    masks = [colours[truth], colours[said]]
    wrong[nowhere] = colours[IGNORED]
    gap = np.full((len(image), GAP, 3), 255, np.uint8)
    return np.concatenate([image, gap, masks[0], gap, masks[1], gap, wrong], 1)


def overlaps(truth: Pixels, said: Pixels) -> list[tuple[int, float]]:
    """(class, intersection over union) of each class that is in the truth or in the prediction, the largest first."""
    counted = truth != IGNORED
    truth, said = truth[counted], said[counted]
    areas = {int(n): int(((truth == n) | (said == n)).sum()) for n in np.union1d(truth, said)}
    classes = sorted(areas, key=lambda number: -areas[number])
    return [(n, float(((truth == n) & (said == n)).sum() / areas[n])) for n in classes]
