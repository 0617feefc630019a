"""Fields in the image's plane: whatever the view does to one, it does to all of a sample."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..box_text import LAYOUTS, fault, parse
from ..crop import View
from ..decode import IMAGE_FIELDS, DecodeError, decode_image, decode_mask, mask_size
from .base import SIDE, Shipped, check_count

IGNORED = 255  # in a mask: counts in no loss and no metric
_UINT8, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)


@dataclass(frozen=True)
class Image(Shipped):
    """A JPEG, PNG or WebP file: uint8 (S, S, 3), RGB; in the batch (B, 3, S, S), channels_last.

    The first of a sample's images gives the view its size. Another of the same size is cut alike; one of another size
    has a box of its own, chosen by the same random numbers.
    """

    kind: ClassVar[str] = "image"
    dtype: ClassVar[np.dtype[Any]] = _UINT8
    shape: ClassVar[tuple[int, ...]] = (SIDE, SIDE, 3)
    names: tuple[str, ...] = IMAGE_FIELDS
    required: bool = True

    def decode(self, data: bytes, view: View | None, out: NDArray[Any] | None) -> NDArray[Any]:
        if view is None:
            return decode_image(data)
        if out is None:
            out = np.empty((view.crop.size, view.crop.size, 3), np.uint8)
        view.image(data, out)
        return out


@dataclass(frozen=True)
class Mask(Shipped):
    """A class for each pixel of the image, as a gray or palette PNG of 8 bits at most: uint8 (S, S).

    Classes are never mixed: each pixel takes its nearest. 255 means that a pixel counts nowhere; so do all of a mask
    that may be missing. A mask of another size than the image is refused, and so is a class from `classes` on if the
    view shows it: the rest is not looked at.
    """

    kind: ClassVar[str] = "mask"
    dtype: ClassVar[np.dtype[Any]] = _UINT8
    shape: ClassVar[tuple[int, ...]] = (SIDE, SIDE)
    missing: ClassVar[int] = IGNORED
    classes: int
    names: tuple[str, ...] = ("seg.png", "mask.png")
    required: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("classes", self.classes)
        if self.classes > IGNORED:
            raise InputError(f"a mask has at most {IGNORED} classes (255 is for pixels that count nowhere)")

    def decode(self, data: bytes, view: View | None, out: NDArray[Any] | None) -> NDArray[Any]:
        if view is None:
            return self._checked(decode_mask(data))
        if out is None:
            out = np.empty((view.crop.size, view.crop.size), np.uint8)
        view.fit(decode_mask(data, view.box_in(*mask_size(data))), out, nearest=True)
        return self._checked(out)

    def _checked(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if int((mask + np.uint8(1)).max()) > self.classes:  # 255 becomes 0
            largest = int(mask[mask != IGNORED].max())
            raise DecodeError(f"its class {largest} is not in 0..{self.classes - 1}, nor {IGNORED} for none")
        return mask


@dataclass(frozen=True)
class Boxes(Shipped):
    """Boxes around things in the image, in pixels, with their class numbers: JSON as `box_text` reads it.

    A row is {"boxes": float32 (n, 4), "labels": int64 (n,)}, what torchvision's detectors train on: left, top, right
    and bottom in pixels of the view's square. Boxes are cut at the square's edges. One of which less than `visible` of
    its area is left, or a side shorter than a pixel, is dropped with its label. A box that is empty, or that reaches
    more than a pixel out of the image, is refused.

    Attributes:
        layout: `xyxy`: left, top, right, bottom; `xywh`: left, top, width, height, as in COCO.
    """

    kind: ClassVar[str] = "boxes"
    dtype: ClassVar[np.dtype[Any]] = _FLOAT32
    shape: ClassVar[None] = None
    classes: int
    names: tuple[str, ...] = ("boxes.json",)
    layout: str = "xyxy"
    visible: float = 0.25
    required: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("classes", self.classes)
        if self.layout not in LAYOUTS:
            raise InputError(f"boxes have the layout {' or '.join(LAYOUTS)}, not {str(self.layout)[:80]!r}")
        if not isinstance(self.visible, int | float) or not 0 <= self.visible <= 1:
            raise InputError(f"of boxes, visible is a share between 0 and 1, not {str(self.visible)[:80]!r}")

    @property
    def missing(self) -> dict[str, NDArray[Any]]:  # type: ignore[override]
        return {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}

    def decode(self, data: bytes, view: View | None, out: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
        boxes, labels = self._parse(data, view.size if view else None)
        if view is None or not len(boxes):
            return {"boxes": boxes, "labels": labels}
        moved, side = view.boxes(boxes), view.crop.size
        inside = moved.clip(0, side)
        (wide, high), (width, height) = (moved[:, 2:] - moved[:, :2]).T, (inside[:, 2:] - inside[:, :2]).T
        kept = (width >= 1) & (height >= 1) & (width * height >= self.visible * wide * high)
        return {"boxes": inside[kept], "labels": labels[kept]}

    def _parse(self, data: bytes, size: tuple[int, int] | None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        try:
            boxes, labels = parse(json.loads(data), self.layout)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise DecodeError(f"its boxes cannot be read ({error})") from None
        if ((labels < 0) | (labels >= self.classes)).any():
            raise DecodeError(f"its boxes have no label in 0..{self.classes - 1} each")
        if why := fault(boxes, size):
            raise DecodeError(why)
        return boxes.astype(np.float32), labels
