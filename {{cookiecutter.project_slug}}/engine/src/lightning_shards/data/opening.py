"""What a loader's settings open: a split of a dataset or of a mixture, and the order in which it is shuffled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .dataset import Dataset
from .order import Order
from .remote import open_dataset
from .training_order import OrderRecipe, open_mixture


def open_split(
    path: str | Path, split: str, mixture: Mapping[str, float] | None = None
) -> tuple[Dataset, dict[str, float]]:
    """The dataset in a folder or behind a URL, and the share of each part of it.

    Raises InputError where it, or the split, is missing.
    """
    if mixture is not None:
        if split != "train":
            raise InputError(f"a mixture is one of training samples: it has no split {split!r}")
        return open_mixture(str(path), mixture)
    dataset = open_dataset(str(path))
    if not dataset.splits.get(split):
        has = ", ".join(name for name, shards in dataset.splits.items() if shards)
        raise InputError(f"{path} has no split named {split!r}; it has {has or 'none'}")
    return dataset, {str(path): 1.0}


def recipe_or_order(
    dataset: Dataset,
    split: str,
    shares: Mapping[str, float],
    order: Order | None,
    seed: int,
    settings: Mapping[str, Any],
) -> tuple[OrderRecipe | None, Order]:
    """`order` alone, or the one of `settings` and its recipe: balance, fraction, window_samples, window_bytes; None is
    the default."""
    given = {name: value for name, value in settings.items() if value is not None}
    if order is not None:
        if given or len(shares) > 1:
            raise InputError(f"order and {', '.join(given) or 'mixture'} exclude each other: an order has its own")
        return None, order
    recipe = OrderRecipe(dataset, split, shares, seed=seed, **given)
    return recipe, recipe.make()


def refuse_without_shuffle(settings: Mapping[str, Any]) -> None:
    """Raise InputError for settings of an order where there is none."""
    if given := [name for name, value in settings.items() if value is not None]:
        raise InputError(f"{', '.join(given)}: of no use without shuffle, which only the split train has by itself")
