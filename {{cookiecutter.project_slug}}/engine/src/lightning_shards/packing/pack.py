"""`pack`: from a user's images to a dataset of tar shards, in several processes, all or nothing.

    sources (what there is) -> listing (columns in files) -> plan (each split's order)
        -> pool, worker, encode (one shard after the other) -> summary (dataset.json) -> rename

Everything is written into `.<name>.packing` beside the destination, and a finished shard has a record there:
the same command goes on with the shards that have none. The dataset gets its name by one rename at the end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, RunError
from ..files import fsync_folder, save_array, write_durably
from ..machine import locked
from .pool import Pool, Progress
from .source_table import SourceTable
from .sources import FULL, list_source
from .spelling import SPLITS
from .splits import plan, unlimited
from .summary import finish
from .table_rows import TableColumns


@dataclass(frozen=True)
class PackOptions:
    """What decides the bytes of a dataset, beside its source.

    Attributes:
        task: what the targets are; None: as the source says, or single_label.
        names: of the classes of masks and boxes, 0, 1, 2 ...; empty: their numbers.
        coco: annotations with boxes of a folder's images; empty: those that lie in it.
        short_side: larger images are made so small; None keeps every byte.
        quality: of JPEG, for images that are encoded anew.
        val, test: fraction for a split that the source does not give; 0 leaves it out.
        shard_bytes: size of a shard, about.
        limit: images a split at most, for a trial.
    """

    task: str | None = None
    names: tuple[str, ...] = ()
    coco: tuple[Path, ...] = ()
    columns: TableColumns = field(default_factory=TableColumns)
    short_side: int | None = 256
    quality: int = 95
    val: float = 0.1
    test: float = 0.1
    shard_bytes: int = 256_000_000
    limit: int | None = None
    seed: int = 0

    def check(self, workers: int, max_damaged_fraction: float) -> None:
        """Raises InputError for numbers that make no sense."""
        for name, right, expected in (
            (
                "--val and --test",
                min(self.val, self.test) >= 0 and self.val + self.test < 1,
                "fractions, below 1 together",
            ),
            ("--short-side", self.short_side is None or self.short_side > 0, "1 or more"),
            ("--quality", 1 <= self.quality <= 100, "1 to 100"),
            ("--shard-bytes", self.shard_bytes >= 10_000, "10K or more"),
            ("--limit", self.limit is None or self.limit > 0, "1 or more"),
            ("--seed", self.seed >= 0, "0 or more"),
            ("--workers", workers > 0, "1 or more"),
            ("--max-damaged-fraction", 0 <= max_damaged_fraction <= 1, "between 0 and 1"),
        ):
            if not right:
                raise InputError(f"{name} must be {expected}")


def is_dataset(folder: Path) -> bool:
    """Whether `pack` wrote this folder, in this version or another."""
    try:
        content = json.loads((folder / "dataset.json").read_bytes())
        return str(content["format"]).startswith("lightning-shards/")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_places(source: Path, dest: Path, images: Path | None, force: bool) -> None:
    for place in filter(None, (source, images)):
        if dest == place or dest in place.parents or (source.is_dir() and source in dest.parents):
            raise InputError(f"{dest} and {place} lie within each other: write the dataset somewhere else")
    if dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        if not is_dataset(dest):
            raise InputError(f"{dest} exists and is no dataset, so it is never replaced: choose another name")
        if not force:
            raise InputError(f"{dest} exists; --force replaces it once the new dataset is complete")


def pack(
    source: Path,
    dest: Path,
    recipe: PackOptions,
    workers: int,
    *,
    force: bool = False,
    max_damaged_fraction: float = 0.01,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Pack `source` into the dataset `dest`; the report says what it holds.

    Raises InputError (nothing is written), RunError (too much damage, a full disk) and Stopped; after both of
    these the same command goes on where it was.
    """
    recipe.check(workers, max_damaged_fraction)
    source, dest = source.resolve(), dest.resolve()
    images = recipe.columns.images.resolve() if recipe.columns.images else None
    recipe = replace(recipe, columns=replace(recipe.columns, images=images))
    work = dest.with_name(f".{dest.name}.packing")
    if (work / "old").exists() and not dest.exists():
        (work / "old").rename(dest)  # killed between the two renames of `_publish`
    _check_places(source, dest, images, force)
    with _working(work, dest):
        started = time.monotonic()
        listing, sizes, digest = _prepare(source, work, recipe)
        with Pool(work, recipe.short_side, recipe.quality, workers) as pool:
            tasks = pool.tasks(listing, sizes, recipe.shard_bytes)
            _forget_other_plans(work, json.dumps([asdict(recipe), digest, tasks], default=str))
            finished = pool.write(listing, tasks, max_damaged_fraction, progress)
        report = finish(work, listing, tasks, _settings(source, recipe, listing, sizes))
        report["listed"] = unlimited(listing, {"val": recipe.val, "test": recipe.test})
        _publish(work, dest)
    seconds = time.monotonic() - started
    packed_now = sum(sizes.values()) - finished
    return {
        "dataset": str(dest),
        **report,
        "seconds": round(seconds, 2),
        "images_per_second": round(packed_now / seconds),
        "packed_before": finished,
    }


