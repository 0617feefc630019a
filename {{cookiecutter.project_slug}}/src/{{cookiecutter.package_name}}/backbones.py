"""Backbones by name: every classification network of torchvision and, as `timm/NAME`, of timm; for masks and
boxes torchvision's for those; and some `small_...` ones for tiny images and slow machines.

Another network is another name in `build`: any module from images (B, 3, S, S) to (B, outputs). `linear` and `mlp` take
features that `embed` made of the images.
"""

from __future__ import annotations

from typing import Any

from lightning_shards.errors import InputError
from lightning_shards.vision import depth, networks
from lightning_shards.vision.segmentation import two_convolutions
from lightning_shards.vision.weights import find_weights
from torch import Tensor, nn

HEADS = ("linear", "mlp")  # on features that `embed` made
SMALL = {"small_cnn": (32, 64, 128), "small_cnn_wide": (32, 128, 256)}  # channels of the three stages


def build(
    name: str,
    outputs: int,
    image_size: int,
    weights: str | None = None,
    features: list[int] | None = None,
    pretrained: dict[str, Any] | None = None,
    drop_path: float | None = None,
    task: str = "",
) -> nn.Module:
    """A network from images (B, 3, S, S), or from `features`, to (B, outputs).

    Args:
        name: `small_cnn`, `small_cnn_wide`, `linear`, `mlp`, a network of torchvision, or `timm/NAME`.
        outputs: classes, or numbers to predict.
        image_size: S, in pixels. Below 64 the stem is replaced by one that keeps the resolution.
        weights: `imagenet` (the best published ones; downloaded once), a checkpoint of this project, a file of
            torchvision's or timm's weights, or None. A last layer for other classes starts anew.
        features: [F] where the network takes features (B, F) in place of images: `linear` or `mlp`.
        pretrained: what is known already of weights that are loaded later.
        drop_path: rate of stochastic depth; None: what the network has.
        task: segmentation wants a class for each pixel, (B, outputs, S, S): small_unet, fcn_*, deeplabv3_* or lraspp_*;
            detection boxes: small_detector, fasterrcnn_*, fcos_*, retinanet_* or ssd*; others one output of each class.

    Raises InputError for an unknown name, an image size that is too small for the network, or weights that do not fit.
    """
    networks.check_name(name, (*SMALL, *HEADS), task)
    if (name in HEADS) != bool(features):
        takes = "images, not features: linear or mlp take those" if features else "features: name some in data.features"
        raise InputError(f"model.backbone {name} takes {takes}")
    start = find_weights(name, weights)
    if features:
        model: nn.Module = _head(name, features[0], outputs)
    elif name in SMALL:
        model = SmallCNN(outputs, SMALL[name])
    else:
        model = networks.build(name, outputs, image_size, start, pretrained, drop_path)
    if drop_path is not None:
        depth.drop_paths(model, name, drop_path)
    if start:
        start.load_into(model)
    return model


def _head(name: str, inputs: int, outputs: int) -> nn.Module:
    """Features are first normalised by the statistics of the training: one learning rate fits whatever made them."""
    norm = nn.BatchNorm1d(inputs, affine=False)
    if name == "linear":
        return nn.Sequential(norm, nn.Linear(inputs, outputs))
    return nn.Sequential(norm, nn.Linear(inputs, inputs), nn.GELU(), nn.Dropout(0.1), nn.Linear(inputs, outputs))


class SmallCNN(nn.Module):
    """Six 3x3 convolutions in three stages and a linear head, for images of about 28 pixels: 0.3 million parameters,
    or 1.1 where it is wide, which takes twice the time.

    Shapes: images (B, 3, S, S) -> features (B, F), F of the last stage -> (B, outputs).
    """

    def __init__(self, outputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [*two_convolutions(before, width), nn.MaxPool2d(2)]
            before = width
        self.features = nn.Sequential(*layers[:-1])
        self.head = nn.Linear(before, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean(dim=(2, 3)))
