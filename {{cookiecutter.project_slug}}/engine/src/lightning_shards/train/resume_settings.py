"""Which settings may change when a run goes on, and how the optimizer's take effect: docs/resume.md in code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ..errors import InputError
from ..terminal import several
from ..vision.calibration import fitted_values
from ..vision.pretrained import Pretrained
from . import optimizer_state, schedules
from .trained_model import SETTINGS, is_source, kept_setting

NEEDS_NEW_RUN = ("model.optimizer", "model.weights")  # and what makes other weights: `check` sees by names and shapes
FIXED = (  # the order, which says what a place in the training means: the datamodule's `take_order` refuses others
    "seed_everything",
    "data.fraction",
    "data.window_samples",
    "data.window_bytes",
    "data.mixture",
    "data.balance",
    "data.repeats",
    "data.features",
    "data.teacher",
    "trainer.overfit_batches",
)  # all other settings take effect


def check(
    model: L.LightningModule,
    content: Mapping[str, Any],
    place: Mapping[str, Any],
    changed: Mapping[str, Any],
    max_epochs: int,
    best: object,
) -> None:
    """Raise InputError where a run cannot go on from the checkpoint's `content` with the settings that `changed`."""
    anew = f"start a new run, without --resume, from its weights with --model.weights {best}"
    weights = changed.get("model.weights", ())  # by which an own model may mean something else
    if (weights is None or is_source(weights)) and (content.get(SETTINGS) or {}).get("weights") is None:
        raise InputError(
            "model.weights cannot be set with --resume: the run goes on with the weights of its checkpoint"
        )
    if "model.optimizer" in changed:
        raise InputError(f"model.optimizer cannot change on a resume, its state is another one: {anew}")
    if _by_layer(model.hparams) != _by_layer(content.get("hyper_parameters")):
        raise InputError(f"model.layer_decay cannot change from or to 1 on a resume, which has other groups: {anew}")
    done, begun = place["epoch"], bool(place["position"])
    if done + begun > max_epochs:
        raise InputError(
            f"trainer.max_epochs is {max_epochs}, and the run is in epoch {done + 1} already"
            if begun
            else f"trainer.max_epochs is {max_epochs}, and the run has done {several(done, 'epoch')} already"
        )
    if not _fits(model, content["state_dict"]):
        names = [n for n in changed if n.startswith("model.") or n == "data.image_size"]
        cause = ", ".join(names) or "the model's code"
        raise InputError(f"the run's weights do not fit the model, {cause} has changed: {anew}")


def _by_layer(settings: Any) -> bool:
    """Whether the optimizer has a group of parameters for each block, by the model's hyperparameters."""
    return isinstance(settings, Mapping) and settings.get("layer_decay", 1.0) != 1


def pretrained(settings: Any, folder: Path) -> None:
    """Let the model of the run in `folder` go on with images as the weights that it began with expect them.

    Args:
        settings: of the model; `pretrained` is set, where the model has that setting in the engine's sense.

    Raises InputError where they name another mean, deviation or size.
    """
    given = settings.get("pretrained")
    if "pretrained" not in settings or not isinstance(given, Mapping | None):
        return
    kept = kept_setting(folder, "pretrained")
    if isinstance(kept, dict):
        settings["pretrained"] = kept
    before = Pretrained().updated(kept) if isinstance(kept, dict) else Pretrained()
    if given and before.updated(given) != before:
        raise InputError(
            "model.pretrained cannot change on a resume, the weights have learned from images that were made so: set"
            " it back, or start a new run with --model.weights"
        )


def _fits(model: L.LightningModule, saved: Mapping[str, Any]) -> bool:
    """Whether the names and shapes of the state agree; true where only the model itself can say."""
    if (
        not model.strict_loading
        or is_overridden("configure_model", model)
        or is_overridden("on_load_checkpoint", model)
    ):
        return True
    now = model.state_dict()
    if any(is_lazy(value) for value in now.values()):
        return True
    there = {name: now[name] for name in fitted_values(model)} | dict(saved)  # older checkpoints have none
    return now.keys() == there.keys() and all(
        getattr(value, "shape", None) == getattr(there[name], "shape", None) for name, value in now.items()
    )


def options(optimizers: Iterable[Optimizer]) -> list[dict[str, Any]]:
    """Kind and plain options of each optimizer's groups, as plain data."""
    return [{"kind": type(one).__name__, "groups": [_plain(group) for group in one.param_groups]} for one in optimizers]


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in group.items()
        if name != "params"
        and all(isinstance(v, (bool, int, float, str)) for v in (value if isinstance(value, tuple) else (value,)))
    }


def keep_options(
    trainer: L.Trainer, before: Mapping[str, Any], global_batch_size: int, note: Callable[[Any, Any], None]
) -> None:
    """Let options that the model now gives, and gave otherwise in the run before, outlive the load of the state.

    What is as it was keeps what the training, and the schedulers in it, have made of it.

    Args:
        before: `options`, `schedules` and `global_batch_size` with which that start began which has written the
            checkpoint.
        global_batch_size: of this start.
        note: takes those of this start.
    """
    strategy = trainer.strategy
    load = strategy.load_optimizer_state_dict

    def load_and_put_back(checkpoint: Mapping[str, Any]) -> None:
        now, old, saved = options(strategy.optimizers), before.get("options"), checkpoint["lr_schedulers"]
        note(now, schedules.states(trainer))
        if old is not None and [one["kind"] for one in old] != [one["kind"] for one in now]:
            raise InputError(
                "the model's optimizer is of another kind than the run's: start a new run from its weights"
            )
        if len(checkpoint["optimizer_states"]) != len(now):
            raise InputError("the model has more or fewer optimizers than the run: start a new run from its weights")
        schedules.check(trainer, saved)
        schedules.check_batch(trainer, before.get("global_batch_size"), global_batch_size)
        try:
            anew = schedules.renew(trainer, saved, before.get("schedules"), _rates(now, old or now))
            made = options(strategy.optimizers)
            load(checkpoint)
            for number, one in enumerate(strategy.optimizers):
                for place, group in enumerate(one.param_groups):
                    given, was, new = (each[number]["groups"][place] if each else {} for each in (now, old, made))
                    theirs = schedules.sets(group) if anew[number] is not None else set()
                    changed = {name for name in given if name not in was or was[name] != given[name]}
                    put = changed - theirs | (theirs & new.keys() if anew[number] else set())
                    group |= {name: new[name] for name in put}
                optimizer_state.check(one, now[number]["groups"])
                optimizer_state.lay_out(one)
        except ValueError as error:  # other groups, or other parameters in them
            raise InputError(f"the optimizer's state does not fit: {error}; start a new run from its weights") from None

    strategy.load_optimizer_state_dict = load_and_put_back  # type: ignore[method-assign]


def _rates(now: list[dict[str, Any]], old: list[dict[str, Any]]) -> list[set[str]]:
    """Of each optimizer, the options of schedulers that are given otherwise now."""
    return [
        {
            name
            for new, was in zip(one["groups"], other["groups"], strict=True)
            for name in schedules.sets(new) & was.keys() & new.keys()
            if was[name] != new[name]
        }
        for one, other in zip(now, old, strict=True)
    ]