@contextmanager
def _working(work: Path, dest: Path) -> Iterator[None]:
    """The folder that is worked in, for this process alone: gone when all is done, and where nothing is to be written.

    Of whatever else ends the work, what is finished stays there, and a person is told how to go on.
    """
    made = [folder for folder in (work, *work.parents) if not folder.exists()]
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{dest} cannot be made ({error.strerror}): choose another place") from None
    kept = "finished shards are kept: "
    try:
        with locked(work / "lock", stop=lambda: True):
            yield
        shutil.rmtree(work)
    except BlockingIOError:
        raise InputError(f"another process is packing into {dest}: wait for it, or choose another name") from None
    except InputError:
        for folder in made:
            shutil.rmtree(folder) if folder == work else folder.rmdir()
        raise
    except BrokenProcessPool:
        what = "a worker process was killed (out of memory?)"
        raise RunError(f"{what}; {kept}run the same command with fewer --workers") from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise RunError(f"{dest.parent}: {error.strerror}; {kept}make room and run the same command again") from None


def _prepare(source: Path, work: Path, recipe: PackOptions) -> tuple[SourceTable, dict[str, int], str]:
    """List the source and write each split's order. Returns the listing, the splits' sizes and a hash."""
    shutil.rmtree(work / "listing", ignore_errors=True)
    (work / "listing").mkdir()
    listing, digest = list_source(source, recipe.task, recipe.columns, work / "listing", recipe.names, recipe.coco)
    order = plan(listing, {"val": recipe.val, "test": recipe.test}, recipe.limit, recipe.seed)
    for split, items in order.items():
        save_array(work / f"{split}.npy", items)
    return listing, {split: len(items) for split, items in order.items()}, digest


def _settings(source: Path, recipe: PackOptions, listing: SourceTable, sizes: Mapping[str, int]) -> dict[str, Any]:
    """How the dataset was made, for people; no path of this machine."""
    given = [split for number, split in enumerate(SPLITS) if np.any(listing.splits == number)]
    return {
        "source": source.name,
        **{name: value for name, value in asdict(recipe).items() if name not in ("task", "names", "columns", "coco")},
        "taken_from_train": {split: getattr(recipe, split) for split in sizes if split not in ("train", *given)},
    }


def _publish(work: Path, dest: Path) -> None:
    """Put the finished dataset in its place; an old one leaves it only now."""
    for split in SPLITS:
        if not any((work / "dataset" / split).iterdir()):
            (work / "dataset" / split).rmdir()
    if is_dataset(dest):
        shutil.rmtree(work / "old", ignore_errors=True)
        dest.rename(work / "old")
    (work / "dataset").rename(dest)
    fsync_folder(dest.parent)


def _forget_other_plans(work: Path, content: str) -> None:
    """Shards of another source or recipe are not gone on with."""
    key = hashlib.sha256(content.encode()).hexdigest().encode()
    if not (work / "plan").exists() or (work / "plan").read_bytes() != key:
        for name in ("done", "dataset"):
            shutil.rmtree(work / name, ignore_errors=True)
    for folder in ("done", *(f"dataset/{split}" for split in SPLITS)):
        (work / folder).mkdir(parents=True, exist_ok=True)
    write_durably(work / "plan", key)
