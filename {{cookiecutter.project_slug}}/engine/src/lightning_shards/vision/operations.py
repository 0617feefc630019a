"""Operations on images, as automatic augmentation chooses among them: a batch at a time, another one for each row.

They are those of Cubuk et al., 2019 (AutoAugment), as torchvision has them, in numbers of fixed shape: every kind is
computed for every row, and each row takes the one it asks for. So the host never waits for the device, and
torch.compile takes all of it whole. No row looks at another one.

Shapes: B rows, S image side. Images are float (B, 3, S, S) in 0..255.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .augmentation import column

LUMA = (0.2989, 0.587, 0.114)  # of ITU-R BT.601, rounded as in torchvision


class Operation:
    """What may be done to a row, and in which unit its magnitude is: plain numbers, which torch.compile can compare."""

    IDENTITY = 0
    SHEAR_X = 1  # pixels to the left for each pixel down, around the corner at the top left
    SHEAR_Y = 2
    TRANSLATE_X = 3  # share of the side, to the right
    TRANSLATE_Y = 4  # share of the side, down
    ROTATE = 5  # degrees, against the clock
    BRIGHTNESS = 6  # -1 is black, 0 the image, 1 twice as bright
    COLOR = 7  # -1 is gray
    CONTRAST = 8  # -1 is the mean of its luma everywhere
    SHARPNESS = 9  # -1 is blurred
    POSTERIZE = 10  # bits that are kept of each value
    SOLARIZE = 11  # values from this one on are inverted
    AUTOCONTRAST = 12  # without a magnitude
    EQUALIZE = 13  # without a magnitude
    COUNT = 14


def apply(images: Tensor, operation: Tensor, magnitude: Tensor, fill: Tensor) -> Tensor:
    """The images, each after its operation, in the memory format they came in.

    Args:
        operation: numbers of `Operation`, int64 (B,).
        magnitude: float (B,), in the operation's unit.
        fill: colour of what an image is moved away from, 0..255, (1, 3, 1, 1).
    """
    kind, amount = column(operation), column(magnitude)
    geometric = (kind >= Operation.SHEAR_X) & (kind <= Operation.ROTATE)
    blended = (kind >= Operation.BRIGHTNESS) & (kind <= Operation.SHARPNESS)
    done = torch.where(geometric, warped(images, inverse_map(operation, magnitude), fill), images)
    done = torch.where(blended, blend(_opposite(images, kind), images, 1 + amount), done)
    done = torch.where(kind == Operation.POSTERIZE, posterized(images, amount), done)
    done = torch.where(kind == Operation.SOLARIZE, torch.where(images >= amount, 255 - images, images), done)
    done = torch.where(kind == Operation.AUTOCONTRAST, autocontrast(images), done)
    done = torch.where(kind == Operation.EQUALIZE, equalized(images), done)
    last = images.is_contiguous(memory_format=torch.channels_last)
    return done.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def inverse_map(operation: Tensor, magnitude: Tensor) -> Tensor:
    """Where each pixel of the result comes from, float (B, 2, 3): from (x, y, 1) in -1..1 to (x, y) in -1..1.

    The identity for rows whose operation moves nothing.
    """

    def where(which: int, value: Tensor) -> Tensor:
        return torch.where(operation == which, value, 0.0)

    angle = torch.deg2rad(where(Operation.ROTATE, magnitude))
    cos, sin = torch.cos(angle), torch.sin(angle)
    across, down = where(Operation.SHEAR_X, magnitude), where(Operation.SHEAR_Y, magnitude)
    right, below = (where(which, 2 * magnitude) for which in (Operation.TRANSLATE_X, Operation.TRANSLATE_Y))
    rows = (cos, across - sin, across - right, sin + down, cos, down - below)
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def warped(images: Tensor, inverse: Tensor, fill: Tensor) -> Tensor:
    """Each image moved by its `inverse_map`, with bilinear interpolation, `fill` around it."""
    side = images.shape[-1]
    line = (torch.arange(side, device=images.device) * 2 + 1) / side - 1
    x, y = line[None, None, :], line[None, :, None]
    # not by affine_grid: its product of matrices would be one of bfloat16 under mixed precision
    first, second = (one[:, :, None, None].unbind(1) for one in inverse.unbind(1))
    grid = torch.stack([one[0] * x + one[1] * y + one[2] for one in (first, second)], dim=-1)
    moved = F.grid_sample(images - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved + fill


def blend(opposite: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """From `opposite` (0) through the images (1) and beyond, cut off at 0 and 255."""
    return (opposite + factor * (images - opposite)).clamp(0, 255)


def _opposite(images: Tensor, kind: Tensor) -> Tensor:
    """What brightness, colour, contrast and sharpness lead away from: black, gray, the mean, a blurred image."""
    red, green, blue = images.split(1, dim=1)
    gray = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    flat = torch.where(kind == Operation.CONTRAST, gray.mean((2, 3), keepdim=True), 0.0)
    opposite = torch.where(kind == Operation.COLOR, gray, flat)
    return torch.where(kind == Operation.SHARPNESS, blurred(images), opposite)


def blurred(images: Tensor) -> Tensor:
    """3x3 weights of 1/13, 5/13 in the middle; the pixels at the edge stay."""
    three = images[..., :-2] + images[..., 1:-1] + images[..., 2:]
    nine = three[:, :, :-2] + three[:, :, 1:-1] + three[:, :, 2:]
    inner = (nine + 4 * images[:, :, 1:-1, 1:-1]) / 13
    line = torch.arange(images.shape[-1], device=images.device)
    inside = (line > 0) & (line < images.shape[-1] - 1)
    return torch.where(inside[:, None] & inside, F.pad(inner, (1, 1, 1, 1)), images)


def posterized(images: Tensor, bits: Tensor) -> Tensor:
    """Values rounded down to what their first `bits` of 8 say, float (B, 1, 1, 1)."""
    step = torch.exp2(8 - bits)
    return torch.floor(images / step) * step


def autocontrast(images: Tensor) -> Tensor:
    """Each channel stretched from its least to its largest value onto 0..255; one that has a single value stays."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = ((images - low) * (255 / (high - low).clamp(min=1e-6))).clamp(max=255)
    return torch.where(high > low, stretched, images)


def equalized(images: Tensor) -> Tensor:
    """Each channel's values, rounded, spread so that they come equally often; the counts are those of PIL.

    The histograms are sums of whole numbers in one dimension: exact, and allowed with deterministic algorithms.
    """
    channels = images.shape[0] * images.shape[1]
    values = images.round().long().clamp(0, 255).reshape(channels, -1)
    places = (values + 256 * torch.arange(channels, device=images.device)[:, None]).reshape(-1)
    ones = torch.ones((), dtype=torch.int64, device=images.device).expand(len(places))
    counts = torch.zeros(256 * channels, dtype=torch.int64, device=images.device).scatter_add(0, places, ones)
    counts = counts.view(channels, 256)
    largest = counts.gather(1, values.amax(1, keepdim=True))
    step = (values.shape[1] - largest) // 255
    below = counts.cumsum(1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    found = table.gather(1, values).view(images.shape).to(images.dtype)
    return torch.where(step.view(*images.shape[:2], 1, 1) > 0, found, images)
