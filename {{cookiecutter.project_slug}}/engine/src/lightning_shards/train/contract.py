"""What the engine asks of a model before anything is written, and what it reads from one: each part is optional."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from ..errors import InputError
from ..vision.tasks import Task
from . import optimizers
from .datamodule import ShardDataModule
from .module import ShardModule

HANDED_OVER = {  # constructor parameter -> attribute of the datamodule; a model has those that it wants
    "targets": "targets",
    "task": "model_task",
    "fields": "field_shapes",
}


def check_class(model_class: Any) -> None:
    """Raise InputError for what cannot be trained."""
    if not inspect.isclass(model_class) or not issubclass(model_class, LightningModule):
        raise InputError(f"{getattr(model_class, '__name__', model_class)} is no LightningModule: give TrainingCLI one")
    for method in ("training_step", "configure_optimizers"):
        if not is_overridden(method, model_class, LightningModule):
            raise InputError(f"the model {model_class.__name__} has no {method}: it cannot be trained without one")


def check_instance(model: LightningModule) -> None:
    """Raise InputError for hyperparameters that a checkpoint cannot hold, for a mode that there is not, and for an
    optimizer whose library is missing."""
    optimizers.check(setting(model, "optimizer"))
    for name, value in model.hparams.items():
        if not is_plain(value):
            raise InputError(
                f"the model keeps {name}, a {type(value).__name__}, as a hyperparameter; checkpoints hold plain values"
                f" only (numbers, text, lists, dictionaries): call save_hyperparameters(ignore=[{name!r}])"
            )
    if (mode := goal(model)[1]) not in ("min", "max"):
        raise InputError(f"the model's mode is {mode!r}, it must be 'min' or 'max'")


def weigh_classes(model: LightningModule, data: ShardDataModule) -> None:
    """Where the model's setting `class_weights` says how far to even out the classes, reckon that from their counts.

    The weights by name take the setting's place among the hyperparameters, so that a checkpoint has them.

    Raises InputError where the classes cannot be counted, and where the network's own loss knows no weights.
    """
    objective, wanted = getattr(model, "objective", None), setting(model, "class_weights")
    if wanted and getattr(getattr(model, "backbone", None), "own_loss", False):
        raise InputError(
            f"model.class_weights is not for {setting(model, 'backbone')}, which has its own loss: leave it out, or"
            " take small_detector"
        )
    if isinstance(objective, Task) and isinstance(wanted, (int, float)):
        counts = data.class_counts("model.class_weights")
        model.hparams["class_weights"] = objective.weigh(wanted, data.targets, counts)


def is_plain(value: Any) -> bool:
    """Whether a checkpoint that is loaded with `weights_only=True` gives it back."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # whatever pickle or a value's own methods raise
        return False
    return True


def goal(model: LightningModule) -> tuple[str, str]:
    """(metric by its full name, `min` or `max`) that picks the best weights; where the model does not say, val/loss."""
    return getattr(model, "monitor", None) or "val/loss", getattr(model, "mode", None) or "min"


def inputs(model: LightningModule, purpose: str) -> tuple[str, ...]:
    """The fields that the model's `scores` takes. Raises InputError for a model that has no `scores`."""
    method = getattr(type(model), "scores", None)
    if not callable(method) or method is ShardModule.scores:
        raise InputError(
            f"the model {type(model).__name__} has no method scores(image), so it cannot be {purpose}: give it one"
            " that makes probabilities or numbers, (B, T), of images in 0..255"
        )
    return tuple(getattr(model, "inputs", ("image",)))


def check_sizes(model: LightningModule, data: ShardDataModule) -> None:
    """Raise InputError where the model cannot take squares of one of the sizes that its training has.

    They are tried on its `scores`; a model without, or with inputs of no shape, shows it when it comes to that size.
    """
    method = getattr(type(model), "scores", None)
    if not data.sides or not callable(method) or method is ShardModule.scores:
        return
    was = model.training
    model.eval()
    for side in dict.fromkeys(data.sides):
        shapes = [data.shapes_at(side).get(name) for name in inputs(model, "tried")]
        rows = [torch.zeros(1, *shape, device=model.device) for shape in shapes if shape is not None]
        try:
            with torch.no_grad():
                if len(rows) == len(shapes):
                    method(model, *rows)
        except Exception as error:  # whatever its layers raise
            raise InputError(
                f"{title(model)} cannot take the {side} pixels of data.size_schedule"
                f" ({str(error).splitlines()[0] if str(error) else type(error).__name__}): take sizes that it is made"
                " for, or another model.backbone"
            ) from None
    model.train(was)


def has_features(model: LightningModule) -> bool:
    """Whether the model says what `embed` keeps of images."""
    method = getattr(type(model), "features", None)
    return callable(method) and method is not ShardModule.features


def setting(model: LightningModule, name: str) -> Any:
    """A hyperparameter that a model need not have; None where it has not."""
    return model.hparams.get(name)


def title(model: LightningModule) -> str:
    """What a person calls the model: its backbone, or its class."""
    return str(setting(model, "backbone") or type(model).__name__)


def data_class(base: type[Any], fields: Mapping[str, Any] | Callable[..., Any] | None, transform: Any) -> type[Any]:
    """The datamodule's class with the project's fields and transform; the name stays.

    Raises InputError for a datamodule that is not made for an exact resume.
    """
    if not (inspect.isclass(base) and issubclass(base, ShardDataModule)):
        raise InputError(
            f"the datamodule {getattr(base, '__name__', base)} keeps no place to go on from: make it a subclass of"
            " lightning_shards.train.datamodule.ShardDataModule, or train it with Lightning's own Trainer"
        )
    if fields is None and transform is None:
        return base
    held = {"fields": staticmethod(fields) if callable(fields) else fields, "transform": transform}
    if callable(transform):
        held["transform"] = staticmethod(transform)
    return type(base.__name__, (base,), {**held, "__module__": base.__module__, "__doc__": base.__doc__})
