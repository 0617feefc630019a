"""Augmentation on the device, a batch at a time: colour jitter, random erasing, mixup and cutmix, in this order.

Every random choice for a sample is hashed from its key in the batch, by the same counter-based generator as its crop
(`decoding/hashing.py`), so it depends neither on the device nor on who decodes the sample. All is done in operations of
fixed shape, without a look at the values: the host never waits for the device, and torch.compile takes it whole.

Mixing takes a partner: the row before, in the same micro-batch. So with mixup or cutmix, which two images are mixed
follows from the micro-batch's rows, hence from its size; how much of each is the sample's own choice. A row that is
not valid is nobody's partner.

Shape suffixes: B rows, S image side, T targets.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

FIRST_COLUMN = 1 << 10  # of the hash; those before belong to the decoder's crop
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # Zhong et al., 2017


class Draws(NamedTuple):
    """What is random about a sample, each float32 (B,) in [0, 1). Add fields at the end: places decide the numbers."""

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    erased: Tensor
    erased_area: Tensor
    erased_aspect: Tensor
    erased_top: Tensor
    erased_left: Tensor
    mixing: Tensor
    share: Tensor
    cut_y: Tensor
    cut_x: Tensor


class Mix(NamedTuple):
    """What was mixed into each row. Its loss is `share * loss(own target) + (1 - share) * loss(partner's target)`.

    For cross entropies that is the loss of the mixed target; for squared errors it differs from it by a constant.
    """

    targets: Tensor  # the partners', in the form of the batch's
    share: Tensor  # float32 (B,) in [0, 1]: how much of the row is its own


class Augment(nn.Module):
    """Applies what is switched on; with everything at 0 it hands the images through.

    Args:
        mixup: alpha of the Beta distribution of the shares (Zhang et al., 2018), 0 is off.
        cutmix: the same for the share of the area (Yun et al., 2019). Where both are on, each sample takes one of the
            two with equal probability.
        erasing: probability that a box of a sample becomes `fill`.
        color_jitter: brightness, contrast and saturation are scaled by up to this much, up or down.
        fill: colour of what is erased, 0..255; the mean, so that it is 0 after normalisation.
    """

    mixup: Tensor | None
    cutmix: Tensor | None
    fill: Tensor

    def __init__(self, mixup: float, cutmix: float, erasing: float, color_jitter: float, fill: Tensor) -> None:
        super().__init__()
        self.erasing, self.color_jitter = erasing, color_jitter
        self.register_buffer("mixup", beta_quantiles(mixup) if mixup else None, persistent=False)
        self.register_buffer("cutmix", beta_quantiles(cutmix) if cutmix else None, persistent=False)
        self.register_buffer("fill", fill.clone(), persistent=False)

    @property
    def mixes(self) -> bool:
        return self.mixup is not None or self.cutmix is not None

    @property
    def active(self) -> bool:
        return self.mixes or self.erasing > 0 or self.color_jitter > 0

    def forward(self, images: Tensor, targets: Tensor, seeds: Tensor, valid: Tensor) -> tuple[Tensor, Mix | None]:
        """Images in 0..255, (B, 3, S, S) in the memory format they came in, and what was mixed into them.

        They are float of the module's type, or untouched where nothing is switched on.
        """
        if not self.active:
            return images, None
        draws = Draws(*uniform(seeds, len(Draws._fields)).unbind(1))
        images, mix = images.float(), None
        if self.color_jitter:
            images = jitter(images, self.color_jitter, draws)
        if self.erasing:
            images = torch.where(erased(self.erasing, images.shape[-1], draws), self.fill.float(), images)
        if self.mixes:
            kept = torch.where(_column(partners(valid)), self._kept(images.shape[-1], draws), 1.0)
            images = torch.lerp(partners(images), images, kept)
            mix = Mix(partners(targets), kept.mean((1, 2, 3)))
        return images.to(self.fill.dtype), mix

    def _kept(self, side: int, draws: Draws) -> Tensor:
        """How much of each pixel is the row's own: the same everywhere (mixup), or 0 in a box and 1 around it (cutmix).

        float32 (B, 1, S, S), or (B, 1, 1, 1) with mixup alone. The mean is the row's share, so a box that the border
        cuts counts as what is left of it.
        """
        if self.mixup is not None:
            kept = _column(quantile(self.mixup, draws.share))
        if self.cutmix is not None:
            outside = (~cut(quantile(self.cutmix, draws.share), side, draws)).float()
            kept = outside if self.mixup is None else torch.where(_column(draws.mixing) < 0.5, kept, outside)
        return kept


def jitter(images: Tensor, strength: float, draws: Draws) -> Tensor:
    """Scale saturation, contrast and brightness, each by its own factor in 1 - strength .. 1 + strength.

    All three are linear, so they are done in one go and values outside 0..255 are cut off once, at the end.
    """
    brightness, contrast, saturation = (
        _column(1 + strength * (2 * draw - 1)) for draw in (draws.brightness, draws.contrast, draws.saturation)
    )
    red, green, blue = images.split(1, dim=1)
    gray = 0.299 * red + 0.587 * green + 0.114 * blue  # luma of ITU-R BT.601, as in torchvision
    mean = gray.mean((2, 3), keepdim=True)
    colours = saturation * images + (1 - saturation) * gray
    return (brightness * (contrast * colours + (1 - contrast) * mean)).clamp(0, 255)


def erased(probability: float, side: int, draws: Draws) -> Tensor:
    """Which pixels are erased, bool (B, 1, S, S): one box in a share `probability` of the rows.

    Area and aspect of the box are drawn uniformly (the aspect's logarithm) from ERASED_AREA and ERASED_ASPECT; what is
    longer than the image is cut off.
    """
    (small, large), (low, high) = ERASED_AREA, (math.log(x) for x in ERASED_ASPECT)
    area = small + (large - small) * draws.erased_area
    aspect = torch.exp(low + (high - low) * draws.erased_aspect)
    height = (side * torch.sqrt(area * aspect)).round().clamp(1, side)
    width = (side * torch.sqrt(area / aspect)).round().clamp(1, side)
    top, left = (draws.erased_top * (side - height + 1)).floor(), (draws.erased_left * (side - width + 1)).floor()
    return box(top, left, top + height, left + width, side) & (_column(draws.erased) < probability)


def cut(share: Tensor, side: int, draws: Draws) -> Tensor:
    """A box of 1 - share of the area around a random pixel, bool (B, 1, S, S)."""
    half = side * torch.sqrt(1 - share) / 2
    y, x = draws.cut_y * side, draws.cut_x * side
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


def uniform(keys: Tensor, count: int) -> Tensor:
    """Random numbers in [0, 1) that belong to the samples, float32 (B, count), for keys int64 (B,).

    The first 24 bits of what `decoding.hashing.uniform` gives in the columns from FIRST_COLUMN on: exact in float32, so
    the same on every device.
    """
    columns = torch.arange(FIRST_COLUMN + 1, FIRST_COLUMN + 1 + count, device=keys.device) * _signed(0x9E3779B97F4A7C15)
    return _shift(splitmix(keys[:, None] + columns), 40).float() * 2.0**-24


def splitmix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, as in `decoding.hashing`, on int64 for uint64: products wrap around all the same."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, where `>>` fills with the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64)


def _column(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values[:, None, None, None]


def beta_quantiles(alpha: float, steps: int = 1024) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at 0, 1/steps, ..., 1, float32 (steps + 1,), right to about 0.001.

    The density is integrated from 0 to 1/2, where x^(alpha - 1) may have its pole: that factor exactly, the other one
    at the middle of each of 4096 cells. The upper half mirrors the lower one.
    """
    x = np.linspace(0, 0.5, 4097)
    mass = np.diff(x**alpha) * (1 - (x[1:] + x[:-1]) / 2) ** (alpha - 1)
    cumulative = np.concatenate([[0], np.cumsum(mass)])
    lower = np.interp(np.linspace(0, 1, steps // 2 + 1), cumulative / cumulative[-1], x)
    return torch.from_numpy(np.concatenate([lower, 1 - lower[-2::-1]])).float()


def quantile(table: Tensor, at: Tensor) -> Tensor:
    """Look up `at` in [0, 1) in a table of evenly spaced quantiles, with linear interpolation."""
    place = at * (len(table) - 1)
    index = place.long()
    return torch.lerp(table.float()[index], table.float()[index + 1], place - index)
