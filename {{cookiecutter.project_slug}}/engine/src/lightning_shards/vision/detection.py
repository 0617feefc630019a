"""Networks that find boxes: torchvision's, and one for small images and slow machines.

Shapes: B rows, H and W of the images, T classes; h and w are H and W over STRIDE.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from .boxes import MOST, NONE, NOWHERE, there
from .segmentation import two_convolutions

SMALL = "small_detector"
ENCODER = "network.backbone.body."  # how the names of an encoder's tensors begin in torchvision's networks
STRIDE = 4  # pixels of the image to one place of the maps
RARE = 0.01  # what each place says of each class at first: nearly all places are empty


def names() -> list[str]:
    """All networks that `build` knows."""
    known = torchvision.models.list_models(module=torchvision.models.detection)
    return [SMALL, *(name for name in known if not name.startswith(("maskrcnn", "keypointrcnn")))]


def encoder(name: str) -> str:
    """The classification network whose weights the encoder of one of torchvision's begins with; empty for others."""
    if name not in names() or "_fpn" not in name:
        return ""
    return "mobilenet_v3_large" if "mobilenet" in name else "resnet50"


def build(name: str, classes: int, image_size: int) -> nn.Module:
    """A network from images (B, 3, H, W), with random weights; `name` is one of `names()`."""
    if name == SMALL:
        return SmallDetector(classes)
    as_it_comes: dict[str, Any] = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}  # the model has normalised already
    if not name.startswith("ssd"):  # whose images have one size, whatever comes
        as_it_comes |= {"min_size": image_size, "max_size": image_size}
    network = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=classes + 1, **as_it_comes
    )
    return Detector(network)


class Detector(nn.Module):
    """One of torchvision's networks for boxes, which have their loss within themselves.

    Shapes: images (B, 3, H, W) -> boxes (B, N, 6), as in `boxes`; in training, images and the truth, (B, M, 6), ->
    losses, (B,): each row has the mean of all, and 0 where it counts nowhere.
    """

    own_loss = True  # which knows no weights of classes

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, truth: Tensor | None = None) -> Tensor:
        if truth is None:
            return self._boxes(images)
        counts = truth[:, 0, 5] > NOWHERE
        rows = [row for row, counted in zip(zip(images, truth, strict=True), counts.tolist(), strict=True) if counted]
        if not rows:
            return truth.new_zeros(len(images)) + 0 * sum(p.sum() for p in self.parameters())
        known = [one[there(one)] for _, one in rows]
        targets = [{"boxes": one[:, :4], "labels": one[:, 5].long() + 1} for one in known]  # 0 is the background
        losses: dict[str, Tensor] = self.network([image for image, _ in rows], targets)
        return torch.where(counts, sum(losses.values()), 0.0)  # type: ignore[arg-type]

    def _boxes(self, images: Tensor) -> Tensor:
        found = images.new_full((len(images), MOST, 6), NONE)
        for row, one in zip(found, self.network(list(images)), strict=True):
            parts = one["boxes"], one["scores"][:, None], one["labels"][:, None] - 1
            made = torch.cat([part.to(found.dtype) for part in parts], 1)[:MOST]
            row[: len(made)] = made
        return found


class SmallDetector(nn.Module):
    """At each place of a grid: how sure is it that a thing of each class has its centre here, and where do its edges
    lie? After CenterNet (Zhou et al., Objects as Points, 2019), with 0.5 million parameters.

    Shapes: images (B, 3, H, W) -> maps (B, T + 4, h, w): logits of the classes, then logarithms of the distances to
    the left, top, right and bottom edge, in places. It sees about 60 pixels around each place.
    """

    def __init__(self, classes: int, widths: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        before = (3, *widths[:-1])
        self.down = nn.ModuleList(two_convolutions(one, after) for one, after in zip(before, widths, strict=True))
        self.up = two_convolutions(widths[-1] + widths[-2], widths[-2])
        self.head = nn.Conv2d(widths[-2], classes + 4, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        with torch.no_grad():
            self.head.bias.zero_()[:classes] = math.log(RARE / (1 - RARE))  # type: ignore[union-attr]

    def forward(self, images: Tensor) -> Tensor:
        made, finer = images, images
        for number, block in enumerate(self.down):
            finer, made = made, block(F.max_pool2d(made, 2) if number else made)
        made = F.interpolate(made, size=finer.shape[-2:], mode="bilinear", align_corners=False)
        maps: Tensor = self.head(self.up(torch.cat([finer, made], 1)))
        return maps


def edges(maps: Tensor) -> Tensor:
    """Left, top, right and bottom of the box that each place would have, float (B, 4, h, w)."""
    distances = maps[:, -4:].clamp(max=6).exp()
    return (centres(maps) + distances * distances.new_tensor([-1, -1, 1, 1]).view(4, 1, 1)) * STRIDE


def centres(maps: Tensor) -> Tensor:
    """Where the places lie, x, y, x, y, in places, (4, h, w)."""
    y, x = (torch.arange(size, device=maps.device, dtype=torch.float32) + 0.5 for size in maps.shape[-2:])
    return torch.stack(torch.meshgrid(x, y, indexing="xy") * 2)


def find(maps: Tensor) -> Tensor:
    """The boxes of maps (B, T + 4, h, w): (B, N, 6), as in `boxes`, the surest first: those that none of the places
    around is surer of than they are."""
    heat = maps[:, :-4].sigmoid()
    heat = torch.where(heat == F.max_pool2d(heat, 3, 1, 1), heat, 0.0)
    scores, found = heat.flatten(1).topk(min(MOST, heat[0].numel()))
    places = heat.shape[-2] * heat.shape[-1]
    limit = maps.new_tensor([maps.shape[-1], maps.shape[-2]]).repeat(2).float() * STRIDE
    boxes = edges(maps).flatten(2).transpose(1, 2).gather(1, (found % places)[:, :, None].expand(-1, -1, 4))
    boxes = torch.minimum(boxes.clamp(min=0), limit)
    classes = torch.where(scores > 0, (found // places).float(), NONE)
    return torch.cat([boxes, scores[:, :, None], classes[:, :, None]], 2)


def wanted(maps: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a network should say that gives `maps`, (B, T + 4, h, w), where `truth`, (B, N, 6), is.

    Around the centre of each thing lies a hill of height 1, whose standard deviation is an eighth of the box's sides.

    Returns the hills of each class, (B, T, h, w); the box of the thing whose hill is the highest at each place,
    (B, 4, h, w); and the height of that hill, (B, h, w): how much the box counts there.
    """
    classes, places = maps.shape[1] - 4, centres(maps)[:2]
    boxes, here = truth[:, :, :4] / STRIDE, truth[:, :, 5] >= 0
    middle, size = (boxes[:, :, :2] + boxes[:, :, 2:]) / 2, boxes[:, :, 2:] - boxes[:, :, :2]
    middle = middle.floor() + 0.5  # the place that it lies in, at which the hill is 1
    away = (places - middle[..., None, None]) / (size / 8).clamp(min=0.5)[..., None, None]
    hills = (-away.square().sum(2) / 2).exp() * here[..., None, None]  # (B, N, h, w)
    of_class = truth[:, :, 5].long().clamp(min=0)[..., None, None].expand_as(hills)
    heat = hills.new_zeros(len(maps), classes, *maps.shape[-2:]).scatter_reduce(1, of_class, hills, "amax")
    height, highest = hills.max(1)
    nearest = truth[:, :, :4].transpose(1, 2).gather(2, highest.flatten(1)[:, None].expand(-1, 4, -1))
    return heat, nearest.view(len(maps), 4, *maps.shape[-2:]), height
