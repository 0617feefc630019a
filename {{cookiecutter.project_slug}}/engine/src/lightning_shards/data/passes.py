"""What the two front doors share: a split is opened, a rank has its part of it, and the place stays between passes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..machine import cache_folder
from ..terminal import say
from .checks import check_settings, refuse_unknown
from .dataset import Dataset
from .opening import open_split, recipe_or_order, refuse_without_shuffle
from .place import Place
from .ranks import find_ranks
from .sampler import EvalSampler, TrainSampler
from .training_order import check_cache, memory_note
from .worker import RING_SIZE


class Passes:
    """Passes over a split, on one of several ranks.

    Attributes: `epoch` and `position`, where the next batch begins; `dataset`; `rank` and `world_size`.
    """

    dataset: Dataset
    _sampler: TrainSampler | EvalSampler
    _place: Place | None = None  # None: not shuffled

    def _open(self, given: Mapping[str, Any]) -> None:
        """Raises InputError for what cannot be used among the arguments `given` to the constructor."""
        refuse_unknown(type(self), given["unknown"])
        check_settings(given)
        split, shuffle, batch, accumulation = (
            given[name] for name in ("split", "shuffle", "batch_size", "accumulation")
        )
        self.dataset, shares = open_split(given["path"], split, given["mixture"])
        self.split, self.batch_size, self._ranks = split, batch, find_ranks(given["rank"], given["world_size"])
        self.rank, self.world_size = self._ranks.rank, self._ranks.world
        self._cache = (Path(given["cache"]) if given["cache"] else cache_folder(), given["cache_bytes"])
        drawn = {name: given[name] for name in ("balance", "fraction", "window_samples", "window_bytes")}
        if split == "train" if shuffle is None else shuffle:
            recipe, order = recipe_or_order(self.dataset, split, shares, given["order"], given["seed"], drawn)
            place = Place(self.dataset, split, order, batch * self.world_size * accumulation, recipe)
            self._sampler = TrainSampler(order, self.rank, self.world_size, batch, accumulation, (0, 0))
            self._check_cache(place)
            self._place = place
        else:
            drawn |= {"order": given["order"], "accumulation": None if accumulation == 1 else accumulation}
            refuse_without_shuffle(drawn)
            count = self.dataset.samples(split)
            self._sampler = EvalSampler(count, self.rank, self.world_size, min(batch, count))

    @property
    def epoch(self) -> int:
        return self._place.epoch if self._place else 0

    @property
    def position(self) -> int:
        """In the epoch's order: how many of its samples were handed out, on all ranks together."""
        return self._place.position if self._place else 0

    def progress(self, epochs: int) -> float:
        """Share of a training of `epochs` epochs that was handed out, 0..1: for schedules that fit any hardware."""
        place = self._saved()
        return (place.epoch + place.position / len(place.order)) / max(1, epochs)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, and what the order is made from: plain values, the same on every rank."""
        return self._saved().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there, on any number of ranks and workers, with any batch size and any memory."""
        before = self._saved()
        place = before.gone_to(state)
        if place.order is not before.order:
            self._check_cache(place)
            if self.rank == 0 and (note := memory_note(place.order, self.dataset, self.split)):
                say(note, sys.stderr)
        self._place, self._sampler.order = place, place.order  # type: ignore[union-attr]

    def _at_place(self) -> TrainSampler | EvalSampler:
        """The sampler of the pass that begins."""
        if self._place and isinstance(self._sampler, TrainSampler):
            self._sampler.start = self._place.epoch, self._place.position
            self._sampler.set_epoch(self._place.epoch)
        return self._sampler

    def _check_cache(self, place: Place) -> None:
        samples = (RING_SIZE + 1) * self.batch_size * self.world_size
        check_cache(self.dataset, self.split, place.order, self._cache, samples)

    def _saved(self) -> Place:
        if self._place is None:
            raise InputError(f"a {type(self).__name__} that does not shuffle has no state: each of its passes is whole")
        return self._place
