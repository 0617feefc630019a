"""What the options of `embed` name: a run's best weights, a checkpoint or a backbone by name, and how it looks."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

from ..data.checks import check_settings
from ..data.crop import CROP_SETTINGS, Crop
from ..data.dataset import TARGET_FIELDS, Dataset
from ..data.embedding import FEATURES, MOST_VIEWS, TEACHER
from ..data.fields import resolve_fields
from ..data.opening import open_dataset
from ..errors import InputError
from ..runs.checkpoints import load
from ..runs.folder import RUNS, find
from ..train.contract import has_features, inputs, title
from ..train.datamodule import ShardDataModule, as_set
from ..train.trained_model import best_model, image_size_of_checkpoint, make, restore
from ..vision.pretrained import USUAL_SIZE
from ..vision.weights import image_size_of
from .embed import Embedder, Look

RANDOM = "none"  # in place of weights
RANDOM_CROPS = ("crop_scale", "crop_ratio", "flip", "seed")  # options that are for them
Classes = tuple[type[LightningModule], type[ShardDataModule]]


def embedder(
    model_class: type[LightningModule],
    options: Mapping[str, Any],
    datamodule_class: type[ShardDataModule] = ShardDataModule,
) -> Embedder:
    """What the options of `embed` name, with its processes launched. Raises InputError for what cannot be done."""
    views, seed, batch_size = options["views"], options["seed"], options["batch_size"]
    check_settings({"batch_size": batch_size, "seed": seed}, "--")
    if batch_size < views <= MOST_VIEWS:
        raise InputError(f"--batch-size {batch_size} is less than the --views {views} of one image: raise it")
    for name in RANDOM_CROPS if views == 1 else ():
        if options[name] is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is for random crops, and one view is the image's centre: add --views 2 or"
                " more, or leave it out"
            )
    dataset = open_dataset(options["dataset"])
    model, settings = open_network(
        (model_class, datamodule_class),
        options["network"],
        options["weights"],
        options["image_size"],
        dataset,
        options["scores"],
    )
    size = (settings.get("image_size") or USUAL_SIZE) if options["image_size"] is None else options["image_size"]
    given = {name: settings.get(name) if options[name] is None else options[name] for name in CROP_SETTINGS}
    check_settings({"image_size": size, "workers": options["workers"], **given}, "--")
    crop = Crop(size, **{CROP_SETTINGS[name]: value for name, value in given.items() if value is not None})
    look = Look(crop, views, seed or 0, batch_size, options["workers"])
    return Embedder(
        model,
        title(model),
        options["scores"],
        dataset,
        options["name"] or (TEACHER if options["scores"] else FEATURES),
        look,
        resolve_fields(dataset, as_set(datamodule_class, "fields")),
        as_set(datamodule_class, "transform"),
        options["devices"],
        options["force"] or options["forecast"],
    )


def open_network(
    classes: Classes, name: str, weights: str | None, image_size: int | None, dataset: Dataset, scores: bool
) -> tuple[Any, dict[str, Any]]:
    """A model on the CPU, and the `data` settings that it was trained with, as far as they are known.

    Args:
        classes: of the team's model, and of what hands out its data.
        name: of a run, `last`, a checkpoint's file, or a backbone.
        weights: of a backbone: `imagenet`, which None stands for, a checkpoint, or RANDOM.
        image_size: of a backbone.
        dataset: what it will look at.
        scores: whether its scores are wanted; else its features.

    Raises InputError for what is none of these, and for a model that does not look at images alone.
    """
    model, settings = _opened(classes, name, weights, image_size, dataset)
    if scores and inputs(model, "used as a teacher") != ("image",):
        raise InputError(f"the model {type(model).__name__} looks at more than images, and embed at images alone")
    if not scores and not has_features(model):
        raise InputError(
            f"the model {type(model).__name__} has no method features(image), so nothing but its scores can be kept:"
            " give it one that makes numbers (B, F) of images in 0..255, or add --scores"
        )
    if tuple(getattr(model, "inputs", ("image",))) != ("image",):
        raise InputError(f"the model {type(model).__name__} looks at {' and '.join(model.inputs)}, not at images")
    return model, settings


def _opened(
    classes: Classes, name: str, weights: str | None, image_size: int | None, dataset: Dataset
) -> tuple[Any, dict[str, Any]]:
    path, (model_class, datamodule_class) = Path(name), classes
    run = name == "last" or path.parent == RUNS or (RUNS / name).is_dir()
    if weights is not None and (run or path.is_file()):
        raise InputError(f"--weights is of a backbone by its name, and {name} has weights of its own: leave it out")
    if path.is_file():
        saved = load(path)
        return restore(model_class, saved, path), {"image_size": image_size_of_checkpoint(saved)}
    if run:
        model, config = best_model(model_class, find(name), datamodule_class)
        return model, config["data"]
    known = inspect.signature(model_class).parameters
    if "backbone" not in known:
        raise InputError(f"there is no run and no checkpoint {name!r}, and the model has no setting `backbone`")
    if weights is not None and "weights" not in known:
        raise InputError(f"the model {model_class.__name__} has no setting `weights`: leave out --weights")
    weights = None if weights == RANDOM else weights or "imagenet"
    given: dict[str, Any] = {
        "backbone": name,
        "weights": weights,
        "image_size": image_size or image_size_of(name, weights),
    }
    task = "single_label" if dataset.task in ("", *TARGET_FIELDS) else dataset.task  # of images, whatever they are for
    given |= {"targets": list(dataset.targets) or ["none"], "task": task}
    torch.manual_seed(0)
    try:
        return make(model_class, {key: value for key, value in given.items() if key in known}), given
    except Exception as error:  # of the team's constructor and of the parser, too
        why = textwrap.shorten(str(error), 600, placeholder=" ...")
        raise InputError(f"{name!r} is no run and no checkpoint; as a backbone: {why}") from None
