"""Measure a run's best weights on any packed dataset with the same targets."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer

from ..errors import InputError
from . import hardware
from .datamodule import ShardDataModule
from .run import Run


def best_model(model_class: type[LightningModule], folder: Path) -> tuple[Any, dict[str, Any]]:
    """The best weights of the run in `folder`, on the CPU, and the run's config; InputError where there are none yet.

    What the config of an older version lacks in `data` has its default.
    """
    checkpoint = Run(folder, "", True, dict).best_checkpoint
    if checkpoint is None:
        raise InputError(f"{folder} has no checkpoint yet")
    model = model_class.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    known = inspect.signature(ShardDataModule).parameters.values()
    config["data"] = {p.name: p.default for p in known if p.default is not p.empty} | config["data"]
    return model, config


def evaluate(
    model_class: type[LightningModule], folder: Path, path: str | None = None, split: str = "test", bar: bool = False
) -> dict[str, float]:
    """Metrics of the best checkpoint of the run in `folder`.

    Args:
        model_class: what it was trained with.
        folder: `runs/<run>`.
        path: a packed dataset; None: the one that the run trained on.
        split: `val` or `test` of it.
        bar: show Lightning's progress bar, on standard output.

    Raises InputError where there is no checkpoint or split, or where the dataset has other targets than the model.
    """
    model, config = best_model(model_class, folder)
    settings = config["data"]
    data = ShardDataModule(**settings | {"path": path or settings["path"], "fraction": 1.0, "global_batch_size": 1})
    check_targets(model, data)
    if not data.dataset.splits.get(split):
        raise InputError(f"{data.dataset.root} has no split {split!r}; it has {', '.join(data.dataset.splits)}")
    data.global_batch_size, data.micro_batch_size = batch_size(settings), None
    hardware.quiet()
    device = hardware.accelerator(config["trainer"]["accelerator"])  # or the CPU, where that is all there is
    hardware.prepare(device)
    trainer = Trainer(
        accelerator=device,
        devices=1,
        precision=hardware.precision(device),  # type: ignore[arg-type]
        logger=False,
        enable_progress_bar=bar,
        enable_checkpointing=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
    )
    run = trainer.validate if split == "val" else trainer.test
    return dict(run(model, datamodule=data, verbose=False)[0])


def batch_size(settings: dict[str, Any]) -> int:
    """Images at a time that the device which trained with these settings of `data` has memory for."""
    return int(settings["micro_batch_size"] or min(256, settings["global_batch_size"]))


def check_targets(model: LightningModule, data: ShardDataModule) -> None:
    """Raise InputError where `data` has other classes than the model was trained for."""
    own = list(model.hparams["targets"])
    if model.hparams["task"] != data.task:
        raise InputError(f"the model was trained for {model.hparams['task']}, {data.dataset.root} is for {data.task}")
    if len(own) != len(data.targets):
        raise InputError(
            f"the model knows {len(own)} targets, {data.dataset.root} has {len(data.targets)}: choose another"
        )
    if own != data.targets:
        other = next(b for a, b in zip(own, data.targets, strict=True) if a != b)
        raise InputError(
            f"the model's targets have other names or another order than those of {data.dataset.root} ({other!r})"
        )
