"""A trained model from a run's folder: what a checkpoint keeps beside the weights, and how the model is made of it."""

from __future__ import annotations

import textwrap
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from jsonargparse import ArgumentParser

from ..data.checks import check_settings
from ..data.embedding import FEATURES, identities
from ..errors import InputError
from ..runs.checkpoints import load
from ..runs.files import changed_on_resume
from ..runs.folder import find
from ..runs.values import is_count
from ..vision.weights import PUBLISHED
from .config_safety import check_names, read_settings
from .datamodule import ShardDataModule
from .parser import shorten
from .run import Run

SETTINGS = "model_settings"  # key of a checkpoint
_FOLLOWED = (
    "data.path",
    "data.image_size",
    "data.eval_crop",
    "trainer.precision",
)  # by whoever measures a trained model


class KeepSettings(L.Callback):
    """Adds to each checkpoint what the model was made of, and what the dataset's targets are.

    So a model can be made again that keeps no hyperparameters of its own, and predictions know their names.

    Args:
        settings: of the constructor, plain values as in config.yaml.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings | {"weights": None} if is_source(settings.get("weights")) else settings

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        data: ShardDataModule = trainer.datamodule  # type: ignore[attr-defined]
        shapes = data.field_shapes
        rows = {name: [shapes[name], np.dtype(field.dtype).name] for name, field in data.sample_fields.items()}
        checkpoint |= {"task": data.task, "targets": data.targets, "fields": rows, SETTINGS: self.settings}
        checkpoint["embedded"] = identities(data.sample_fields)


def load_model(run: Path | str, model_class: type[L.LightningModule]) -> Any:
    """The best weights of a run (its folder, its name, or `last`), on the CPU and ready to predict with.

    Raises InputError where there are none yet, or where they are another model's.
    """
    folder = Path(run)
    folder = folder if (folder / "config.yaml").is_file() else find(str(run))
    return restore(model_class, *_best(folder)).eval()


def is_source(weights: Any) -> bool:
    """Whether the model's setting `weights` names what to start from: `imagenet`, or a file, which may be gone later.
    Anything else is an own model's, which means something else by that name."""
    suffix = Path(weights).suffix[1:] if isinstance(weights, str) else ""
    named = isinstance(weights, PathLike) or (isinstance(weights, str) and "/" in weights)
    return named or bool(suffix and not suffix.isdigit()) or weights == PUBLISHED


def check_head(weights: Any, data: ShardDataModule) -> None:
    """Raise InputError where a training on features would begin with `weights` of a head on another network's."""
    if data.features is None or not is_source(weights) or weights == PUBLISHED:
        return
    kept: Any = None
    with suppress(InputError):  # whoever loads them says why
        kept = load(Path(weights)).get("embedded")
    if isinstance(kept, dict) and kept.get(FEATURES) != identities(data.sample_fields)[FEATURES]:
        raise InputError(
            f"model.weights {weights} are of a run on features that another network made, or none, than those of"
            f" data.features {data.features.name}: begin without them, or embed with the network of that run"
        )


def image_size_of_checkpoint(saved: dict[str, Any]) -> int | None:
    """Side of the images, in pixels, that the model of a checkpoint was made for; None where it has no such setting."""
    for kept in (saved.get("hyper_parameters"), saved.get(SETTINGS)):
        side: Any = kept.get("image_size") if isinstance(kept, dict) else None
        if is_count(side):
            return int(side)
    return None


def kept_setting(folder: Path, name: str) -> Any:
    """What the model of the run in `folder` has made of its setting `name`, as its checkpoints have it; else None."""
    for path in sorted((folder / "checkpoints").glob("*.ckpt")):
        with suppress(InputError):  # a damaged one: whoever goes on from the run says so
            kept = load(path).get("hyper_parameters")
            return kept.get(name) if isinstance(kept, dict) else None
    return None


