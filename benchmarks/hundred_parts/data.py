"""10,000 shards of 10,000 small images: hard links to a few dozen, which `pack --decoded` made.

The images are Fashion-MNIST's of the sample, each enlarged to a side drawn anew for every tar. A link is read, opened,
mapped and checked like any file; what it cannot show is a disk, since all links of a tar lie in the same page cache.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning_shards.data.dataset import Dataset, Shard
from lightning_shards.machine import cpus
from lightning_shards.packing.decoded import keep_decoded
from lightning_shards.packing.pack import PackOptions, pack
from numpy.typing import NDArray

from .ledger import TARGETS

SAMPLE = next(Path(__file__).parents[2].glob("*cookiecutter*/sample/*.zip"))
SHARDS_A_PACK = 8  # as many as `pack` makes at least


@dataclass(frozen=True)
class Size:
    """How large a dataset: `shards` of `each` samples, of which `packs` x SHARDS_A_PACK are different ones.

    `sides`: the least and the most pixels of an image's side.
    """

    shards: int
    each: int
    packs: int
    sides: tuple[int, int]

    @property
    def samples(self) -> int:
        return self.shards * self.each


def make(folder: Path, size: Size, seed: int) -> tuple[Path, dict[str, Any]]:
    """The dataset's folder in `folder`, and what is in it, to be said with the figures."""
    images = list(sample_images())
    packed = [pack_tars(folder / f"pack-{number}", size, images, seed + number) for number in range(size.packs)]
    return _link(folder / "dataset", [(part, shard) for part in packed for shard in part.splits["train"]], size)


def sample_images() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """(class, pixels) of each image of the sample."""
    with zipfile.ZipFile(SAMPLE) as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".png")):
            pixels = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_GRAYSCALE)
            assert pixels is not None
            yield name.split("/")[-2], pixels.astype(np.uint8)


def pack_tars(folder: Path, size: Size, images: list[tuple[str, NDArray[np.uint8]]], seed: int) -> Dataset:
    """SHARDS_A_PACK tars, with their arrays."""
    random, source = np.random.default_rng(seed), folder / "source"
    for number in range(SHARDS_A_PACK * size.each):
        name, pixels = images[int(random.integers(len(images)))]
        side = int(random.integers(size.sides[0], size.sides[1] + 1))
        (source / name).mkdir(parents=True, exist_ok=True)
        made = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(source / name / f"{number:06d}.png"), made)
    options = PackOptions(short_side=None, val=0, test=0, shard_bytes=1 << 40, seed=seed)
    pack(source, folder / "packed", options, cpus())
    shutil.rmtree(source)
    dataset = Dataset.open(folder / "packed")
    assert [shard.samples for shard in dataset.splits["train"]] == [size.each] * SHARDS_A_PACK
    keep_decoded(dataset)
    return dataset


def _link(root: Path, tars: list[tuple[Dataset, Shard]], size: Size) -> tuple[Path, dict[str, Any]]:
    (root / "train").mkdir(parents=True)
    shards, arrays = [], []
    for number in range(size.shards):
        part, shard = tars[number % len(tars)]
        name = f"train/{number:06d}.tar"
        for path in Path(part.root).glob(f"{shard.name}*"):
            link = root / f"{name}{path.name.removeprefix(Path(shard.name).name)}"
            link.hardlink_to(path)
            arrays += [link] if number < len(tars) and link.suffix == ".npy" else []
        shards.append(replace(shard, name=name))
    assert len(arrays) == len(tars)
    first = tars[0][0]
    Dataset(root, first.task, first.targets, {"train": shards}, {"by": "hundred_million.py"}).save()
    np.save(root / TARGETS, np.stack([np.load(path, mmap_mode="r")["target"] for path in arrays]).astype(np.uint8))
    facts = {
        "samples": size.samples,
        "shards": size.shards,
        "different_shards": len(tars),
        "pixels": size.sides,
        "tar_bytes": round(sum(shard.bytes for _, shard in tars) / len(tars)),
        "array_bytes": round(sum(path.stat().st_size for path in arrays) / len(arrays)),
    }
    return root, facts
