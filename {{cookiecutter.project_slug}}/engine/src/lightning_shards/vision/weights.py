"""Weights to start from: published ones by name, those of a checkpoint, or those of a file of another program."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from ..errors import InputError
from . import detection, segmentation, timm_models, torchvision_models, weight_files
from .pretrained import USUAL_SIZE, Pretrained
from .weight_fit import fit

PUBLISHED = "imagenet"
_RENORMALISED = ("inception_v3", "googlenet")  # their published form shifts ImageNet's mean and deviation to these
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Weights:
    """Weights for the network `name`, which are read when they are loaded.

    Attributes:
        source: what a person has called them.
        about: what they expect of images.
        read: their tensors by name, for the network that is to take them.
        of: the network that they were trained in, where it is known.
        part: how the names of the network's tensors begin that they are for; the rest starts anew.
    """

    name: str
    source: str
    about: Pretrained
    read: Callable[[nn.Module], Mapping[str, Tensor]]
    of: str = ""
    part: str = ""

    def load_into(self, network: nn.Module) -> None:
        """Copy them; `network.pretrained` then says what they expect. Layers at both ends that have another shape, as
        the last one for other classes, start anew.

        Raises InputError where they cannot be had, or are another network's.
        """
        anew = fit(network, self.read(network), self.name, self.source, self.of, self.part)
        network.pretrained = replace(self.about, anew=anew)  # type: ignore[assignment]


def find_weights(name: str, weights: str | None) -> Weights | None:
    """What `model.weights` names for the backbone `name`; None for random weights.

    Args:
        weights: `imagenet`, or a file: a checkpoint of this project, a state dict (.pth, .pt) or a .safetensors.

    Raises InputError where there is no such file, or nothing published for this backbone.
    """
    if not weights:
        return None
    if weights == PUBLISHED:
        return _published(name)
    file = weight_files.read(Path(weights))
    if file.settings is not None:
        size, kept = file.settings.get("image_size"), file.settings.get("pretrained")
        about = Pretrained().updated(kept or {})
        about = replace(about, image_size=size if isinstance(size, int) else about.image_size)
        of = str(file.settings.get("backbone") or "")[:80]
        return Weights(name, weights, about, lambda n: _in_form(name, n, file.state) if of == name else file.state, of)
    about = replace(_about(name, Path(weights).name), large_stem=True)
    return Weights(name, weights, about, lambda network: _in_form(name, network, file.state))


def image_size_of(backbone: str = "", weights: str | None = None, pretrained: Mapping[str, Any] | None = None) -> int:
    """Side of the images, in pixels, that weights were trained on; 224 where it is not known, or there are none.

    The arguments are the model's settings of these names.
    """
    about = Pretrained()
    with suppress(InputError, OSError):  # whoever loads them says why
        found = find_weights(backbone, weights)
        about = found.about if found else about
    with suppress(InputError):
        about = about.updated(pretrained or {})
    return about.image_size or USUAL_SIZE


def _published(name: str) -> Weights:
    task = detection if name in detection.names() else segmentation
    if encoder := task.encoder(name):
        about, part = replace(_about(encoder), large_stem=True), task.ENCODER
        return Weights(name, PUBLISHED, about, lambda n: _encoder(n, _fetch(encoder), part), name, part)
    about = replace(_about(name), large_stem=True)
    timms = name.startswith(timm_models.PREFIX)
    if not (timm_models.published(name).has_weights if timms else name in torchvision_models.names()):
        raise InputError(f"model.weights imagenet: {name} has no published weights; choose another backbone")
    if timms:
        return Weights(name, PUBLISHED, about, lambda n: timm_models.adapted(n, timm_models.fetch(name)), name)
    return Weights(name, PUBLISHED, about, lambda n: torchvision_models.adapted(n, _fetch(name)), name)


def _fetch(name: str) -> Mapping[str, Tensor]:
    chosen = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state: Mapping[str, Tensor] = chosen.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # urllib's, or of a file that is another, or damaged
        folder, why = Path(torch.hub.get_dir()) / "checkpoints", textwrap.shorten(str(error), 200, placeholder=" ...")
        raise InputError(
            f"model.weights: cannot fetch {chosen.url} ({why or type(error).__name__}); put that file into {folder},"
            " in place of what is there, or give it with --model.weights FILE"
        ) from None
    return state


def _encoder(network: nn.Module, state: Mapping[str, Tensor], part: str) -> Mapping[str, Tensor]:
    """A classification network's weights as those of an encoder; what is behind that stays away."""
    own = network.state_dict()
    named = {f"{part}{key.removeprefix('features.')}": value for key, value in state.items()}  # of MobileNet
    return {key: value for key, value in named.items() if key in own}


def _in_form(name: str, network: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """As they are where they fit, else turned into the network's form, as of another program or image size."""
    own = network.state_dict()
    if all(key in own and own[key].shape == value.shape for key, value in state.items()):
        return state
    if name.startswith(timm_models.PREFIX):
        return timm_models.adapted(network, state)
    return torchvision_models.adapted(network, state)


def _about(name: str, file: str = "") -> Pretrained:
    """What published weights of a backbone expect; `file` is the name of the one that has them, where it is known."""
    if name.startswith(timm_models.PREFIX):
        config = timm_models.published(name)
        return Pretrained(tuple(config.mean), tuple(config.std), int(config.input_size[-1]))
    if name not in torchvision_models.names():
        return Pretrained()
    every = torchvision.models.get_model_weights(name)
    chosen = next((one for one in every if one.url.endswith("/" + file)), every.DEFAULT)
    look: Any = chosen.transforms()
    half = name in _RENORMALISED
    mean, std = (_HALF, _HALF) if half else (tuple(look.mean), tuple(look.std))
    return Pretrained(mean, std, int(look.crop_size[0]))
