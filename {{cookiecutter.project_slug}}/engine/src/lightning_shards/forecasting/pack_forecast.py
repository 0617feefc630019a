"""A forecast before packing: a sample of the source is packed into a temporary folder, and trained on for a while."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from ..cost.usage import JOULES_PER_KWH
from ..data.dataset import Dataset
from ..errors import InputError
from ..packing.pack import PackOptions, pack
from ..packing.pool import Stopped
from ..train.datamodule import ShardDataModule
from .forecast import Announce, forecast

AT_LEAST = 100_000  # training samples that the sample stands for, by repetition: global batches need so many
MOST_LINKS = 4_000  # by which shards are repeated


def forecast_source(
    model_class: type[LightningModule],
    source: Path,
    recipe: PackOptions,
    workers: int,
    settings: Sequence[str],
    images: int,
    seconds: float,
    announce: Announce,
    sample: int = 2_000,
    max_damaged_fraction: float = 0.01,
    datamodule_class: type[ShardDataModule] = ShardDataModule,
) -> dict[str, Any]:
    """As `forecast`, for a dataset that is not packed yet; `packing` in the report says what that will take.

    Args:
        source, recipe, workers, max_damaged_fraction: as for `pack`.
        datamodule_class: as for `forecast`.
        sample: images of each split that are packed and trained on.

    Raises what `pack` and `forecast` do; the temporary folder is gone afterwards in any case.
    """
    announce("a sample of the source")
    with tempfile.TemporaryDirectory(prefix=".forecast-", dir=_disk(source), ignore_cleanup_errors=True) as folder:
        dest, pace = Path(folder) / "sample", _Pace()
        try:
            packed = pack(
                source,
                dest,
                replace(recipe, limit=sample),
                workers,
                max_damaged_fraction=max_damaged_fraction,
                progress=pace,
            )
        except Stopped:
            raise KeyboardInterrupt from None  # nothing of it is kept
        except InputError as error:
            raise InputError(str(error).replace("--limit", "--sample").replace("--images", "--image-root")) from None
        whole = packed["listed"]
        repeat_shards(dest, min(whole["train"], AT_LEAST))
        settings = [*settings, "--data.path", str(dest)]
        report = forecast(model_class, settings, images, seconds, announce, whole, datamodule_class)
    report["dataset"]["path"] = str(source)
    rate = pace.rate or packed["images_per_second"]
    size = sum(
        split["bytes"] / split["images"] * whole.get(name, split["images"]) for name, split in packed["splits"].items()
    )
    total, host = sum(whole.values()), report["host"]
    took = pace.waited + total / rate
    kwh = host["watts"] * took / JOULES_PER_KWH
    report["packing"] = {
        "sampled": sum(split["images"] for split in packed["splits"].values()),
        "images": total,
        "bytes": round(size),
        "images_per_second": rate,
        "workers": workers,
        "seconds": took,
        "hours": took / 3600,
        "kwh": kwh,
        "cost": kwh * host["electricity"] if host["rent"] is None else host["rent"] * took / 3600,
    }
    return report


def _disk(source: Path) -> Path | None:
    """The project's folder, where the dataset would lie; the system's where that cannot be, or is in the source."""
    here, source = Path.cwd(), source.resolve()
    try:
        tempfile.TemporaryFile(dir=here).close()
    except OSError:
        return None
    return None if source in (here, *here.parents) else here


def repeat_shards(folder: Path, wanted: int) -> None:
    """Give a dataset's training shards further names, until it has about `wanted` samples, or the disk no links."""
    dataset = Dataset.open(folder)
    train = list(dataset.splits["train"])
    times = max(1, min(wanted // dataset.samples("train"), MOST_LINKS // len(train)))
    again = [replace(shard, name=f"train/{n}-{Path(shard.name).name}") for n in range(1, times) for shard in train]
    with suppress(OSError):
        for shard, of in zip(again, train * (times - 1), strict=True):
            for suffix in ("", ".index"):
                (folder / f"{shard.name}{suffix}").hardlink_to(folder / f"{of.name}{suffix}")
        replace(dataset, splits={**dataset.splits, "train": [*train, *again]}).save()


class _Pace:
    """A progress of `pack` that notes how fast it goes, and how long it took to begin."""

    def __init__(self) -> None:
        self._made, self._first, self._last = time.monotonic(), (0.0, 0), (0.0, 0)

    def __call__(self, done: int, total: int) -> None:
        self._last = time.monotonic(), done
        if done and not self._first[1]:
            self._first = self._last

    @property
    def waited(self) -> float:
        """Seconds of listing the source and of starting processes."""
        return max(0.0, self._first[0] - self._made)

    @property
    def rate(self) -> float:
        """Images/s; 0 where it was over before it could be seen twice."""
        seconds, images = self._last[0] - self._first[0], self._last[1] - self._first[1]
        return images / seconds if images and seconds else 0.0
