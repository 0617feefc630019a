"""Errors that settings, the model's size or another rank have caused, as a sentence in place of a traceback."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.spike import TrainingSpikeException
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..data.batch import NoField
from ..errors import InputError, RunError
from .checkpoint_io import unfit, unwritten
from .datamodule import ShardDataModule
from .parser import shorten
from .rank_watchdog import RankWatchdog

_BY_LIGHTNING = (
    MisconfigurationException,
    RuntimeError,
    ValueError,
    TypeError,
    ImportError,
    NotImplementedError,
    Warning,  # one that `hardware.quiet` has raised
)
_OTHER_KIND = re.compile("Not a valid subclass|Expected a")  # where one or several may be given


@contextmanager
def refused_by_lightning() -> Iterator[None]:
    """While a trainer is made: what Lightning or this machine refuses of the settings is bad input."""
    try:
        yield
    except _BY_LIGHTNING as error:
        raise InputError(f"trainer: {_first_sentences(error)}") from None


@contextmanager
def refused_by_a_class() -> Iterator[None]:
    """While the objects of the settings are made: of a callback, logger or plugin the parser says too much."""
    try:
        yield
    except ValueError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        if error.__cause__ is None or "any of the Union subtypes" not in str(error):
            raise
        kinds = re.findall(r"^  - (.*?)(?=^  - |^Given value type)", str(error), re.MULTILINE | re.DOTALL)
        said = next((one for one in kinds if not _OTHER_KIND.match(one)), str(error.__cause__))
        raise InputError(f"trainer: {shorten(said).rstrip('.') or type(error.__cause__).__name__}") from None


@contextmanager
def explained(
    watch: RankWatchdog,
    smaller_batch: Callable[[], str],
    how_to_go_on: Callable[[], str],
    saved: Callable[[], bool],
    first_step: Callable[[], bool],
) -> Iterator[None]:
    """While a trainer trains or tests.

    Args:
        watch: knows whether another rank has gone.
        smaller_batch: what to do about too little memory.
        how_to_go_on: the command that does.
        saved: whether anything was, so that what Lightning refuses now is no bad input that has left nothing behind.
        first_step: whether the training has gone on from a checkpoint, and has made no step since.
    """
    try:
        yield
    except BaseException as error:
        watch.stand_down()
        if isinstance(error, torch.OutOfMemoryError):
            raise RunError(smaller_batch()) from None
        if isinstance(error, RuntimeError) and (sentence := watch.explain(error)):
            raise RunError(f"{sentence}. {how_to_go_on()}") from None
        if why := unfit(error, first_step()):
            anew = "start a new run from its weights with --model.weights CHECKPOINT"
            raise InputError(f"the run cannot go on from what its last checkpoint holds ({why}): {anew}") from None
        if full := unwritten(error):
            raise RunError(f"{full}. {how_to_go_on()}") from None
        if isinstance(error, OSError) and _of_a_logger(error):
            where = f" {error.filename}" if error.filename else ""
            raise RunError(
                f"a logger of trainer.logger cannot write{where} ({error.strerror}). {how_to_go_on()}"
            ) from None
        if isinstance(error, Exception) and (found := _of_a_flag(error)):
            raise RunError(f"{found}. {how_to_go_on()}") from None
        if isinstance(error, Exception) and (refusal := _of_the_model(error)):
            raise (RunError(f"{refusal}. {how_to_go_on()}") if saved() else InputError(refusal)) from None
        if isinstance(error, _BY_LIGHTNING) and _raised_by_lightning(error):
            refusal = f"trainer: {_first_sentences(error)}"
            raise (RunError(f"{refusal}. {how_to_go_on()}") if saved() else InputError(refusal)) from None
        raise


def _of_a_logger(error: OSError) -> bool:
    """Whether one of Lightning's loggers, which the settings name, met it."""
    frames = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(name.startswith(("lightning.pytorch.loggers.", "lightning.fabric.loggers.")) for name in frames)


def _of_a_flag(error: Exception) -> str | None:
    """What a flag that looks for trouble has found."""
    text = str(error)
    if isinstance(error, TrainingSpikeException):
        return f"the callback SpikeDetection ended the training: {_first_sentences(error)}"
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in text:
        return f"trainer.deterministic: {text.split(',')[0]}; trainer.deterministic warn takes what there is"
    if isinstance(error, RuntimeError) and "returned nan values" in text:
        return (
            f"trainer.detect_anomaly: {text.splitlines()[0].rstrip('.')}; the traceback above shows where it was made"
        )
    return None


def _of_the_model(error: Exception) -> str | None:
    """What a model's method has given that cannot be trained with."""
    text, place = str(error), _place(error)
    if isinstance(error, NoField):
        return text
    if isinstance(error, RuntimeError) and "does not require grad" in text:
        return (
            "the loss of training_step depends on nothing that is trained: all of it is frozen, or the way to the loss"
            " is cut by argmax, detach or no_grad"
        )
    if isinstance(error, RuntimeError) and "implicitly created only for scalar outputs" in text:
        return "training_step must return one number: the mean of its rows' losses"
    if isinstance(error, ValueError) and "empty parameter list" in text:
        return "configure_optimizers gives an optimizer no parameters to train"
    if isinstance(error, AttributeError) and place == "lightning.pytorch.core.optimizer":
        return f"configure_optimizers returns what is no scheduler or no optimizer ({text}): is it a class?"
    return None


def _place(error: BaseException) -> str:
    """The module that raised it."""
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    return str(place.tb_frame.f_globals.get("__name__")) if place else ""


def _raised_by_lightning(error: BaseException) -> bool:
    """Whether Lightning itself raised it, as it does where settings do not go together; not code that it called."""
    if isinstance(error, MisconfigurationException):
        return True
    return _place(error).startswith(("lightning.", "lightning_utilities."))


def _first_sentences(error: BaseException) -> str:
    return shorten(str(error)).rstrip(".") or type(error).__name__


def smaller_batch(micro: int, world: int, data: ShardDataModule) -> str:
    """What to try where the device has too little memory for a micro-batch of `micro`."""
    share = data.global_batch_size // world
    smaller = next((m for m in range(micro // 2, 0, -1) if share % m == 0), None)
    if smaller is None:
        return "the device has no memory left even for one image; take a smaller model.backbone or data.image_size"
    return (
        f"the device has no memory left with a micro-batch of {micro}: try --data.micro_batch_size {smaller}"
        f" (the global batch stays {data.global_batch_size}, gradients are accumulated)"
    )
