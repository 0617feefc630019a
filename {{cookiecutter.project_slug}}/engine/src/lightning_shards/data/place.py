"""Where a pass over a split stands: (epoch, position) of the next batch, and nothing of ranks, workers or batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .dataset import Dataset
from .order import Order


@dataclass
class Place:
    """The next batch of `step` samples begins at `position` of the order of `epoch`."""

    dataset: Dataset
    split: str
    order: Order
    step: int
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
        order = {"fingerprint": self.dataset.fingerprint, **self.order.settings}
        return {"epoch": self.epoch, "position": self.position, "split": self.split, "order": order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go there. Raises InputError where the dataset, the split or the order is another, or this is no state."""
        now = self.state_dict()
        try:
            epoch, position, saved = state["epoch"], state["position"], dict(state["order"])
            split = state.get("split", "train")
            if not (isinstance(epoch, int) and isinstance(position, int) and epoch >= 0):
                raise TypeError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError("this is no state of a loader: it lacks epoch, position or order") from None
        if saved.get("fingerprint") != now["order"]["fingerprint"]:
            raise InputError(f"the dataset at {self.dataset.root} is not the one that this state was saved with")
        here = {"split": self.split, **now["order"]}
        saved["split"] = split
        names = [name for name in dict.fromkeys([*here, *saved]) if saved.get(name) != here.get(name)]
        changed = [f"{name} (was {saved.get(name)}, is {here.get(name)})" for name in names]
        if changed or not 0 <= position <= len(self.order):
            raise InputError(
                f"a state goes on with the order that it was saved with, but these changed: {', '.join(changed)}"
                if changed
                else f"this is no state of this loader: position {position} in an order of {len(self.order)}"
            )
        self.epoch, self.position = epoch, position
        self.advance(0)