def best_model(
    model_class: type[L.LightningModule],
    folder: Path,
    datamodule_class: type[ShardDataModule] = ShardDataModule,
) -> tuple[Any, dict[str, Any]]:
    """The best weights of the run in `folder`, on the CPU, and the run's config; InputError where there are none yet.

    What the config of an older version lacks in `data` has its default, and what a resume has changed in what the model
    looks at is as the resume had it. Beside the settings it has `trained_on`: the dataset's `task` and `targets`, and
    shape and dtype of a row of its `fields`.
    """
    saved, checkpoint = _best(folder)
    model = restore(model_class, saved, checkpoint)
    config = read_settings(folder / "config.yaml")
    for section in ("data", "trainer"):
        if not isinstance(config.get(section), dict):
            raise InputError(f"{folder / 'config.yaml'} has no settings of {section}: it is of another program")
    for name, value in changed_on_resume(folder).items():
        section, _, setting = name.partition(".")
        if name in _FOLLOWED:
            config[section][setting] = value
    config["data"] = _checked_data(config["data"], folder / "config.yaml", datamodule_class)
    if (side := image_size_of_checkpoint(saved)) and "image_size" in config["data"]:
        config["data"]["image_size"] = side
    config["trainer"] = {"accelerator": "auto"} | config["trainer"]
    config["trained_on"] = {
        name: saved.get(name, (saved.get("hyper_parameters") or {}).get(name))
        for name in ("task", "targets", "fields", "embedded")
    }
    _check_trained_on(config["trained_on"], checkpoint)
    config["trained_on"]["targets"] = list(config["trained_on"]["targets"] or [])
    return model, config


def _best(folder: Path) -> tuple[dict[str, Any], Path]:
    """The best checkpoint of the run in `folder`, and its file."""
    checkpoint = Run(folder, "", True, dict).best_checkpoint
    if checkpoint is None:
        raise InputError(f"{folder} has no checkpoint yet")
    return load(checkpoint), checkpoint


def _checked_data(settings: dict[str, Any], path: Path, datamodule_class: type[ShardDataModule]) -> dict[str, Any]:
    """The settings of `data` of a run's config, with all defaults.

    Raises InputError where the datamodule would not take them.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(datamodule_class, "data")
    try:
        checked: dict[str, Any] = parser.parse_object({"data": settings}).data.as_dict()
    except Exception as error:  # the parser's, and what a value makes of it
        raise InputError(f"{path}: {shorten(str(error))}") from None
    check_settings(checked, "data.")
    return checked


def _check_trained_on(known: dict[str, Any], checkpoint: Path) -> None:
    """Raise InputError where a checkpoint says of its dataset what cannot be."""
    task, targets, fields = (known[name] for name in ("task", "targets", "fields"))
    texts = isinstance(targets, list | tuple) and all(isinstance(name, str) for name in targets)
    if not isinstance(task, str | None) or not (targets is None or texts):
        raise InputError(f"{checkpoint} does not say which targets it was trained for")
    rows = fields.values() if isinstance(fields, dict) else [] if fields is None else [None]
    for row in rows:
        shape = row[0] if isinstance(row, list | tuple) and len(row) == 2 and isinstance(row[1], str) else 0
        if not (shape is None or (isinstance(shape, list | tuple) and all(map(is_count, shape)))):
            raise InputError(f"{checkpoint} does not say which fields it was trained on")


def restore(model_class: type[L.LightningModule], saved: dict[str, Any], checkpoint: Path) -> L.LightningModule:
    """The model of a checkpoint. Raises InputError where it is another class's."""
    given = saved.get("hyper_parameters") or saved.get(SETTINGS) or {}
    if not isinstance(given, dict):
        raise InputError(f"{checkpoint} does not fit the model {model_class.__name__}: it has no settings")
    plain = ("targets", "_instantiator", "_class_path")  # Lightning lets the last two be what it knows
    check_names({name: value for name, value in given.items() if name not in plain}, checkpoint, model_class.__module__)
    try:
        if saved.get("hyper_parameters"):
            return model_class.load_from_checkpoint(
                checkpoint, map_location="cpu", weights_only=True
            )  # strict as it says
        model = make(model_class, saved.get(SETTINGS, {}))
        model.on_load_checkpoint(saved)
        model.load_state_dict(saved["state_dict"], strict=model.strict_loading)
    except InputError:
        raise
    except Exception as error:  # of the team's constructor, of the parser, of load_state_dict
        why = textwrap.shorten(str(error), 200, placeholder=" ...")
        name = f"{model_class.__name__}, the one that the commands are given"
        raise InputError(f"{checkpoint} does not fit the model {name} ({why})") from None
    return model


def make(model_class: type[L.LightningModule], settings: dict[str, Any]) -> L.LightningModule:
    """A model of settings as in config.yaml, which may name classes for the constructor."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(model_class, "model", fail_untyped=False, sub_configs=True)
    model: L.LightningModule = parser.instantiate(parser.parse_object({"model": settings})).model
    return model
