"""TrivialAugment and RandAugment on the device: which operations befall a sample is hashed from its seed.

Both choose among the 14 operations of `operations`, with 31 levels of magnitude, as torchvision's `TrivialAugmentWide`
and `RandAugment` do; see there for the differences: pixels are interpolated, and what an image is moved away from takes
the mean's colour. They move the image alone: masks and boxes of the same sample would stay behind.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError
from .device_uniforms import OPERATIONS_COLUMN, uniform
from .operations import Operation, apply

LEVELS = 31
# the largest magnitudes; of shears, translations, rotation, the four that blend; bits that posterize takes away
WIDE = (0.99, 32 / 224, 135.0, 0.99, 6)  # Mueller & Hutter, 2021; their 32 pixels as a share of the usual side
NARROW = (0.3, 150 / 331, 30.0, 0.9, 4)  # Cubuk et al., 2020


def random_operations(trivial: bool, rand: tuple[int, int] | None) -> RandomOperations | None:
    """The module that two settings ask for; None for neither.

    Args:
        trivial: model.trivial_augment: one operation a sample, of any magnitude (Mueller & Hutter, 2021).
        rand: model.rand_augment: how many operations, and the level of all of them, 0..30 (Cubuk et al., 2020).

    Raises InputError for both at once, and for numbers that are out of range.
    """
    if rand is None:
        return RandomOperations(1, None, WIDE) if trivial else None
    if trivial:
        raise InputError("model.trivial_augment and model.rand_augment exclude each other: give one of them")
    count, level = rand
    if not 1 <= count <= 10:
        raise InputError(f"model.rand_augment: {count} operations; between 1 and 10 are possible")
    if not 0 <= level < LEVELS:
        raise InputError(f"model.rand_augment: the magnitude is {level}, it must be between 0 and {LEVELS - 1}")
    return RandomOperations(count, level, NARROW)


class RandomOperations(nn.Module):
    """Does `count` operations to each image, one after the other, each chosen among all with equal probability.

    Args:
        level: of the magnitudes, 0..30; None: each time another one.
        largest: WIDE or NARROW.
    """

    magnitudes: Tensor  # float (operations, LEVELS)
    signed: Tensor  # bool (operations,): those whose magnitude goes either way

    def __init__(self, count: int, level: int | None, largest: tuple[float, float, float, float, float]) -> None:
        super().__init__()
        self.count, self.level = count, level
        self.register_buffer("magnitudes", _magnitudes(*largest), persistent=False)
        signed = torch.zeros(Operation.COUNT, dtype=torch.bool)
        signed[Operation.SHEAR_X : Operation.POSTERIZE] = True
        self.register_buffer("signed", signed, persistent=False)

    def forward(self, images: Tensor, seeds: Tensor, fill: Tensor) -> Tensor:
        """Images in 0..255, float (B, 3, S, S), for seeds int64 (B,); `fill` (1, 3, 1, 1) is the colour around them."""
        draws = uniform(seeds, 3 * self.count, OPERATIONS_COLUMN).view(-1, self.count, 3)
        for choice, strength, sign in (one.unbind(1) for one in draws.unbind(1)):
            operation = (choice * Operation.COUNT).long()
            level = (strength * LEVELS).long() if self.level is None else torch.full_like(operation, self.level)
            magnitude = self.magnitudes.float()[operation, level]
            turned = self.signed[operation] & (sign < 0.5)
            images = apply(images, operation, torch.where(turned, -magnitude, magnitude), fill)
        return images


def _magnitudes(shear: float, translation: float, rotation: float, blended: float, bits: float) -> Tensor:
    """The magnitude of each operation at each level, float (operations, LEVELS)."""
    largest = torch.zeros(Operation.COUNT)
    largest[[Operation.SHEAR_X, Operation.SHEAR_Y]] = shear
    largest[[Operation.TRANSLATE_X, Operation.TRANSLATE_Y]] = translation
    largest[Operation.ROTATE] = rotation
    largest[Operation.BRIGHTNESS : Operation.POSTERIZE] = blended
    table = largest[:, None] * torch.linspace(0, 1, LEVELS)
    table[Operation.POSTERIZE] = 8 - (torch.arange(LEVELS) / ((LEVELS - 1) / bits)).round()
    table[Operation.SOLARIZE] = torch.linspace(255, 0, LEVELS)
    return table
