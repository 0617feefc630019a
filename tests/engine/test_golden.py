"""Batches stay what they were, byte for byte, whatever is changed around them: a team's figures hang on it.

The boxes are as large as the squares that are made of them, so no decoder's and no resizer's version plays a part.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from lightning_shards.data.crop import Crop
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.loader import EpochLoader, SkipLog
from lightning_shards.data.order import WindowedOrder
from lightning_shards.data.sampler import EvalSampler, TrainSampler
from lightning_shards.data.worker import WorkerSpec

from .conftest import write_dataset

CROP = Crop(16, scale=(4 / 9, 4 / 9), ratio=(1.0, 1.0), center=2 / 3)  # 16 of 24 pixels
DAMAGED = {3: b"no image", 50: b"", 51: b"GIF89a"}
GOLDEN = {
    "single_label": "856007a3c2dbf1be 18b86b205582d696",
    "multi_label": "f937e8a24bf38bd8 952df7eab2a819ff",
    "regression": "7fa2e0130a7383a2 d134687d1645f12c",
}


def batches_hash(root: Path, split: str) -> str:
    """SHA-256 of all bytes of two epochs' batches."""
    data, digest = Dataset.open(root), hashlib.sha256()
    shards, train = data.splits[split], split == "train"
    job = WorkerSpec(data, split, CROP, 8, 5 if train else None, 2, (Path(), None))
    order = WindowedOrder([shard.samples for shard in shards], [shard.bytes for shard in shards], 5)
    sampler = TrainSampler(order, 0, 1, 8, 1, (0, 0)) if train else EvalSampler(len(order), 0, 1, 8)
    loader = EpochLoader(job, sampler, SkipLog(None, 1e9))
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for batch in loader:
            digest.update(batch["image"].permute(0, 2, 3, 1).contiguous().numpy().tobytes())
            for tensor in (batch["target"], batch.ids, batch.seeds, batch.valid):
                digest.update(str(tensor.dtype).encode() + tensor.numpy().tobytes())
    loader.close()
    return digest.hexdigest()


@pytest.mark.parametrize("task", GOLDEN)
def test_batches_are_what_they_always_were(tmp_path: Path, task: str) -> None:
    root = write_dataset(tmp_path / "d", task=task, damaged=DAMAGED)
    assert f"{batches_hash(root, 'train')[:16]} {batches_hash(root, 'val')[:16]}" == GOLDEN[task]
