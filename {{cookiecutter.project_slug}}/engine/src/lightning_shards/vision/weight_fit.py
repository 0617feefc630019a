"""Whether weights are those of a network, tensor by tensor; where they are not, whose they probably are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torchvision
from torch import Tensor, nn

from ..errors import InputError
from . import timm_models, torchvision_models
from .blocks import blocks

_STATISTICS = ("running_mean", "running_var")  # buffers without which a network does not compute the same
_NO_PARAMETERS = (*_STATISTICS, "num_batches_tracked", "relative_position_index", "relative_coords_table")
_HEADS = (
    "aux",
    "AuxLogits",
    "head",
    "fc",
    "classifier",
    "norm",
    "pre_logits",
)  # beginnings of parts that files may have beside
_PUBLISHED_OUTPUTS = 1000  # ImageNet's classes


def fit(
    network: nn.Module, state: Mapping[str, Tensor], name: str, source: str, of: str = "", part: str = ""
) -> tuple[str, ...]:
    """Copy `state` into `network`; names of the network's tensors that start anew.

    Those may be of the head, which has other classes, and of the stem, which has another form for tiny images.

    Args:
        name: of the network.
        source: what a person has called the weights.
        of: the network that they were trained in; empty: not known.
        part: how the names of the tensors begin that have to come with them.

    Raises InputError where other tensors are missing or of another shape, without having changed the network.
    """
    own = network.state_dict()
    missing = [key for key in own if key not in state and _matters(network, key)]
    beside = {key for key in own if not key.startswith(part)}
    other = [key for key, value in own.items() if key in state and state[key].shape != value.shape]
    parts = blocks(network)
    loose = beside | {*parts[-1], *(key for key in parts[0] if key in state)} if parts else beside
    absent, unlike = ([key for key in keys if key not in loose] for keys in (missing, other))
    more = [key for key in state if key not in own and not key.startswith(_HEADS) and not key.endswith(_NO_PARAMETERS)]
    if absent or unlike or (more and of != name):
        probably = of if of and of != name else "" if of else probable(state) or _by_name(name, source)
        raise InputError(
            f"model.weights: {source} does not fit {name}, which has {len(own)} tensors:"
            f" {_told(absent, unlike, more, own, state)}; it is probably of another backbone"
            f"{f', {probably}' if probably else ''}"
        )
    fits = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    network.load_state_dict(fits, strict=False)
    return tuple(key for key in own if key in {*missing, *other})


def _matters(network: nn.Module, key: str) -> bool:
    """Whether a tensor of the network has to come with the weights: not what its constructor computes."""
    path, _, last = key.rpartition(".")
    return last in _STATISTICS or last in network.get_submodule(path)._parameters


def _told(
    absent: list[str], unlike: list[str], more: list[str], own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> str:
    """How many tensors are missing, of another shape or too many, and a few of them."""
    shapes = [f"{key} is {_shape(state[key])}, not {_shape(own[key])}" for key in unlike]
    parts = {"are missing": absent, "are of another shape": shapes, "are not the network's": more}
    return ", ".join(f"{len(names)} {what} ({_few(names)})" for what, names in parts.items() if names)


def _few(texts: list[str]) -> str:
    return ", ".join(texts[:3]) + (", ..." if len(texts) > 3 else "")


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"


def _by_name(name: str, source: str) -> str:
    """The network by whose name the file `source` is called; empty: none is known. Of timm's, where `name` is one."""
    prefix = timm_models.PREFIX if name.startswith(timm_models.PREFIX) else ""
    names = timm_models.names() if prefix else torchvision_models.names()
    called = max((one for one in names if Path(source).name.startswith(one)), key=len, default="")
    return prefix + called if called and prefix + called != name else ""


def probable(state: Mapping[str, Tensor]) -> str:
    """The network of torchvision that has as many parameters as `state`, but for its last layer; empty: none has."""
    own = {key: value for key, value in state.items() if not key.endswith(_NO_PARAMETERS)}
    last = next((key for key, value in reversed(own.items()) if value.ndim > 1), "")
    if not last:
        return ""
    outputs = own[last].shape[0]
    head = own[last].numel() + outputs * (last.removesuffix("weight") + "bias" in own)
    count = sum(value.numel() for value in own.values()) - head + head // outputs * _PUBLISHED_OUTPUTS
    for name in torchvision_models.names():
        if torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] == count:
            return name
    return ""
