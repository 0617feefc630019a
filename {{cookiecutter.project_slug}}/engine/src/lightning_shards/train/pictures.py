"""The images of single samples, for a training that reads what a network made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..data.crop import Crop
from ..data.dataset import Dataset
from ..data.decode import DecodeError
from ..data.fields import Image
from ..data.sample_reader import SampleReader

SIDE = 96  # pixels
Row = tuple[int, Tensor, Tensor, Tensor]  # id, image, target, scores


def with_pictures(kept: Mapping[str, Sequence[Row]], dataset: Dataset, split: str, crop: Crop) -> dict[str, list[Row]]:
    """The same rows with the centres of their images, uint8 (3, SIDE, SIDE), read from the tars.

    Those behind a URL, whose shards would have to be fetched, and those that cannot be read stay as they are.
    """
    if isinstance(dataset.root, str):
        return {kind: list(rows) for kind, rows in kept.items()}
    store, small = SampleReader(dataset, split, [Image().names]), replace(crop, size=SIDE)

    def picture(row: Row) -> Row:
        pixels = np.empty((SIDE, SIDE, 3), np.uint8)
        try:
            ((shard, place),) = store.locate([row[0]])
            small(shard.read(place)[0], None, pixels)
        except (DecodeError, KeyError, OSError):
            return row
        return row[0], torch.from_numpy(pixels).permute(2, 0, 1), row[2], row[3]

    try:
        return {kind: [picture(row) for row in rows] for kind, rows in kept.items()}
    finally:
        store.close()
