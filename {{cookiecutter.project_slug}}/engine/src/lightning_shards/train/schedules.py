"""The optimizer's own schedulers: their steps come before a checkpoint, and their changed settings take effect.

A scheduler's settings lie in its state, so the saved state would bring the old ones back on a resume without a word.
Where they, or the rates that it starts from, have changed, the schedule is made anew and steps as often as it had: it
then is as if the run had begun with them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import lightning as L
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..errors import InputError
from ..runs.values import is_count
from .alike import unlike
from .module import ShardModule

_RATES = {"lr", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"}


def sets(group: Mapping[str, Any]) -> set[str]:
    """The options of an optimizer's group that schedulers set."""
    return _RATES | ({"momentum", "betas"} if "max_momentum" in group else set())


def states(trainer: L.Trainer) -> list[dict[str, Any]]:
    return copy.deepcopy([config.scheduler.state_dict() for config in trainer.lr_scheduler_configs])


def check_given(trainer: L.Trainer, model: L.LightningModule) -> None:
    """Raise InputError for optimizers that are none, and for a scheduler that would step between two steps."""
    if model.automatic_optimization and not trainer.optimizers:
        raise InputError("configure_optimizers returns no optimizer: nothing would be trained")
    for config in trainer.lr_scheduler_configs:
        if not is_count(config.frequency) or not config.frequency:
            raise InputError(
                f"configure_optimizers gives {type(config.scheduler).__name__} the frequency {config.frequency}:"
                " it must be a whole number of steps or epochs, at least 1"
            )


def check_rate(trainer: L.Trainer, model: L.LightningModule) -> None:
    """Raise InputError where both the model's `learning_rate` and a scheduler set the rate: the first would win."""
    if not trainer.lr_scheduler_configs or not isinstance(model, ShardModule):
        return
    if model.learning_rate(model.progress) is not None:
        name = type(trainer.lr_scheduler_configs[0].scheduler).__name__
        raise InputError(
            f"the model's learning_rate sets the rate before each step, so its {name} would change nothing: let"
            " learning_rate return None, or let configure_optimizers return the optimizer alone"
        )


def check(trainer: L.Trainer, saved: list[dict[str, Any]]) -> None:
    """Raise InputError for states of schedulers of another number or kind: each would be taken over as it is."""
    own = states(trainer)
    if len(own) != len(saved) or any(unlike(a, b, "scheduler", more=False) for a, b in zip(own, saved, strict=True)):
        raise InputError("the model's schedulers are others than the run's: start a new run from its weights")


def check_batch(trainer: L.Trainer, before: Any, now: int) -> None:
    """Raise InputError where a scheduler counts steps, and a step was `before` images and is `now`."""
    configs = [one for one in trainer.lr_scheduler_configs if one.interval == "step"]
    counting = [type(one.scheduler).__name__ for one in configs if not isinstance(one.scheduler, ReduceLROnPlateau)]
    if before is not None and before != now and counting:
        raise InputError(
            f"data.global_batch_size cannot change from {before} to {now} on a resume: the model's {counting[0]} counts"
            " steps and would be ahead or behind; set it back, or start a new run from the weights"
        )


def renew(
    trainer: L.Trainer, saved: list[dict[str, Any]], before: list[dict[str, Any]] | None, rates: list[set[str]]
) -> list[bool | None]:
    """Make those states of `saved` anew whose schedulers have other settings than `before`.

    Args:
        saved: of the checkpoint, changed in place.
        before: the states with which the schedulers of that start began; None: nobody has noted them.
        rates: of each optimizer, the options of `sets` that the model gives otherwise now.

    Returns: of each optimizer, whether its schedule was made anew, and its groups have their rates; None: it has none.

    Raises InputError where that cannot be, since the rate follows what was measured.
    """
    own, done = states(trainer), list[bool | None]()
    changed = [{key for key in now if now[key] != old.get(key)} for now, old in zip(own, before or own, strict=True)]
    most = (trainer.max_epochs or 0) * len(trainer.datamodule.order)  # type: ignore[attr-defined]
    for optimizer, others in zip(trainer.optimizers, rates, strict=True):
        mine = _schedulers(trainer, optimizer)
        counting = [n for n in mine if _counts_steps(mine[n])]
        anew = bool(mine) and bool(others or any(changed[n] for n in counting))
        if anew and len(counting) < len(mine):
            names = ", ".join(sorted(others or set().union(*(changed[n] for n in counting))))
            raise InputError(
                f"the optimizer's rate follows what was measured, so {names} cannot change on a resume: set it back, or"
                " start a new run from the weights"
            )
        for n, scheduler in mine.items():
            if anew:
                _repeat(scheduler, saved[n], most)
                saved[n] = copy.deepcopy(scheduler.state_dict())
            else:  # what it has measured stays
                saved[n] |= {key: own[n][key] for key in changed[n]}
        done.append(anew if mine else None)
    return done


def _schedulers(trainer: L.Trainer, optimizer: Optimizer) -> dict[int, Any]:
    """Those of `optimizer`, by number."""
    every = enumerate(config.scheduler for config in trainer.lr_scheduler_configs)
    return {n: one for n, one in every if getattr(one, "optimizer", optimizer) is optimizer}


def _counts_steps(scheduler: Any) -> bool:
    """Whether the number of its steps is all that it goes by."""
    return isinstance(scheduler, LRScheduler) and not isinstance(scheduler, ReduceLROnPlateau)


def _repeat(scheduler: LRScheduler, saved: Mapping[str, Any], most: int) -> None:
    """Let a new scheduler make the steps that the saved one had made."""
    while "last_epoch" not in saved:  # a chain has only what its parts have
        saved = saved["_schedulers"][0]
    if not is_count(steps := saved["last_epoch"]) or steps > most:
        raise ValueError(f"a scheduler has made {steps} steps")
    with warnings.catch_warnings():  # that no optimizer has made a step
        warnings.simplefilter("ignore")
        for _ in range(steps):
            scheduler.step()


class Plateaus:
    """Lets the schedulers that follow a metric step before a checkpoint is written.

    Lightning lets them step behind it, so that a resume would lack the step.
    """

    _last: object = None

    def take_over(self, trainer: L.Trainer) -> None:
        loop = trainer.fit_loop.epoch_loop
        self._update = update = loop.update_lr_schedulers

        def others(interval: str, update_plateau_schedulers: bool) -> None:
            if not update_plateau_schedulers:
                update(interval, update_plateau_schedulers=False)

        loop.update_lr_schedulers = others  # type: ignore[method-assign]

    def step(self, interval: str, place: tuple[int, int]) -> None:
        """Once at each place."""
        if self._last != (interval, place):
            self._last = interval, place
            self._update(interval, update_plateau_schedulers=True)
