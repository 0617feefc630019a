"""Measure a run's best weights on any packed dataset with the same targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from ..data.embedding import identities
from ..errors import InputError
from . import hardware
from .datamodule import ShardDataModule
from .eval_metrics import EvalPass
from .explain import refused_by_lightning
from .mirror import look_twice
from .trained_model import best_model


def evaluate(
    model_class: type[LightningModule],
    folder: Path,
    path: str | None = None,
    split: str = "test",
    bar: bool = False,
    datamodule_class: type[ShardDataModule] = ShardDataModule,
    flip: bool = False,
) -> dict[str, float]:
    """Metrics of the best checkpoint of the run in `folder`.

    Args:
        model_class: what it was trained with.
        folder: `runs/<run>`.
        path: a packed dataset; None: the one that the run trained on.
        split: `val` or `test` of it.
        bar: show Lightning's progress bar, on standard output.
        datamodule_class: what it was trained with.
        flip: look at the mirror image of each image, too, and average.

    Raises InputError where there is no checkpoint or split, where the dataset has other targets than the model, or
    where mirror images make no sense to it.
    """
    model, config = best_model(model_class, folder, datamodule_class)
    if not is_overridden("validation_step" if split == "val" else "test_step", model):
        step = "validation_step" if split == "val" else "test_step"
        raise InputError(f"the model {model_class.__name__} has no {step}: it cannot be measured on the split {split}")
    mirrored = look_twice(model, config) if flip else None
    settings = config["data"]
    if path and "path" not in settings:
        raise InputError(f"{datamodule_class.__name__} has no setting `path`: it measures on its own dataset alone")
    alone = {"path": path or settings.get("path"), "global_batch_size": 1, "fraction": 1.0, "mixture": None}
    alone |= {"balance": None, "repeats": 1, "size_schedule": None}
    data = datamodule_class(**settings | {name: value for name, value in alone.items() if name in settings})
    check_targets(config["trained_on"], data)
    if (config["trained_on"].get("embedded") or {}) != identities(data.sample_fields):
        raise InputError(
            f"{data.dataset.root} was embedded by another network than the run was trained on: embed it anew"
        )
    if not data.dataset.splits.get(split):
        raise InputError(f"{data.dataset.root} has no split {split!r}; it has {', '.join(data.dataset.splits)}")
    data.global_batch_size, data.micro_batch_size = batch_size(settings), None
    hardware.quiet()
    device = hardware.accelerator(config["trainer"]["accelerator"])  # or the CPU, where that is all there is
    hardware.prepare(device)
    with refused_by_lightning():
        trainer = Trainer(
            accelerator=device,
            devices=1,
            precision=_precision(config["trainer"].get("precision"), device),
            logger=False,
            callbacks=[EvalPass()],
            enable_progress_bar=bar,
            enable_checkpointing=False,
            default_root_dir=folder,
            use_distributed_sampler=False,
        )
    run = trainer.validate if split == "val" else trainer.test
    found = dict(run(model, datamodule=data, verbose=False)[0])
    if mirrored:
        mirrored.check_called()
    return found


def _precision(asked: Any, device: str) -> Any:
    """What the run was told to compute in, so that its own test is measured again; else what the device is fast at."""
    only_on_gpus = str(asked).startswith("16") and device == "cpu"
    return hardware.precision(device) if asked is None or only_on_gpus else asked


def batch_size(settings: dict[str, Any]) -> int:
    """Images at a time that the device which trained with these settings of `data` has memory for."""
    return int(settings.get("micro_batch_size") or min(256, settings.get("global_batch_size") or 256))


def check_targets(known: dict[str, Any], data: ShardDataModule) -> None:
    """Raise InputError where `data` has other classes than those that a model was trained on."""
    if known["task"] != data.task:
        raise InputError(f"the model was trained for {known['task']}, {data.dataset.root} is for {data.task}")
    own = list(known["targets"] or data.targets)
    if len(own) != len(data.targets):
        raise InputError(
            f"the model knows {len(own)} targets, {data.dataset.root} has {len(data.targets)}: choose another"
        )
    if own != data.targets:
        other = next(b for a, b in zip(own, data.targets, strict=True) if a != b)
        raise InputError(
            f"the model's targets have other names or another order than those of {data.dataset.root} ({other!r})"
        )
