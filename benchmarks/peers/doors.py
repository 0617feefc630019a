"""This project's own doors, each beside the plain loader, and webdataset's recipe with the same transform.

A transform that does nothing, one of torchvision's, a mask beside the image, and webdataset's stages in our order.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import webdataset as wds
from lightning_shards.data import Crop, Dataset, Field, Image, Mask, ShardLoader, ShardSamples, target_field
from lightning_shards.data.transforms import torchvision_transform
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from . import CROP_SCALE, Spec, torch_peers

REGIONS = 20  # classes of a made mask


def _nothing(sample: dict[str, Any], random: np.random.Generator) -> None:
    """What is measured is the call."""


def _batches(data: Path, spec: Spec, **doors: Any) -> Iterator[Any]:
    loader = ShardLoader(data, spec.batch, crop=Crop(spec.size, scale=CROP_SCALE), **doors)
    while True:
        for batch in loader:
            yield batch["image"]


def no_op(data: Path, spec: Spec) -> Iterator[Any]:
    return _batches(data, spec, transform=_nothing)


def torchvision(data: Path, spec: Spec) -> Iterator[Any]:
    return _batches(data, spec, transform=torchvision_transform(v2.TrivialAugmentWide(), pil=True))


def webdataset(data: Path, spec: Spec) -> Iterator[Any]:
    """The README's recipe with the same augmentation behind the crop, in as many workers as there are cores."""
    return torch_peers.webdataset(data, spec, v2.TrivialAugmentWide())


def mask(data: Path, spec: Spec) -> Iterator[Any]:
    def fields(dataset: Dataset) -> dict[str, Field]:
        return {"image": Image(), "mask": Mask(REGIONS), "target": target_field(dataset)}

    return _batches(data, spec, fields=fields)


def _regions(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Smooth regions with a class each, as masks of photographs have: uint8 (height, width) in 0..REGIONS - 1."""
    gray = cv2.GaussianBlur(cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY), (0, 0), 8)
    return (gray.astype(np.uint16) * REGIONS // 256).astype(np.uint8)


def pack_masks(images: Path, dest: Path, spec: Spec) -> None:
    """Tars of the same photos with a mask each, taken over by `adopt`."""
    paths = sorted(images.glob("*/*"))
    np.random.default_rng(0).shuffle(paths)  # type: ignore[arg-type]
    names = sorted({path.parent.name for path in paths})
    tars = dest / "train"
    tars.mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.array(paths, object), 16)):
        with wds.TarWriter(str(tars / f"{number:06d}.tar")) as tar:
            for path in part:
                photo = path.read_bytes()
                pixels: Any = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR)
                regions = cv2.imencode(".png", _regions(pixels))[1].tobytes()
                label = names.index(path.parent.name)
                tar.write({"__key__": path.stem, path.suffix[1:]: photo, "seg.png": regions, "cls": label})
    command = [sys.executable, "-m", "lightning_shards", "adopt", str(dest)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def samples(data: Path, spec: Spec) -> Iterator[Any]:
    """The stages of the recipe behind `ShardSamples`, in place of `WebDataset` and its shuffle."""
    source = ShardSamples(data, spec.batch)
    pipeline = wds.DataPipeline(
        source,
        wds.decode("pil"),
        wds.to_tuple("jpg;png", "cls"),
        wds.map_tuple(torch_peers.random_crop(spec.size), int),
        wds.batched(spec.batch, partial=False),
    )
    loader = DataLoader(pipeline, batch_size=None, num_workers=spec.cores)
    while True:
        for images, _ in source.counted(loader):
            yield images
