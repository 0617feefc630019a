"""From settings to the order of a training: of one dataset, of a mixture, with classes as they are or balanced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .balance import MOST_REPEATS, BalancedOrder
from .cache import Cache
from .class_numbers import at_hand, class_counts, classes_of, numbers_file, weights_of
from .dataset import Dataset, Shard
from .joined import join
from .mixture import Mixture, Source
from .order import Order, WindowedOrder, default_window_bytes
from .remote import open_dataset
from .repeats import Repeated
from .shortened import Shortened

Balance = float | str | Mapping[str, float]


def open_mixture(path: str, mixture: Mapping[str, float] | None) -> tuple[Dataset, dict[str, float]]:
    """The dataset to train on, and the share of each part, in their order; `path` is the first of them.

    Raises InputError where one cannot be opened or has no training samples, or where their targets differ.
    """
    shares = {str(place).rstrip("/"): share for place, share in (mixture or {path: 1.0}).items()}
    first = str(path).rstrip("/")
    if first not in shares:
        raise InputError(
            f"data.path {path} is none of data.mixture's datasets ({', '.join(shares)}): set it to the one whose"
            " val and test are to be measured on"
        )
    for place, share in shares.items():
        if not 0 < share < float("inf"):
            raise InputError(f"data.mixture: the share of {place} is {share}, it must be above 0")
    shares = {first: shares.pop(first), **shares}
    members = [open_dataset(place) for place in shares]
    for place, member in zip(shares, members, strict=True):
        if not member.splits.get("train"):
            raise InputError(f"{place} has no split named train: pack it again")
    return join(members) if mixture else members[0], shares


@dataclass(frozen=True)
class OrderRecipe:
    """What a shuffled order is made from.

    Args:
        dataset, shares: of `open_mixture`.
        split: mixtures and balance are for `train`.
        balance: the strength, 0..1, class -> factor, or the field of the samples' weights; None: each comes once.
        seed, fraction, window_samples, window_bytes: of a `WindowedOrder`; without `window_bytes`, this machine's
            memory says how large a window is.
        length, same: of a `Shortened` order; None: the whole.
        repeats: of a `Repeated` order, of which `length` is then a part; 1: as it is.
    """

    dataset: Dataset
    split: str
    shares: Mapping[str, float]
    balance: Balance | None = None
    seed: int = 0
    fraction: float = 1.0
    window_samples: int = 1 << 20
    window_bytes: int | None = None
    length: int | None = None
    same: bool = False
    repeats: int = 1

    def make(self, window_bytes: int | None = None) -> Order:
        """The order; `window_bytes` takes the place of what the memory allows, not of what was set."""
        whole = self._whole(window_bytes)
        whole = whole if self.repeats == 1 else Repeated(whole, self.repeats)
        return whole if self.length is None else Shortened(whole, self.length, self.same)

    def _whole(self, window_bytes: int | None) -> Order:
        settings: dict[str, Any] = {"seed": self.seed, "fraction": self.fraction, "window_samples": self.window_samples}
        settings["window_bytes"] = self.window_bytes or window_bytes or default_window_bytes()
        if self.balance is not None:
            return self._balanced(self.balance, settings)
        parts = self.dataset.parts(self.split)
        orders = [
            WindowedOrder([s.samples for s in shards], [s.bytes for s in shards], **settings) for _, shards in parts
        ]
        if len(orders) == 1:
            return orders[0]
        sources = [
            Source(order, share, sum(s.samples for s in shards), len(shards), part.fingerprint)
            for order, (part, shards), share in zip(orders, parts, self.shares.values(), strict=True)
        ]
        return Mixture(sources, self.seed)

    def _balanced(self, balance: Balance, settings: Mapping[str, Any]) -> BalancedOrder:
        dataset = self.dataset
        if len(self.shares) > 1:
            raise InputError("data.balance and data.mixture both decide how often an image comes: give one of them")
        if self.split != "train":
            raise InputError(f"balance is for the split train, not for {self.split!r}")
        numbers = {name: number for number, name in enumerate(dataset.targets)}
        wanted: float | dict[int, float] | None
        if isinstance(balance, str):
            if balance.startswith("{"):  # text to the parser, since it is no mapping to numbers
                raise InputError(f"data.balance {balance}: each class has a number, such as " + "{owl: 5}")
            wanted = None
        elif isinstance(balance, Mapping):
            if unknown := [name for name in balance if name not in numbers]:
                raise InputError(f"data.balance: {dataset.root} has no class {unknown[0]!r}")
            for name, factor in balance.items():
                if not 0 < factor <= MOST_REPEATS:
                    raise InputError(f"data.balance: {name} is {factor}, it must be above 0 and at most {MOST_REPEATS}")
            wanted = {numbers[name]: float(factor) for name, factor in balance.items()}
        elif 0 <= balance <= 1:
            wanted = float(balance)
        else:
            raise InputError(
                f"data.balance is {balance}, it must be between 0 and 1, class names with factors, or a field"
            )
        column = weights_of(dataset, balance) if isinstance(balance, str) else classes_of(dataset)
        shards, file = dataset.splits["train"], numbers_file(dataset, "train", column)
        return BalancedOrder([s.samples for s in shards], [s.bytes for s in shards], file, wanted, **settings)


def check_cache(
    dataset: Dataset,
    split: str,
    order: Order,
    kept: tuple[Path, int | None],
    samples: int,
    held_out: Sequence[Shard] = (),
) -> None:
    """Raise InputError where the cache, a folder and its bytes, is too small for what is at hand for so many samples in
    a row, and two shards of `held_out`. Nothing is cached of a dataset in a folder."""
    reaches = order.reaches(samples) if isinstance(order, (Mixture, Repeated)) else [order.reach(samples)]
    parts = zip(dataset.parts(split), reaches, strict=True)
    remote = [(str(part.root), shards, reach) for (part, shards), reach in parts if isinstance(part.root, str)]
    if remote:
        shards = [shard for _, part, _ in remote for shard in part]
        Cache(remote[0][0], *kept).check_capacity(sum(reach for *_, reach in remote), shards, held_out)


def memory_note(order: Order, dataset: Dataset, split: str) -> str | None:
    """A sentence where an order's window, made elsewhere, is more than this machine's page cache may keep."""
    window = min(order.settings["window_bytes"], sum(shard.bytes for shard in dataset.splits[split]))
    if window <= default_window_bytes():
        return None
    return (
        f"the order's windows are those it was begun with, up to {window / 2**30:.3g} GiB, more than a quarter of this"
        " machine's memory: shards may be read from the disk more than once"
    )


def describe(order: Order, dataset: Dataset, shares: Mapping[str, float]) -> str | None:
    """How often an epoch shows what, a line each; None where that is not known without reading the tars."""
    if isinstance(order, Repeated):
        shown, count = len(order) // order.repeats, len(order.order)
        line = f"each epoch: {shown:,} of {count:,} images, each {order.repeats} times (data.repeats)"
        return "\n".join(filter(None, (line, describe(order.order, dataset, shares))))
    if isinstance(order, Mixture):
        parts = zip(shares, order.sources, order.counts, strict=True)
        passes = (f"{count:,} of {place} ({count / len(s.order):.3g} times all of it)" for place, s, count in parts)
        return f"each epoch: {', '.join(passes)}"
    if isinstance(order, BalancedOrder):
        if order.settings["balance"] is not None:
            return _of_classes(dataset.targets, order.counts, order.factors)
        least, most = order.factors[order.counts.nonzero()[0][[0, -1]]]
        return f"each epoch: {len(order):,} images, each {least:.3g} to {most:.3g} times, by its weight (data.balance)"
    if not isinstance(order, WindowedOrder) or dataset.task != "single_label":
        return None
    if file := at_hand(dataset, "train", classes_of(dataset)):
        counts = class_counts(file, dataset, "train", order.shards_in_use)
        return _of_classes(dataset.targets, counts, np.ones(len(counts)))
    return None


def _of_classes(names: Sequence[str], counts: NDArray[np.int64], factors: NDArray[np.float64]) -> str | None:
    """How often an epoch shows the rarest and the commonest class; None where there are no classes."""
    present = counts.nonzero()[0].tolist()
    if not present:
        return None
    few, many = (choose(present, key=lambda number: (counts[number], factors[number])) for choose in (min, max))
    if few == many:
        times, images = counts[few] * factors[few], counts[few]
        return f"each epoch shows each class {times:,.0f} times: all have {images:,} images"
    seen = (
        f"{names[number]} ({what}, {counts[number]:,} images) {counts[number] * factors[number]:,.0f} times"
        for number, what in ((few, "the rarest"), (many, "the commonest"))
    )
    return f"each epoch shows {', '.join(seen)}"
