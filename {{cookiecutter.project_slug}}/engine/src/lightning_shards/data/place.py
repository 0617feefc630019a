"""Where a pass over a split stands: (epoch, position) of the next batch, and nothing of ranks, workers or batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from .dataset import Dataset
from .order import Order
from .training_order import OrderRecipe


def order_state(dataset: Dataset, order: Order) -> dict[str, Any]:
    """What an order was made from, as plain values: a place is one in this order and in no other."""
    return {"fingerprint": dataset.fingerprint, **order.settings}


def order_of(
    saved: Mapping[str, Any], dataset: Dataset, order: Order, recipe: OrderRecipe | None, began: str, way_out: str = ""
) -> Order:
    """The order that a place was saved in: `order`, or as `recipe` makes it with the window that it was begun with.

    Where nobody sets a window, the machine's memory does: the one to go on with is the saved one, on any machine.

    Args:
        began: what says so, such as "this run began with".
        way_out: what else to do where the dataset is another.

    Raises InputError where the dataset or the order is another.
    """
    window = saved.get("window_bytes")
    if saved.get("fingerprint") != dataset.fingerprint:
        raise InputError(f"the dataset at {dataset.root} is not the one that {began}{way_out}")
    if recipe and recipe.window_bytes is None and isinstance(window, int) and window > 0:
        order = order if order.settings["window_bytes"] == window else recipe.make(window)
    here = order_state(dataset, order)
    names = [name for name in dict.fromkeys([*here, *saved]) if saved.get(name) != here.get(name)]
    if names:
        changed = ", ".join(part for name in names for part in _changes(name, saved.get(name), here.get(name)))
        raise InputError(f"the order is not the one that {began}, these changed: {changed}; set them back")
    return order


def _changes(name: str, before: Any, now: Any) -> list[str]:
    """What differs in a setting, part by part, such as `mixture.2.share`."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before, now = (dict(enumerate(values, 1)) for values in (before, now))
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [key for key in dict.fromkeys([*now, *before]) if before.get(key) != now.get(key)]
        if parts := [part for key in keys for part in _changes(f"{name}.{key}", before.get(key), now.get(key))]:
            return parts
    return [f"{name} (was {_short(before)}, is {_short(now)})"]


def _short(value: Any) -> str:
    return f"of {len(value)}" if isinstance(value, list) else str(value)


@dataclass
class Place:
    """The next batch of `step` samples begins at `position` of the order of `epoch`.

    `recipe`: of the order, where it is none that somebody else made.
    """

    dataset: Dataset
    split: str
    order: Order
    step: int
    recipe: OrderRecipe | None = None
    epoch: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        if self.step > len(self.order):
            raise InputError(
                f"a step takes {self.step} samples on all ranks together, but {self.split} has {len(self.order)}:"
                " lower batch_size"
            )

    def advance(self, samples: int) -> None:
        """So many were handed out. What is less than a step at the epoch's end waits for another epoch."""
        self.position += samples
        if len(self.order) - self.position < self.step:
            self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        order = order_state(self.dataset, self.order)
        return {"epoch": self.epoch, "position": self.position, "split": self.split, "order": order}

    def gone_to(self, state: Mapping[str, Any]) -> Place:
        """The place that `state` is. Raises InputError where the dataset, the split or the order is another, or where
        it is no state."""
        try:
            epoch, position, saved = state["epoch"], state["position"], dict(state["order"])
            split = state.get("split", "train")
            if not (isinstance(epoch, int) and isinstance(position, int) and epoch >= 0):
                raise TypeError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError("this is no state of a loader: it lacks epoch, position or order") from None
        order = order_of(saved, self.dataset, self.order, self.recipe, "this state was saved with")
        if split != self.split:
            raise InputError(f"this state is one of the split {split}, not of {self.split}")
        if not 0 <= position <= len(order):
            raise InputError(f"this is no state of this loader: position {position} in an order of {len(order)}")
        place = replace(self, order=order, epoch=epoch, position=position)
        place.advance(0)
        return place
