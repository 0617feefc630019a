"""Which image goes into which split, and in which order: seeded, stratified, the same with every NumPy.

Random numbers are raw words of the Philox counter generator, whose stream never changes (that of
`Generator.permutation` may).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .source_table import SourceTable
from .spelling import SPLITS

_CARVE, _LIMIT, _SHUFFLE = range(3)  # each use of the seed has random numbers of its own


def _permutation(n: int, *seed: int) -> NDArray[np.int64]:
    return np.argsort(np.random.Philox(list(seed)).random_raw(n), kind="stable")


def _take(counts: NDArray[np.int64], fraction: float, offset: float) -> NDArray[np.int64]:
    """How many of each class: `fraction` of them, rounded so that small classes together give their share."""
    return np.diff(np.floor(np.cumsum(counts) * fraction + offset), prepend=0).astype(np.int64)


def _by_class(listing: SourceTable, rows: NDArray[np.int64], *seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`rows` grouped by class, shuffled within, and each class's size; one group if there are no classes."""
    rows = rows[_permutation(len(rows), *seed)]
    if listing.task != "single_label":
        return rows, np.array([len(rows)])
    classes = listing.values[rows]
    return rows[np.argsort(classes, kind="stable")], np.bincount(classes, minlength=len(listing.names))


def _carve(listing: SourceTable, splits: NDArray[np.int8], fractions: Mapping[int, float], seed: int) -> None:
    """Move a share of train into each split of `fractions`, in place; each class keeps one image in train."""
    rows, counts = _by_class(listing, np.flatnonzero(splits == 0), seed, _CARVE)
    start = np.cumsum(counts) - counts
    left = np.maximum(counts - 1, 0)
    for (split, fraction), offset in zip(
        fractions.items(), (0.75, 0.25), strict=False
    ):  # not the same small classes twice
        take = np.minimum(_take(counts, fraction, offset), left)
        for first, size in zip(start, take, strict=True):
            splits[rows[first : first + size]] = split
        start, left = start + take, left - take


def _limited(listing: SourceTable, rows: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.int64]:
    """`limit` of the `rows`, each class in proportion, but none of them lost."""
    grouped, counts = _by_class(listing, rows, seed, _LIMIT)
    if limit < np.count_nonzero(counts):
        raise InputError(f"--limit {limit} is less than the {np.count_nonzero(counts)} classes: each needs an image")
    take = np.maximum(_take(counts, limit / len(rows), 0.5), counts > 0)
    while take.sum() > limit:
        take[np.argmax(take)] -= 1
    place = np.arange(len(grouped)) - np.repeat(np.cumsum(counts) - counts, counts)
    return grouped[place < np.repeat(take, counts)]


def unlimited(listing: SourceTable, fractions: Mapping[str, float]) -> dict[str, int]:
    """Images of each split, about, whatever `--limit` leaves of them: taking a share of train rounds by class."""
    counts = np.bincount(np.maximum(listing.splits, 0), minlength=len(SPLITS)).tolist()
    taken = {s: round(counts[0] * fractions[s]) for n, s in enumerate(SPLITS) if fractions.get(s) and not counts[n]}
    found = dict(zip(SPLITS, counts, strict=True)) | taken | {"train": counts[0] - sum(taken.values())}
    return {split: count for split, count in found.items() if count}


def plan(
    listing: SourceTable, fractions: Mapping[str, float], limit: int | None, seed: int
) -> dict[str, NDArray[np.int64]]:
    """The items of each split, shuffled. Fractions count only for splits that the source does not give."""
    splits = np.maximum(listing.splits, 0)
    missing = {n: fractions[s] for n, s in enumerate(SPLITS) if fractions.get(s) and not np.any(splits == n)}
    if missing:
        _carve(listing, splits, missing, seed)
    order = {}
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(splits == number)
        if limit and limit < len(rows):
            rows = np.sort(_limited(listing, rows, limit, seed))
        if len(rows):
            order[split] = rows[_permutation(len(rows), seed, _SHUFFLE, number)]
    if "train" not in order:
        raise InputError("there are no images to train on: no row has the split `train`")
    if listing.task == "single_label":
        lacking = np.setdiff1d(np.arange(len(listing.names)), listing.values[order["train"]])
        if len(lacking):
            raise InputError(
                f"class {listing.names[lacking[0]]!r} has no image to train on: add one or remove the class"
            )
    return order
