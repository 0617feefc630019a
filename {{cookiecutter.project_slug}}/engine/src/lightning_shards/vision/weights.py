"""Weights to start from: torchvision's of ImageNet, or those of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from torch import nn

from ..errors import InputError


def load_weights(model: nn.Module, name: str, weights: str) -> None:
    """Copy what fits in name and shape from `imagenet` or a checkpoint into `model`."""
    if weights == "imagenet":
        if name not in torchvision.models.list_models(module=torchvision.models):
            raise InputError(f"model.weights imagenet: {name} has no published weights; choose another backbone")
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
