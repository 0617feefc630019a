"""torchvision's classification networks for images of any size: stems and patches that fit tiny ones."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from ..errors import InputError

SMALL_IMAGE = 64  # below this side, a stem made for 224 pixels would throw most of the picture away
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")
_NO_LOGITS = {"inception_v3": {"aux_logits": False}, "googlenet": {"aux_logits": False}}


def names() -> list[str]:
    """All networks that `build` knows."""
    return torchvision.models.list_models(module=torchvision.models)


def build(name: str, outputs: int, image_size: int, small: bool) -> nn.Module:
    """A network from images (B, 3, S, S) to (B, outputs), with random weights.

    Args:
        name: one of `names()`.
        outputs: classes, or numbers to predict.
        image_size: S, in pixels.
        small: replace a stem that throws resolution away.

    Raises InputError for an image size that the network cannot have.
    """
    if name.startswith(("vit_", "maxvit_", "swin")):
        return _transformer(name, outputs, image_size, small)
    extra = _NO_LOGITS.get(name, {}) | ({"init_weights": True} if name in _NO_LOGITS else {})
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=outputs, **extra)
    if small:
        keep_resolution(model)
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


def adapted(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights as `network` has them: what DenseNet's were called in older versions, and a vision
    transformer's embeddings of positions, interpolated to its grid (Dosovitskiy et al., 2021, section 3.2)."""
    turned = {_OLD_DENSENET.sub(r"\1", name): value for name, value in state.items()}
    place = turned.get("encoder.pos_embedding")
    if isinstance(network, VisionTransformer) and place is not None and place.ndim == 3:
        grid = round((place.shape[1] - 1) ** 0.5)
        if grid**2 == place.shape[1] - 1 and place.shape[1] != network.seq_length:
            size, patch = network.image_size, network.patch_size
            return dict(interpolate_embeddings(size, patch, OrderedDict(turned)))
    return turned


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
