"""timm's networks, by `timm/NAME` or `timm/NAME.TAG`, made for images of one size; timm is imported when one is named.

Source: Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..entry import rank
from ..errors import InputError
from ..terminal import say

PREFIX = "timm/"


def build(name: str, outputs: int, image_size: int, drop_path: float | None = None) -> nn.Module:
    """A network from images (B, 3, S, S) to (B, outputs), with random weights.

    Args:
        name: `timm/NAME`, with or without the tag of published weights behind a dot.
        outputs: classes, or numbers to predict.
        image_size: S, in pixels; networks that are made for one size, such as transformers, are made for it.
        drop_path: rate of stochastic depth; None: what the network has.

    Raises InputError where timm is not installed, or has no such network, or none of this size or with such a rate.
    """
    config = published(name)
    options: dict[str, Any] = {"num_classes": outputs, "drop_path_rate": drop_path}
    if config.fixed_input_size and config.input_size[-1] != image_size:
        options["img_size"] = image_size
    try:
        network: nn.Module = _timm().create_model(name.removeprefix(PREFIX), **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        if "drop_path_rate" in str(error):
            raise InputError(f"model.drop_path: {name} has no stochastic depth, leave it null") from None
        made_for = config.input_size[-1]
        raise InputError(
            f"model.backbone {name} cannot be made for a data.image_size of {image_size} pixels"
            f" ({str(error).splitlines()[0] if str(error) else type(error).__name__}): {made_for} would do"
        ) from None
    return network


def names() -> list[str]:
    """The networks that timm has, without PREFIX."""
    return list(_timm().list_models())


def published(name: str) -> Any:
    """timm's description of the network and of its published weights. Raises InputError for one that it has not."""
    timm = _timm()
    network, _, tag = name.removeprefix(PREFIX).partition(".")
    if not timm.is_model(network):
        near = difflib.get_close_matches(network, timm.list_models(), 3) or ["resnet50", "convnext_tiny"]
        raise InputError(
            f"model.backbone {name}: timm {timm.__version__} has no network {network!r}; probably"
            f" {' or '.join(PREFIX + one for one in near)} was meant"
        )
    tags = [one.partition(".")[2] for one in timm.list_models(f"{network}.*", pretrained=True)]
    if tag and tag not in tags:
        near = difflib.get_close_matches(tag, tags, 3, 0.0) or ["no tag"]
        raise InputError(f"model.backbone {name}: {network} has no published weights {tag!r}; it has {', '.join(near)}")
    return timm.models.get_pretrained_cfg(name.removeprefix(PREFIX), allow_unregistered=True)


def fetch(name: str) -> dict[str, Tensor]:
    """The published weights of a network, from timm's cache or from where they are published, by timm's names.

    Raises InputError, which says which file to get by another way, where they cannot be had.
    """
    config = published(name)
    if not config.hf_hub_id:
        return _from_url(name, config.url)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from timm.models import load_state_dict_from_hf

    file = config.hf_hub_filename or "model.safetensors"
    if not rank():
        say(f"model.weights: {name} from huggingface.co/{config.hf_hub_id}, once")
    loud = logging.getLogger("huggingface_hub")
    level = loud.level
    loud.setLevel(logging.ERROR)  # it tells of each of its tries
    try:
        if not config.hf_hub_filename:
            try:  # where there is no network, one file's tries are enough
                hf_hub_download(config.hf_hub_id, file)
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                file = "pytorch_model.bin"
        state: dict[str, Tensor] = load_state_dict_from_hf(config.hf_hub_id, file, weights_only=True)
    except Exception as error:  # of the hub's, of its client's, of a damaged file
        raise InputError(
            f"model.weights: cannot fetch the weights of {name} ({type(error).__name__}): get the file {file} of"
            f" https://huggingface.co/{config.hf_hub_id} where there is a network, and give --model.weights FILE"
        ) from None
    finally:
        loud.setLevel(level)
    return state


def _from_url(name: str, url: str) -> dict[str, Tensor]:
    try:
        return dict(torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True))
    except Exception as error:  # urllib's, or of a file that is another
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"model.weights: cannot fetch {url} ({type(error).__name__}); put that file into {folder}, or give it with"
            " --model.weights FILE"
        ) from None


def adapted(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as `network` has them: timm turns those of other programs, and of other image sizes, into its own form.

    What its function for that cannot read is handed back as it was.
    """
    turn = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if turn is None:
        return dict(state)
    try:
        return dict(turn(dict(state), network))
    except Exception:  # it expects weights of this network
        return dict(state)


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise InputError("model.backbone timm/...: timm is not installed; `uv sync --extra timm` brings it") from None
    return timm
