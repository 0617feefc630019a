"""Files of weights, which somebody else may have made: tensors are read from them, and never code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

_INSIDE = ("state_dict", "model", "model_state_dict")  # where programs put the weights in what they save


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        state: tensors by name, as the network that they are of has them.
        settings: of the model, where it is a checkpoint of this project; None: it is another program's.
    """

    state: dict[str, Tensor]
    settings: dict[str, Any] | None = field(default=None)


def read(path: Path) -> WeightFile:
    """A checkpoint of this project, a state dict that torch.save wrote (.pth, .pt), or a .safetensors.

    Raises InputError for any other file, and for one that holds more than plain values and tensors.
    """
    if not path.is_file():
        raise InputError(
            f"model.weights: there is no file {path}; give a checkpoint, a state dict (.pth, .pt, .safetensors), or"
            " `imagenet`"
        )
    try:
        content = _content(path)
    except InputError:
        raise
    except Exception as error:  # whatever a file of another kind makes of it; pickled objects are refused
        raise InputError(
            f"model.weights: {path} is no checkpoint, state dict or .safetensors that can be read"
            f" ({type(error).__name__})"
        ) from None
    settings = _settings(content)
    for name in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    state = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        raise InputError(f"model.weights: {path} is no checkpoint and no state dict: it holds no tensors by name")
    own = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    if own:
        return WeightFile(own, settings)
    return WeightFile({k.removeprefix("module."): v for k, v in state.items()})  # of DistributedDataParallel


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise InputError(
                f"model.weights {path}: safetensors is not installed; `uv sync --extra timm` brings it"
            ) from None
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _settings(content: Any) -> dict[str, Any]:
    """Settings of the model in a checkpoint of this project; empty where there are none."""
    for name in ("hyper_parameters", "model_settings"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping) and content[name]:
            return dict(content[name])
    return {}
