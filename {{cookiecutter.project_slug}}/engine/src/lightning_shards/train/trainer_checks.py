"""What shows only once plugins, a trainer and the number of devices are there: whether a run can be made of them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy

from ..errors import InputError
from . import loop_state
from .datamodule import ShardDataModule


def keep_lengths(trainer: Trainer) -> None:
    """Undo what `fast_dev_run` says of the training's length, in micro-batches: the order has it in global batches.

    A time between validations leaves an attribute out that Lightning's own callbacks read.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        trainer.limit_train_batches = 1.0
        trainer.fit_loop.epoch_loop.max_steps = -1
    trainer.val_check_interval = loop_state.interval(trainer)  # type: ignore[assignment]


def check_plugins(plugins: list[Any]) -> None:
    """Raise InputError for a plugin that cannot stand beside the run's own."""
    if io := next((one for one in plugins if isinstance(one, CheckpointIO)), None):
        raise InputError(
            f"trainer.plugins: {type(io).__name__} cannot be used, a run writes its checkpoints durably itself"
        )


def clusters(plugins: list[Any], ours: list[ClusterEnvironment]) -> list[ClusterEnvironment]:
    """What is known of the cluster, unless the user says it."""
    return [] if any(isinstance(one, ClusterEnvironment) for one in plugins) else ours


def check_strategy(trainer: Trainer) -> None:
    """Raise InputError for a strategy whose checkpoints fit no other number of devices."""
    strategy = trainer.strategy
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) or isinstance(strategy, DeepSpeedStrategy):
        raise InputError(
            f"trainer.strategy {type(strategy).__name__} cannot be used: a run's checkpoints are whole, for any number"
            " of devices; take auto or ddp"
        )
    method = getattr(strategy, "_start_method", None)
    if method not in (None, "popen"):
        raise InputError(f"trainer.strategy ddp_{method} cannot be used: its processes hand nothing back; take ddp")


def check_precision(trainer: Trainer, asked: Any) -> None:
    """Raise InputError where Lightning has taken another precision than the one that was asked for."""
    if str(asked) in ("16", "16-mixed") and trainer.precision == "bf16-mixed":
        raise InputError(f"trainer.precision {asked} works on GPUs only: take bf16-mixed or 32-true")


def check_averages(trainer: Trainer) -> None:
    """Raise InputError where weights are averaged that are not of float32: Lightning makes the average before it casts
    the model, and in half a precision an average would stand still."""
    averaged = any(isinstance(one, WeightAveraging) for one in trainer.callbacks)  # type: ignore[attr-defined]
    if averaged and trainer.precision in ("64-true", "bf16-true", "16-true"):
        raise InputError(
            f"an average of the weights is kept in float32, which trainer.precision {trainer.precision} is not: take a"
            " mixed precision or 32-true"
        )


def validates(trainer: Trainer, data: ShardDataModule) -> bool:
    """Whether the flags let a validation come before the training ends."""
    steps = len(data.order) // data.global_batch_size
    by_clock = loop_state.interval(trainer) is None and trainer.limit_val_batches
    return bool(by_clock or loop_state.validations(trainer, steps, trainer.max_epochs or 0))


def check_patience(trainer: Trainer, data: ShardDataModule, patience: int | None) -> None:
    """Raise InputError where no epoch ends with a validation, of which `patience` counts those without a gain."""
    steps = len(data.order) // data.global_batch_size
    if patience is not None and not loop_state.validated_ends(trainer, steps, trainer.max_epochs or 0):
        raise InputError(
            f"patience counts validations at epochs' ends, and trainer.val_check_interval has none there: take 1.0, or"
            f" a number that divides an epoch's {steps} steps"
        )


def check_lengths(trainer: Trainer, data: ShardDataModule) -> None:
    """Raise InputError where the flags leave nothing to measure on, or come to no validation."""
    steps, interval = len(data.order) // data.global_batch_size, loop_state.interval(trainer)
    if interval is None and trainer.world_size > 1:
        raise InputError("trainer.val_check_interval cannot be a time with several ranks, whose clocks would not agree")
    in_epoch = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches
    if isinstance(interval, int) and interval > steps and in_epoch:
        raise InputError(f"trainer.val_check_interval {interval} is more than an epoch's {steps} optimizer steps")
    for split, limit in (("val", trainer.limit_val_batches), ("test", trainer.limit_test_batches)):
        if not isinstance(limit, float) or not limit or not data.dataset.splits.get(split):
            continue
        batches = len(data.held_out(split, 0, trainer.world_size))
        if not int(batches * limit):
            raise InputError(
                f"trainer.limit_{split}_batches {limit:g} leaves none of the {batches} batches of {split}:"
                " give a larger share, a number, or 0"
            )
