"""FFCV as in its ImageNet example: JPEG in its own file, mapped from the page cache, random order; threads of numba.

Small images are stored raw, as in its CIFAR example. FFCV encodes every image anew when it packs.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.libffcv import imdecode, resize_crop
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from PIL import Image
from torchvision.datasets import ImageFolder

from . import CROP_SCALE, QUALITY, Box, Spec


def pack(images: Path, dest: Path, spec: Spec) -> None:
    dest.mkdir(exist_ok=True)
    field = RGBImageField(write_mode="raw" if spec.size <= 64 else "jpg", jpeg_quality=QUALITY)
    writer = DatasetWriter(str(dest / "train.beton"), {"image": field, "label": IntField()}, num_workers=spec.cores)
    writer.from_indexed_dataset(ImageFolder(str(images)), shuffle_indices=True)


def crop(data: bytes, box: Box, size: int) -> Any:
    top, left, height, width = box
    picture = Image.open(io.BytesIO(data))
    image, out = np.array(picture.convert("RGB")), np.empty((size, size, 3), np.uint8)
    if picture.format == "JPEG":
        imdecode(np.frombuffer(data, np.uint8), image, *image.shape[:2], *image.shape[:2])
    resize_crop(image, top, top + height, left, left + width, out)
    return out


def batches(data: Path, spec: Spec) -> Iterator[torch.Tensor]:
    crop = RandomResizedCropRGBImageDecoder((spec.size, spec.size), scale=CROP_SCALE)
    loader = Loader(
        str(data / "train.beton"),
        batch_size=spec.batch,
        num_workers=spec.cores,
        order=OrderOption.RANDOM,
        os_cache=True,  # everything fits in memory
        drop_last=True,
        pipelines={
            "image": [crop, RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )
    while True:
        for images, _ in loader:
            yield images
