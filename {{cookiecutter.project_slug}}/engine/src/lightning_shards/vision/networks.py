"""Networks of torchvision and timm by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import InputError
from . import detection, segmentation, timm_models, torchvision_models
from .pretrained import Pretrained
from .torchvision_models import SMALL_IMAGE
from .weights import Weights

_OF_TASK = {  # what its networks give, their names, and what the samples need for them
    "segmentation": ("class for each pixel", segmentation.names, "masks"),
    "detection": ("boxes", detection.names, "boxes"),
}


def check_name(name: str, own: Sequence[str], task: str = "") -> None:
    """Raise InputError, with what was probably meant, for a name that is neither torchvision's, nor timm's, nor in
    `own`; and for a network that is for another `task`."""
    if task in _OF_TASK:
        gives, names, _ = _OF_TASK[task]
        if name not in names():
            raise InputError(f"model.backbone {name!r} gives no {gives}; there are {', '.join(names())}")
        return
    for gives, names, needed in _OF_TASK.values():
        if name in names():
            article = "" if gives == needed else "a "
            raise InputError(f"model.backbone {name} gives {article}{gives}, and the dataset has no {needed}")
    if name.startswith(timm_models.PREFIX):
        timm_models.published(name)
        return
    known = [*own, *torchvision_models.names()]
    if name not in known:
        near = difflib.get_close_matches(name, known, 3) or ["small_cnn", "resnet18", "convnext_tiny", "vit_b_16"]
        raise InputError(
            f"model.backbone {name!r} is not known; probably {' or '.join(near)} was meant (all of torchvision's are"
            f" known, and all of timm's as {timm_models.PREFIX}NAME)"
        )


def build(
    name: str,
    outputs: int,
    image_size: int,
    start: Weights | None = None,
    pretrained: Mapping[str, Any] | None = None,
    drop_path: float | None = None,
) -> nn.Module:
    """A network from images (B, 3, S, S) to (B, outputs), with random weights, into which `start` will fit.

    Those of `segmentation.names()` give (B, outputs, S, S), those of `detection.names()` maps for `outputs` classes.

    Args:
        name: of torchvision, or `timm/NAME`.
        outputs: classes, or numbers to predict.
        image_size: S, in pixels. Below 64 torchvision's stems are replaced by those that keep the resolution, but not
            for published weights, which were trained with theirs.
        start: weights that will be loaded into it.
        pretrained: what is known of such that were, as in `Pretrained.settings`.
        drop_path: rate of stochastic depth of timm's networks; None: what the network has.

    Raises InputError for an image size that the network cannot have.
    """
    if name in segmentation.names():
        return segmentation.build(name, outputs)
    if name in detection.names():
        return detection.build(name, outputs, image_size)
    if name.startswith(timm_models.PREFIX):
        return timm_models.build(name, outputs, image_size, drop_path)
    about = (start.about if start else Pretrained()).updated(pretrained or {})
    small = image_size < SMALL_IMAGE and not about.large_stem
    return torchvision_models.build(name, outputs, image_size, small)
