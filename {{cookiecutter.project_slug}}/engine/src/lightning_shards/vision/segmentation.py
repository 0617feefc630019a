"""Networks that give a class for each pixel: torchvision's, and a U-Net for small images and slow machines.

Shapes: B rows, H and W of the images, T classes.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.segmentation.lraspp import LRASPPHead

SMALL = "small_unet"
ENCODER = "backbone."  # how the names of an encoder's tensors begin in torchvision's networks


def names() -> list[str]:
    """All networks that `build` knows."""
    return [SMALL, *torchvision.models.list_models(module=torchvision.models.segmentation)]


def encoder(name: str) -> str:
    """The classification network whose weights the encoder of one of torchvision's begins with; empty for others."""
    return name.partition("_")[2] if name in names() and name != SMALL else ""


def build(name: str, outputs: int) -> nn.Module:
    """A network from images (B, 3, H, W) to logits (B, outputs, H, W), with random weights; `name` is one of `names()`.

    Its tensors are called as torchvision calls them. There is no auxiliary head.
    """
    if name == SMALL:
        return SmallUNet(outputs)
    return _Segmenter(torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=outputs))


class _Segmenter(nn.Module):
    """Encoder and head of one of torchvision's networks, which would give their logits in a dictionary."""

    backbone: nn.Module
    classifier: nn.Module

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.backbone, self.classifier = network.backbone, network.classifier

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        logits = self.classifier(features if isinstance(self.classifier, LRASPPHead) else features["out"])
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


class SmallUNet(nn.Module):
    """A U-Net (Ronneberger et al., 2015) of four scales, padded and with batch norms: 0.5 million parameters.

    It takes any height and width of 8 pixels or more. Going up, it interpolates to the size of what it joins.
    """

    def __init__(self, outputs: int, widths: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        before = (3, *widths[:-1])
        self.down = nn.ModuleList(two_convolutions(one, after) for one, after in zip(before, widths, strict=True))
        pairs = reversed(list(itertools.pairwise(widths)))
        self.up = nn.ModuleList(two_convolutions(fine + coarse, fine) for fine, coarse in pairs)
        self.head = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        found = [self.down[0](images)]
        for block in self.down[1:]:
            found.append(block(F.max_pool2d(found[-1], 2)))
        made = found.pop()
        for block in self.up:
            finer = found.pop()
            made = F.interpolate(made, size=finer.shape[-2:], mode="bilinear", align_corners=False)
            made = block(torch.cat([finer, made], 1))
        logits: Tensor = self.head(made)
        return logits


def two_convolutions(before: int, after: int) -> nn.Sequential:
    """From (B, before, H, W) to (B, after, H, W): 3x3, with batch norms and ReLUs (He et al., 2015, for their init)."""
    layers: list[nn.Module] = []
    for inputs in (before, after):
        conv = nn.Conv2d(inputs, after, 3, padding=1, bias=False)
        nn.init.normal_(conv.weight, std=math.sqrt(2 / (9 * inputs)))
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
