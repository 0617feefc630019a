"""The place in a training, (epoch, position in the epoch's order), and what a checkpoint says of it.

It moves at optimizer steps, and on a resume the loaders start there: a jump, not a replay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..data.dataset import Dataset
from ..data.embedding import identities
from ..data.fields import Fields
from ..data.order import Order
from ..data.place import order_of, order_state
from ..data.shortened import Shortened
from ..data.training_order import OrderRecipe, memory_note
from ..errors import InputError


class PlaceInOrder:
    """What a datamodule knows of the course of a training.

    Attributes: `epoch` and `position` in its order, `images_seen`, and `note`, what a run's first lines say of the
    order.
    """

    dataset: Dataset
    sample_fields: Fields
    order: Order
    global_batch_size: int
    note: str | None
    _recipe: OrderRecipe
    epoch = position = images_seen = 0
    _start: tuple[int, int] = (0, 0)  # of a resume

    def shorten(self, batches: float, same: bool, flag: str) -> None:
        """Train on the first global batches of each epoch only.

        Args:
            batches: how many; a float is a share of them.
            same: on those of the first epoch, in every epoch.
            flag: the setting that says so. Raises InputError, with its name, where no batch is left.
        """
        samples = len(self.order)
        whole = samples // self.global_batch_size
        share = isinstance(batches, float) and batches <= 1  # 2.0 is a number, as Lightning has it
        steps = int(whole * batches) if share else min(whole, int(batches))
        if not steps:
            raise InputError(f"{flag} {batches:g} leaves none of an epoch's {whole} global batches: make it larger")
        if steps == whole and not same:
            return
        length = steps * self.global_batch_size
        self.order, self._recipe = Shortened(self.order, length, same), replace(self._recipe, length=length, same=same)
        self._add_note(f"each epoch: {'the same' if same else 'the first'} {length:,} of {samples:,} images ({flag})")

    def progress(self, epochs: int) -> float:
        """Share of a training of `epochs` epochs that is done, 0..1: what schedules follow."""
        return min(1.0, (self.epoch + self.position / len(self.order)) / max(1, epochs))

    def advance(self) -> None:
        """An optimizer step was taken: its global batch is done."""
        self.position += self.global_batch_size
        self.images_seen += self.global_batch_size

    @property
    def place(self) -> tuple[int, int]:
        """(epoch, position in its order)."""
        return self.epoch, self.position

    @property
    def has_moved(self) -> bool:
        """Since the training began or went on."""
        return self.place != self._start

    def batches(self, accumulation: int) -> tuple[int, int]:
        """Micro-batches of this epoch before and behind the place, counted from the epoch's end."""
        samples = len(self.order)
        whole, left = (n // self.global_batch_size for n in (samples, max(0, samples - self.position)))
        return (whole - left) * accumulation, left * accumulation

    def finish_epoch(self) -> None:
        self.epoch, self.position = self.epoch + 1, 0

    def checkpoint_state(self) -> dict[str, Any]:
        """The place in the training and what the order was made from; nothing about ranks, workers or micro-batches.

        `Checkpoints` keeps it under a fixed key: Lightning would keep a `state_dict` under the name of this class, and
        leave it out without a word where the class is another one on a resume.
        """
        place = {"epoch": self.epoch, "position": self.position, "images_seen": self.images_seen}
        return {**place, "order": self._order_state(), "embedded": identities(self.sample_fields)}

    def take_order(self, state: dict[str, Any]) -> None:
        """Go on with the order of a saved place. Raises InputError where it is one in another dataset or order."""
        way_out = ": restore it, or start a new run from its weights with --model.weights CHECKPOINT"
        if state.get("embedded", {}) != identities(self.sample_fields):
            raise InputError(
                "data.features or data.teacher is not what this run began with: set it back, embed with the same"
                " network again, or start a new run from its weights with --model.weights CHECKPOINT"
            )
        order = order_of(state["order"], self.dataset, self.order, self._recipe, "this run began with", way_out)
        if order is not self.order:
            self.order = order
            self._check_cache()
            self._add_note(memory_note(order, self.dataset, "train"))
        whole = self.order.whole if isinstance(self.order, Shortened) else self.order
        if state["position"] > len(whole):
            raise InputError(f"the checkpoint stands at image {state['position']} of an epoch of {len(whole)}")

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Go on at a saved place. Raises InputError where the dataset or the order is another."""
        self.take_order(state)
        self.epoch, self.position, self.images_seen = state["epoch"], state["position"], state["images_seen"]
        self._start = self.place

    def _order_state(self) -> dict[str, Any]:
        return order_state(self.dataset, self.order)

    def _add_note(self, line: str | None) -> None:
        self.note = "\n".join(filter(None, (self.note, line))) or None

    def _check_cache(self) -> None:
        """Raise InputError where the cache is too small for the order."""
        raise NotImplementedError
