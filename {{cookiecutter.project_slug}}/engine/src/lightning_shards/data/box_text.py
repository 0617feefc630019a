"""Boxes as files hold them: `{"boxes": [[...], ...], "labels": [...]}`, or annotations in COCO's form.

COCO's are `[{"bbox": [left, top, width, height], "category_id": 3}, ...]`, alone or as `{"annotations": [...]}`. Those
with `iscrowd` stand for many things at once, and are left out, as in torchvision's own trainings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .number_text import to_numbers, to_whole_numbers

LAYOUTS = ("xyxy", "xywh")
ROUNDING = 1.0  # pixels by which a box may reach over the image's edge


def parse(content: Any, layout: str = "xyxy") -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Left, top, right and bottom, (n, 4) in pixels, and labels, (n,), of what JSON holds.

    Args:
        layout: of `boxes`: `xyxy`, or `xywh` for left, top, width and height.

    Raises ValueError, KeyError, TypeError or OverflowError for what holds no boxes.
    """
    if isinstance(content, Mapping) and "annotations" in content:
        content = content["annotations"]
    if isinstance(content, list):
        things = of_single_things(content)
        content, layout = {name: [one[key] for one in things] for name, key in _OF_COCO.items()}, "xywh"
    boxes, labels = to_numbers(content["boxes"], np.float64).reshape(-1, 4), to_whole_numbers(content["labels"])
    if labels.shape != (len(boxes),):
        raise ValueError(f"{len(boxes)} boxes have {labels.size} labels")
    if layout == "xywh":
        boxes[:, 2:] += boxes[:, :2]
    return boxes, labels


_OF_COCO = {"boxes": "bbox", "labels": "category_id"}


def of_single_things(annotations: Iterable[Any]) -> list[Mapping[str, Any]]:
    """COCO's annotations without crowds. Raises TypeError for what are none."""
    found = []
    for one in annotations:
        if not isinstance(one, Mapping):
            raise TypeError(f"{str(one)[:80]} is no annotation")
        if not one.get("iscrowd"):
            found.append(one)
    return found


def fault(boxes: NDArray[Any], size: tuple[int, int] | None = None) -> str:
    """What is wrong with the first of `boxes`, (n, 4), that can be none; empty where all can.

    Args:
        size: (height, width) of the image; None: it is not known.
    """
    edges = np.full((4,), np.inf) if size is None else np.tile(np.array(size[::-1], np.float64), 2)
    with np.errstate(invalid="ignore"):
        wide, high = (boxes[:, 2:] - boxes[:, :2]).T
        outside = ((boxes < -ROUNDING) | (boxes > edges + ROUNDING)).any(1)
        of_edges = (np.minimum(boxes[:, 2:], edges[2:]) <= np.maximum(boxes[:, :2], 0)).any(1)
    faults = {
        "is not of finite numbers": ~np.isfinite(boxes).all(1),
        "has its corners in the wrong order: left, top, right and bottom are needed": (wide < 0) | (high < 0),
        "is empty": (wide == 0) | (high == 0),
        "reaches out of the image" + (f" of {size[1]} x {size[0]} pixels" if size else ""): outside
        & (size is not None),
        "lies outside the image": of_edges & (size is not None),
    }
    for what, wrong in faults.items():
        if wrong.any():
            left, top, right, bottom = boxes[int(wrong.argmax())].tolist()
            return f"the box {left:g}, {top:g}, {right:g}, {bottom:g} {what}"
    return ""
