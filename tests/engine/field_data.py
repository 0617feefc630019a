"""A dataset whose samples hold one of everything, and a loader of it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import webdataset
from lightning_shards.data.crop import Crop
from lightning_shards.data.dataset import Dataset, Shard
from lightning_shards.data.loader import EpochLoader, SkipLog
from lightning_shards.data.order import WindowedOrder
from lightning_shards.data.sampler import EvalSampler, TrainSampler
from lightning_shards.data.worker import WorkerSpec


def number_image(number: int, height: int, width: int) -> np.ndarray:
    """A mask of blocks of 4 classes, uint8 (height, width)."""
    blocks = np.random.default_rng(number).integers(0, 4, (height // 8 + 1, width // 8 + 1), np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width]


def gray(values: np.ndarray, extension: str) -> bytes:
    """An image file in three colours that are equal."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 100] if extension == "jpg" else []
    return cv2.imencode(f".{extension}", cv2.cvtColor(values, cv2.COLOR_GRAY2BGR), options)[1].tobytes()


def members(number: int, extension: str = "png") -> dict[str, bytes]:
    """Everything that a sample holds; its image shows its mask in gray, 60 a class."""
    height, width = 40 + number % 7 * 4, 48 + number % 5 * 6
    mask = number_image(number, height, width)
    array = io.BytesIO()
    np.save(array, np.arange(number % 4, dtype=np.float64))
    return {
        extension: gray(mask * 60, extension),
        "seg.png": cv2.imencode(".png", mask)[1].tobytes(),
        "cls": str(number % 3).encode(),
        "boxes.json": json.dumps({"boxes": [[0, 0, width, height], [1, 2, 9, 12]], "labels": [1, 0]}).encode(),
        "txt": f"sample {number}: é".encode(),
        "json": json.dumps({"number": number}).encode(),
        "npy": array.getvalue(),
        "depth": np.array([height, width], "<u2").tobytes() + (mask * 60).astype("<f2").tobytes(),
    }


def write(
    root: Path,
    count: int = 40,
    replaced: Mapping[tuple[int, str], bytes | None] | None = None,
    extension: str = "png",
    fields: Mapping[str, Any] | None = None,
) -> Dataset:
    """Samples in two shards; `replaced` by (number, extension) are other bytes, or with None missing."""
    shards = []
    (root / "train").mkdir(parents=True)
    for shard in range(2):
        tar = root / "train" / f"{shard:06d}.tar"
        with tar.open("wb") as file, webdataset.TarWriter(file, mtime=0) as writer:
            for number in range(shard * count // 2, (shard + 1) * count // 2):
                found: dict[str, Any] = {"__key__": f"{number:08d}", **members(number, extension)}
                found |= {name: data for (of, name), data in (replaced or {}).items() if of == number}
                writer.write({name: data for name, data in found.items() if data is not None})
        checksum = hashlib.sha256(tar.read_bytes()).hexdigest()
        shards.append(Shard(f"train/{tar.name}", count // 2, tar.stat().st_size, checksum))
    dataset = Dataset(root, "single_label", ["a", "b", "c"], {"train": shards}, fields=fields or {})
    dataset.save()
    return Dataset.open(root)


def loader(
    dataset: Dataset,
    fields: Mapping[str, Any],
    transform: Any = None,
    *,
    crop: Crop | None = None,
    train: bool = True,
    micro: int = 8,
    workers: int = 1,
    processes: int = 1,
    rank: int = 0,
    world: int = 1,
    log: Path | None = None,
) -> EpochLoader:
    shards = dataset.splits["train"]
    order = WindowedOrder([shard.samples for shard in shards], [shard.bytes for shard in shards])
    sampler = (
        TrainSampler(order, rank, world, micro, 1, (0, 0)) if train else EvalSampler(len(order), rank, world, micro)
    )
    spec = WorkerSpec(
        dataset, "train", crop or Crop(32), micro, 3 if train else None, workers, (Path(), None), fields, transform
    )
    return EpochLoader(spec, sampler, SkipLog(log, 1e9), None, processes)
