"""Loaders on PyTorch's DataLoader with a worker process a core: ImageFolder, webdataset, litdata, Mosaic streaming."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from . import CROP_SCALE, Box, Spec


def random_crop(size: int, *more: Any) -> v2.Compose:
    """PIL image -> uint8 tensor (3, size, size), with `more` transforms behind crop and flip."""
    crop = v2.RandomResizedCrop(size, scale=CROP_SCALE, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *more, v2.ToImage()])


def _forever(loader: Iterable[Any]) -> Iterator[torch.Tensor]:
    while True:
        for images, _ in loader:
            yield images


def crop_pil(data: bytes, box: Box, size: int) -> Any:
    """The reference that the others' pixels are compared with."""
    top, left, height, width = box
    image = Image.open(io.BytesIO(data)).convert("RGB").crop((left, top, left + width, top + height))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def crop_tensor(data: bytes, box: Box, size: int) -> Any:
    image = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return v2.functional.resized_crop(image, *box, [size, size], antialias=True).permute(1, 2, 0).numpy()


def imagefolder(data: Path, spec: Spec) -> Iterator[torch.Tensor]:
    """The loop of PyTorch's own ImageNet example, with workers that stay from epoch to epoch."""
    dataset = ImageFolder(str(data), random_crop(spec.size))
    workers: dict[str, Any] = {"num_workers": spec.cores, "persistent_workers": True}
    yield from _forever(DataLoader(dataset, spec.batch, shuffle=True, drop_last=True, **workers))


def webdataset(data: Path, spec: Spec, *more: Any) -> Iterator[torch.Tensor]:
    """The recipe of webdataset's README: shuffle, decode, transform, batch in the workers. Reads our tars."""
    import webdataset as wds

    tars = sorted(str(path) for path in (data / "train").glob("*.tar"))
    samples = wds.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).decode("pil").to_tuple("jpg;png", "cls")
    dataset = samples.map_tuple(random_crop(spec.size, *more), int).batched(spec.batch, partial=False)
    yield from _forever(wds.WebLoader(dataset, batch_size=None, num_workers=spec.cores, persistent_workers=True))


def _open_sample(sample: tuple[str, int]) -> dict[str, Any]:
    return {"image": Image.open(sample[0]), "label": sample[1]}  # a JPEG keeps its bytes


def pack_litdata(images: Path, dest: Path, spec: Spec) -> None:
    from litdata import optimize

    samples = ImageFolder(str(images)).samples
    optimize(_open_sample, samples, str(dest), chunk_bytes="64MB", num_workers=spec.cores, mode="overwrite")


def litdata(data: Path, spec: Spec) -> Iterator[torch.Tensor]:
    """StreamingDataset and StreamingDataLoader; JPEGs are decoded by torchvision.io, the crop is on tensors."""
    from litdata import StreamingDataLoader, StreamingDataset

    class Dataset(StreamingDataset):
        transform = random_crop(spec.size)

        def __getitem__(self, index: Any) -> tuple[torch.Tensor, int]:
            sample = super().__getitem__(index)
            return self.transform(sample["image"]), sample["label"]

    dataset = Dataset(str(data), shuffle=True, drop_last=True)
    yield from _forever(
        StreamingDataLoader(dataset, batch_size=spec.batch, num_workers=spec.cores, persistent_workers=True)
    )


def pack_mosaic(images: Path, dest: Path, spec: Spec) -> None:
    from streaming import MDSWriter

    folder = ImageFolder(str(images))
    shutil.rmtree(dest, ignore_errors=True)
    kind = "png" if folder.samples[0][0].endswith(".png") else "jpeg"
    with MDSWriter(out=str(dest), columns={"image": kind, "label": "int"}) as writer:
        for path, label in folder.samples:
            writer.write({"image": Image.open(path), "label": label})


def mosaic(data: Path, spec: Spec) -> Iterator[torch.Tensor]:
    """StreamingDataset on local shards with torchvision's transforms."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()

    class Dataset(StreamingDataset):
        transform = random_crop(spec.size)

        def __getitem__(self, at: int) -> Any:
            sample = super().__getitem__(at)
            return self.transform(sample["image"]), sample["label"]

    dataset = Dataset(local=str(data), shuffle=True, batch_size=spec.batch)
    workers: dict[str, Any] = {"num_workers": spec.cores, "persistent_workers": True}
    yield from _forever(DataLoader(dataset, spec.batch, drop_last=True, **workers))
