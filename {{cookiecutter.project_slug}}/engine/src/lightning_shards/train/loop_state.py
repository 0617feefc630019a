"""Lightning's counters, made to fit the place at which a run goes on.

Lightning counts micro-batches, so what it saved fits neither another number of devices nor another accumulation or
global batch; and what it does with counters that were saved at a validation or at an epoch's last batch differs from
case to case (it skips the validation, or runs it twice; it leaves out the epoch's end, or a whole epoch; the step at
which metrics are logged drifts). So nothing of what it saved is used but the number of optimizer steps: all counters
are computed from the place, into the one form that it goes on from correctly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from .alike import unlike


def rewrite(fit_loop: dict[str, Any], epoch: int, done: int, left: int, begun: bool) -> None:
    """Make the saved state of Lightning's fit loop that of a run in which `epoch` has got so far.

    Args:
        fit_loop: `checkpoint["loops"]["fit_loop"]`, changed in place.
        epoch: epochs that are finished, and so the number of the one to go on with.
        done, left: micro-batches of that epoch, as this start would count them, before and behind the place.
        begun: the place is not the epoch's begin.
    """
    finished = dict.fromkeys(("ready", "started", "processed", "completed"), epoch)
    epochs = finished | {"ready": epoch + 1, "started": epoch + 1} if begun else finished
    fit_loop["epoch_progress"] = {"total": dict(epochs), "current": dict(epochs)}
    current, total = (dict.fromkeys(finished, count) for count in (done, epoch * (done + left) + done))
    last = not left or not begun
    fit_loop["epoch_loop.batch_progress"] = {"total": total, "current": current, "is_last_batch": last}
    steps = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    counted = fit_loop["epoch_loop.state_dict"]
    if not steps:  # a model that steps its optimizers itself: Lightning counts a batch only behind the save in it
        steps = counted["_batches_that_stepped"] + begun
    counted["_batches_that_stepped"] = steps
    # as if a validation had begun and not got through its first batch: it is run whole, unless `at_start` says no
    nothing = dict.fromkeys(finished, 0)
    fit_loop["epoch_loop.val_loop.batch_progress"] = {
        "total": nothing | {"ready": 1, "started": 1},
        "current": dict(nothing),
        "is_last_batch": False,
    }


def check(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Raise ValueError where the counters, or the state of what is Lightning's, are of another kind than its own.

    Lightning takes over whatever there is, and stumbles over it steps later.
    """
    if wrong := unlike(trainer.fit_loop.state_dict(), checkpoint["loops"]["fit_loop"], "loops"):
        raise ValueError(f"{wrong} is no such counter")
    plugin = trainer.precision_plugin  # with the scale of gradients in float16
    name = type(plugin).__qualname__
    if wrong := unlike(plugin.state_dict(), checkpoint.get(name), name) if name in checkpoint else "":
        raise ValueError(f"{wrong} is of another kind")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        saved = checkpoint["callbacks"].get(callback.state_key)
        stock = type(callback).__module__.startswith("lightning.pytorch.")
        if saved and stock and (wrong := unlike(callback.state_dict(), saved, type(callback).__name__)):
            raise ValueError(f"{wrong} is of another kind")
        if saved and isinstance(callback, ModelCheckpoint) and saved.get("dirpath") == callback.dirpath:
            _check_kept(callback, saved)


def _check_kept(callback: ModelCheckpoint, saved: dict[str, Any]) -> None:
    """Raise ValueError where a ModelCheckpoint would compare with what is no score, or remove what is not its own."""
    folder, kept = Path(callback.dirpath or "").resolve(), saved["best_k_models"]
    worst, last = saved["kth_best_model_path"], saved["last_model_path"]
    if any(unlike(0.0, score, "score") for score in kept.values()) or (worst and worst not in kept):
        raise ValueError("ModelCheckpoint.best_k_models is of another kind")
    for path in (*kept, *filter(None, (last,))):
        if not isinstance(path, str) or not Path(path).resolve().is_relative_to(folder):
            raise ValueError(f"ModelCheckpoint has kept {str(path)[:80]!r}, which is not in {callback.dirpath}")


def interval(trainer: L.Trainer) -> int | float | None:
    """Steps or a share of the epoch between two validations; None where they come by the clock."""
    return getattr(trainer, "val_check_interval", None)


def validations(trainer: L.Trainer, steps: int, epochs: int) -> int:
    """How many validations `epochs` epochs of `steps` optimizer steps have; 0 where they come by the clock."""
    between, every = _between(trainer, steps), trainer.check_val_every_n_epoch
    if between is None:
        return 0
    return steps * epochs // between if every is None else steps // between * (epochs // every)


def validated_ends(trainer: L.Trainer, steps: int, epochs: int) -> int:
    """How many of these epochs end with one of the validations."""
    between, every = _between(trainer, steps), trainer.check_val_every_n_epoch
    if between is None:
        return 0
    if every is None:
        return sum(steps * epoch % between == 0 for epoch in range(1, epochs + 1))
    return 0 if steps % between else epochs // every


def _between(trainer: L.Trainer, steps: int) -> int | None:
    """Optimizer steps between two validations; None where none comes by its place."""
    given = interval(trainer)
    if given is None or not trainer.limit_val_batches:
        return None
    return given if isinstance(given, int) else max(1, int(steps * given))


def at_start(trainer: L.Trainer, validated: bool) -> None:
    """In `on_train_start`: count validations in optimizer steps, and decide about one at the place of a resume.

    Args:
        validated: the validation at this place was made before the checkpoint.

    A validation between two optimizer steps would measure weights that belong to no place, and its checkpoint would
    hold half of the gradients of a global batch.
    """
    loop, given = trainer.fit_loop.epoch_loop, interval(trainer)
    accumulation = trainer.accumulate_grad_batches
    steps = int(trainer.num_training_batches) // accumulation
    if isinstance(trainer.val_check_batch, int) and given is not None:  # not where validation is timed
        every = given if isinstance(given, int) else max(1, int(steps * given))
        trainer.val_check_batch = every * accumulation
    assert trainer.fit_loop._data_fetcher is not None
    if trainer.fit_loop.restarting and loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
        loop._batches_that_stepped -= 1  # Lightning takes this step's end up again, with its validation or without
        if validated or not loop.batch_progress.current.ready:
            loop.val_loop.reset_restart_stage()
