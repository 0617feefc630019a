"""Augmentation on the device, a batch at a time: random operations, colour jitter, random erasing, mixup and cutmix, in
this order.

Every random choice for a sample is hashed from its seed in the batch, by the same counter-based generator as its crop,
so it depends neither on the device nor on who decodes the sample. No step looks at values: the host never waits for
the device, and torch.compile takes it whole. What is done to single samples in the decoding processes is in data.py.

Mixing takes a partner: the row before, in the same micro-batch. So with mixup or cutmix, which two images are mixed
follows from the micro-batch's rows, hence from its size; how much of each is the sample's own choice. A row that is
not valid is nobody's partner.

Shape suffixes: B rows, S image side, T targets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from lightning_shards.vision.augmentation import column, cut, erased, jitter, partners
from lightning_shards.vision.device_uniforms import beta_quantiles, quantile, uniform
from lightning_shards.vision.random_operations import RandomOperations
from torch import Tensor, nn


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
        operations: chosen for each sample among shears, rotations, contrast ...: TrivialAugment or RandAugment.
    """

    mixup: Tensor | None
    cutmix: Tensor | None
    fill: Tensor

    def __init__(
        self,
        mixup: float,
        cutmix: float,
        erasing: float,
        color_jitter: float,
        fill: Tensor,
        operations: RandomOperations | None = None,
    ) -> None:
        super().__init__()
        self.erasing, self.color_jitter, self.operations = erasing, color_jitter, operations
        self.register_buffer("mixup", beta_quantiles(mixup) if mixup else None, persistent=False)
        self.register_buffer("cutmix", beta_quantiles(cutmix) if cutmix else None, persistent=False)
        self.register_buffer("fill", fill.clone(), persistent=False)

    @property
    def mixes(self) -> bool:
        return self.mixup is not None or self.cutmix is not None

    @property
    def active(self) -> bool:
        return self.mixes or self.erasing > 0 or self.color_jitter > 0 or self.operations is not None

    def forward(self, images: Tensor, targets: Tensor, seeds: Tensor, valid: Tensor) -> tuple[Tensor, Mix | None]:
        """Images in 0..255, (B, 3, S, S) in the memory format they came in, and what was mixed into them.

        They are float of the module's type, or untouched where nothing is switched on.
        """
        if not self.active:
            return images, None
        draws = Draws(*uniform(seeds, len(Draws._fields)).unbind(1))
        images, mix = images.float(), None
        if self.operations is not None:
            images = self.operations(images, seeds, self.fill.float())
        if self.color_jitter:
            images = jitter(images, self.color_jitter, draws.brightness, draws.contrast, draws.saturation)
        if self.erasing:
            where = (draws.erased, draws.erased_area, draws.erased_aspect, draws.erased_top, draws.erased_left)
            images = torch.where(erased(self.erasing, images.shape[-1], *where), self.fill.float(), images)
        if self.mixes:
            kept = torch.where(column(partners(valid)), self._kept(images.shape[-1], draws), 1.0)
            images = torch.lerp(partners(images), images, kept)
            mix = Mix(partners(targets), kept.mean((1, 2, 3)))
        return images.to(self.fill.dtype), mix

    def _kept(self, side: int, draws: Draws) -> Tensor:
        """How much of each pixel is the row's own: the same everywhere (mixup), or 0 in a box and 1 around it (cutmix).

        float32 (B, 1, S, S), or (B, 1, 1, 1) with mixup alone. The mean is the row's share, so a box that the border
        cuts counts as what is left of it.
        """
        if self.mixup is not None:
            kept = column(quantile(self.mixup, draws.share))
        if self.cutmix is not None:
            outside = (~cut(quantile(self.cutmix, draws.share), side, draws.cut_y, draws.cut_x)).float()
            kept = outside if self.mixup is None else torch.where(column(draws.mixing) < 0.5, kept, outside)
        return kept
