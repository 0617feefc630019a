"""The callbacks that a user adds: each works as Lightning documents it, or is refused with what to use in its place.

Refused are those that cannot be combined with an exact resume, and those that the engine's own settings replace.
docs/flags.md has the same rows for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    ModelCheckpoint,
    Timer,
    WeightAveraging,
)

from ..errors import InputError
from .loop_state import interval

REFUSED = {  # class, by its name in lightning.pytorch.callbacks -> why, and what to do
    "BackboneFinetuning": "it sets learning rates behind the schedule's back; freeze layers in the model, with"
    " requires_grad",
    "BaseFinetuning": "it adds parameter groups in the middle of a training; freeze layers in the model, with"
    " requires_grad",
    "BasePredictionWriter": "a training predicts nothing; the command predict writes predictions",
    "BatchSizeFinder": "what fits into memory is set by --data.micro_batch_size; where it is too large, the training"
    " names a smaller one",
    "GradientAccumulationScheduler": "gradients are accumulated up to data.global_batch_size: set"
    " --data.micro_batch_size",
    "LearningRateFinder": "its trial steps would move the place in the data; compare a few values of"
    " --model.learning_rate over a short --data.fraction",
    "ModelPruning": "its masks are not in checkpoints, so a resumed run would be another one; prune the weights after"
    " the training",
    "OnExceptionCheckpoint": "it saves in the middle of a step; the run's own checkpoints lose nothing before the last"
    " one: set --save_every_minutes",
    "StochasticWeightAveraging": "it adds epochs and sets learning rates behind the schedule's back; --ema_decay"
    " averages weights",
}
OBEYED = {  # how each of the others is meant here
    "Callback": "",
    "Checkpoint": "called after the run's own checkpoints",
    "DeviceStatsMonitor": "",
    "EMAWeightAveraging": "in place of `ema_decay`",
    "EarlyStopping": "in the middle of an epoch the rest of it is owed to a resume",
    "LambdaCallback": "in train.py, not in a config, which may name no functions",
    "LearningRateMonitor": "",
    "ModelCheckpoint": "beside the run's own checkpoints, in `ModelCheckpoint/` of the run's folder or its `dirpath`; a"
    " resume does not look at its files",
    "ModelSummary": "",
    "ProgressBar": "in place of the run's own",
    "RichModelSummary": "",
    "RichProgressBar": "in place of the run's own",
    "SpikeDetection": "what it ends is a failed run, which a resume goes on with",
    "TQDMProgressBar": "in place of the run's own",
    "ThroughputMonitor": "in train.py, not in a config, which may name no functions",
    "Timer": "a budget as `trainer.max_time`",
    "WeightAveraging": "in place of `ema_decay`",
}


def check(callbacks: Sequence[Callback], folder: Path, ema_decay: float | None = None, max_time: object = None) -> None:
    """Raise InputError for a callback, of those that a user gave, that cannot be used. `folder` is the run's."""
    if max_time is not None and any(isinstance(callback, Timer) for callback in callbacks):
        raise InputError("trainer.max_time and the callback Timer both limit the time: give one of them")
    if ema_decay and any(isinstance(callback, WeightAveraging) for callback in callbacks):
        raise InputError("ema_decay averages the weights as a callback of trainer.callbacks does: give one of them")
    for callback in callbacks:
        for name in (kind.__name__ for kind in type(callback).__mro__ if kind.__module__.startswith("lightning.")):
            if name in REFUSED:
                raise InputError(f"the callback {name} cannot be used: {REFUSED[name]}")
        if isinstance(callback, DeviceStatsMonitor) and callback._cpu_stats and not find_spec("psutil"):
            raise InputError("DeviceStatsMonitor needs psutil for the CPU's figures: uv add psutil")
        if isinstance(callback, ModelCheckpoint):
            if callback.save_on_exception:
                raise InputError(
                    f"ModelCheckpoint.save_on_exception cannot be used: {REFUSED['OnExceptionCheckpoint']}"
                )
            if ".." in Path(callback.filename or "").parts or Path(callback.filename or "").is_absolute():
                raise InputError("ModelCheckpoint.filename is a name below its dirpath: leave out what leads elsewhere")
            if callback.dirpath and Path(callback.dirpath).absolute() == (folder / "checkpoints").absolute():
                raise InputError(
                    f"in {folder}/checkpoints the run keeps its own checkpoints: give ModelCheckpoint another dirpath"
                )


def check_measured(trainer: L.Trainer, patience: int | None, measured: bool) -> None:
    """Raise InputError where what counts validations would wait for the first one in vain.

    Args:
        patience: of the settings.
        measured: there is a split to validate on, the model does, and the flags let it.
    """
    if measured:
        return
    counts = (
        "there is no validation: the dataset, the model, or trainer.limit_val_batches, val_check_interval or"
        " check_val_every_n_epoch leave it out"
    )
    if patience is not None:
        raise InputError(f"patience counts validations, but {counts}")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(callback, EarlyStopping):
            continue
        at_end = callback._check_on_train_epoch_end
        if at_end is None:  # as the callback itself will decide
            at_end = interval(trainer) == 1.0 and trainer.check_val_every_n_epoch == 1
        if not at_end or callback.monitor.startswith("val"):
            raise InputError(
                f"EarlyStopping looks at {callback.monitor} after a validation, but {counts}; a metric of the training"
                " needs check_on_train_epoch_end"
            )


def arrange(trainer: L.Trainer, ours: Checkpoint) -> None:
    """Put `ours` before the user's checkpoints, and those into a folder of their own.

    Each of them then says the same of the place as the weights in it: ours moves it on after a step.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    folder = Path(trainer.default_root_dir)
    theirs = [callback for callback in callbacks if isinstance(callback, Checkpoint) and callback is not ours]
    check(callbacks, folder)
    for callback in theirs:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder / "ModelCheckpoint")
    others = [callback for callback in callbacks if callback is not ours and callback not in theirs]
    trainer.callbacks = [*others, ours, *theirs]  # type: ignore[attr-defined]
