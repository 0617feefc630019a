"""Parts of augmentations on the device, a batch at a time: what they draw is given to them, float32 (B,) in [0, 1).

Operations of fixed shape, without a look at the values: the host never waits for the device, and torch.compile takes
them whole.

Shape suffixes: B rows, S image side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # Zhong et al., 2017

_MOVES_OR_MIXES = ("mixup", "cutmix", "trivial_augment", "rand_augment")
_CHANGES_COLOURS = ("erasing", "color_jitter")


def check_changes(settings: Mapping[str, Any], features: bool, task: str) -> None:
    """Raise InputError for a model's setting that cannot be obeyed where `features` are in place of images, or masks or
    boxes are what is predicted, which stay where they are."""
    still = {"segmentation": "masks", "detection": "boxes"}.get(task)
    for name in (*_MOVES_OR_MIXES, *_CHANGES_COLOURS) if features else _MOVES_OR_MIXES if still else ():
        if settings[name]:
            why = "changes images, and data.features takes their place"
            why = why if features else f"moves or mixes what images show, and {still} would stay as they are"
            raise InputError(f"model.{name} {why}: set it 0")


def jitter(images: Tensor, strength: float, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Scale saturation, contrast and brightness, each by its own factor in 1 - strength .. 1 + strength.

    All three are linear, so they are done in one go and values outside 0..255 are cut off once, at the end.
    """
    brightness, contrast, saturation = (
        column(1 + strength * (2 * draw - 1)) for draw in (brightness, contrast, saturation)
    )
    red, green, blue = images.split(1, dim=1)
    gray = 0.299 * red + 0.587 * green + 0.114 * blue  # luma of ITU-R BT.601, as in torchvision
    mean = gray.mean((2, 3), keepdim=True)
    colours = saturation * images + (1 - saturation) * gray
    return (brightness * (contrast * colours + (1 - contrast) * mean)).clamp(0, 255)


def erased(
    probability: float, side: int, draw: Tensor, area: Tensor, aspect: Tensor, top: Tensor, left: Tensor
) -> Tensor:
    """Which pixels are erased, bool (B, 1, S, S): one box in a share `probability` of the rows.

    Area and aspect of the box are drawn uniformly (the aspect's logarithm) from ERASED_AREA and ERASED_ASPECT; what is
    longer than the image is cut off.
    """
    (small, large), (low, high) = ERASED_AREA, (math.log(x) for x in ERASED_ASPECT)
    area = small + (large - small) * area
    aspect = torch.exp(low + (high - low) * aspect)
    height = (side * torch.sqrt(area * aspect)).round().clamp(1, side)
    width = (side * torch.sqrt(area / aspect)).round().clamp(1, side)
    top, left = (top * (side - height + 1)).floor(), (left * (side - width + 1)).floor()
    return box(top, left, top + height, left + width, side) & (column(draw) < probability)


def cut(share: Tensor, side: int, y: Tensor, x: Tensor) -> Tensor:
    """A box of 1 - share of the area around a random pixel, bool (B, 1, S, S)."""
    half = side * torch.sqrt(1 - share) / 2
    y, x = y * side, x * side
    return box((y - half).round(), (x - half).round(), (y + half).round(), (x + half).round(), side)


def box(top: Tensor, left: Tensor, bottom: Tensor, right: Tensor, side: int) -> Tensor:
    """The pixels of each row's box, bool (B, 1, S, S), for edges (B,) in pixels, the last two exclusive."""
    line = torch.arange(side, device=top.device)
    rows = (line >= top[:, None]) & (line < bottom[:, None])
    columns = (line >= left[:, None]) & (line < right[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def partners(rows: Tensor) -> Tensor:
    """The row before each, the last before the first. On CUDA `roll` would lose the memory format."""
    return torch.cat([rows[-1:], rows[:-1]])


def column(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values[:, None, None, None]
