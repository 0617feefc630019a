"""Backbones by name: every classification network of torchvision, and `small_cnn` for tiny images and slow machines."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torchvision
from lightning_shards.errors import InputError
from torch import Tensor, nn

SMALL_IMAGE = 64  # below this side, a stem made for 224 pixels would throw most of the picture away
_NO_LOGITS = {"inception_v3": {"aux_logits": False}, "googlenet": {"aux_logits": False}}


def names() -> list[str]:
    """All names that `build` knows."""
    return ["small_cnn", *torchvision.models.list_models(module=torchvision.models)]


def build(name: str, outputs: int, image_size: int, weights: str | None = None) -> nn.Module:
    """A network from images (B, 3, S, S) to (B, outputs).

    Args:
        name: one of `names()`.
        outputs: classes, or numbers to predict.
        image_size: S, in pixels. Below 64 the stem is replaced by one that keeps the resolution.
        weights: `imagenet` (torchvision's best; downloaded once), a checkpoint of this project, or None. What does not
            fit in shape, as the last layer for other classes, starts anew.

    Raises InputError for an unknown name, an image size that is too small for the network, or weights that do not fit.
    """
    if name not in names():
        near = ", ".join(n for n in names() if n[:4] == name[:4]) or "small_cnn, resnet18, convnext_tiny, vit_b_16"
        raise InputError(f"model.backbone {name!r} is not known; there are for instance {near} (all of torchvision's)")
    small = image_size < SMALL_IMAGE and weights != "imagenet"
    if name == "small_cnn":
        model: nn.Module = SmallCNN(outputs)
    elif name.startswith(("vit_", "maxvit_", "swin")):
        model = _transformer(name, outputs, image_size, small)
    else:
        extra = _NO_LOGITS.get(name, {}) | ({"init_weights": True} if name in _NO_LOGITS else {})
        model = torchvision.models.get_model(name, weights=None, num_classes=outputs, **extra)
        if small:
            keep_resolution(model)
    if weights:
        load_weights(model, name, weights)
    return model


def _transformer(name: str, outputs: int, image_size: int, small: bool) -> nn.Module:
    """Transformers fix their grid when they are made: choose patches that divide the image."""
    if name.startswith("vit_"):
        patch = given = int(name.rsplit("_", 1)[1])
        if small:
            patch = next(p for p in (4, 2, 7, 5, 3, 1) if image_size % p == 0)
        if image_size % patch:
            raise InputError(
                f"model.backbone {name} needs a data.image_size that is a multiple of {patch}:"
                f" {image_size // patch * patch or patch} would do"
            )
        model = torchvision.models.get_model(
            name, weights=None, num_classes=outputs, image_size=image_size // patch * given
        )
        if small:  # the same grid of smaller patches
            model.image_size, model.patch_size = image_size, patch
            model.conv_proj = nn.Conv2d(3, model.hidden_dim, patch, stride=patch)
        return model
    if name.startswith("maxvit_"):
        if image_size % 224:
            raise InputError(f"model.backbone {name} works with data.image_size 224 or a multiple of it only")
        return torchvision.models.get_model(
            name, weights=None, num_classes=outputs, input_size=(image_size, image_size)
        )
    model = torchvision.models.get_model(name, weights=None, num_classes=outputs)
    if small:
        keep_resolution(model)
    return model


def keep_resolution(model: nn.Module) -> None:
    """Fit a network's stem to tiny images: the first strided convolution keeps the resolution (patches of 4 become
    patches of 2), and the first max-pooling behind it goes. As for CIFAR in He et al., 2015, section 4.2."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.stride[0] == 1:
                return
            patches = module.kernel_size == module.stride
            kernel = module.kernel_size[0] // 2 if patches else min(3, module.kernel_size[0])
            stem = nn.Conv2d(
                module.in_channels,
                module.out_channels,
                kernel,
                stride=kernel if patches else 1,
                padding=0 if patches else kernel // 2,
                bias=module.bias is not None,
            )
            nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
            model.set_submodule(path, stem)
            break
    for path, module in model.named_modules():
        if isinstance(module, nn.MaxPool2d):
            model.set_submodule(path, nn.Identity())
            return


def load_weights(model: nn.Module, name: str, weights: str) -> None:
    """Copy what fits in name and shape from `imagenet` or a checkpoint into `model`."""
    if weights == "imagenet":
        if name == "small_cnn":
            raise InputError("model.weights imagenet: small_cnn has no published weights; choose another backbone")
        chosen = torchvision.models.get_model_weights(name).DEFAULT
        try:
            state = chosen.get_state_dict(progress=True, check_hash=True)
        except OSError as error:  # urllib's errors too
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise InputError(
                f"model.weights: cannot fetch {chosen.url} ({error}); put that file into {folder}"
            ) from None
    else:
        path = Path(weights)
        if not path.is_file():
            raise InputError(f"model.weights: there is no file {path}; give a checkpoint, or `imagenet`")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        except Exception as error:
            raise InputError(
                f"model.weights: {path} is no checkpoint of this project ({type(error).__name__})"
            ) from None
        state = {key.removeprefix("backbone."): value for key, value in content.items() if key.startswith("backbone.")}
    own = model.state_dict()
    fits = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if len(fits) < 0.5 * len(own):
        raise InputError(
            f"model.weights: {weights} fits only {len(fits)} of {len(own)} tensors of {name}; is it another backbone's?"
        )
    model.load_state_dict(fits, strict=False)


class SmallCNN(nn.Module):
    """Six 3x3 convolutions in three stages and a linear head: 0.3 million parameters, for images of about 28 pixels.

    Shapes: images (B, 3, S, S) -> features (B, 128) -> (B, outputs).
    """

    def __init__(self, outputs: int, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [*_conv_block(before, width), *_conv_block(width, width), nn.MaxPool2d(2)]
            before = width
        self.features = nn.Sequential(*layers[:-1])
        self.head = nn.Linear(before, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean(dim=(2, 3)))


def _conv_block(before: int, after: int) -> list[nn.Module]:
    conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / (9 * before)))
    return [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]


@torch.no_grad()
def check_input(model: nn.Module, image_size: int) -> None:
    """Raise InputError where the network cannot take images of this size; costs one image."""
    training = model.training
    try:
        model.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"the backbone cannot take images of {image_size} pixels ({str(error).splitlines()[0]});"
            " set data.image_size or choose another backbone"
        ) from None
    finally:
        model.train(training)
