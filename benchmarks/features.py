"""Samples/s of features out of the arrays beside the tars, as batches in the trainer's process.

    make bench && cd build/lightning-shards-demo
    uv run python ../../benchmarks/features.py --json ../features.json

The arrays have the format that `embed` writes, and hold random numbers: reading them does not depend on what they are.
Beside the loader, `memory` is one process that takes shuffled rows out of one array in memory, window by window, and
copies them into a tensor: what a hand-written loop over an array does at best.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_shards.data.array_file import HERE
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.embedding import VALUES, Embedding
from lightning_shards.data.shard_loader import ShardLoader
from lightning_shards.inference.embedding_writer import EmbeddingWriter
from lightning_shards.testing import tiny_dataset
from lightning_shards.train.hardware import device_name

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def prepare(folder: Path, shards: int, each: int, length: int) -> Dataset:
    """A dataset of real tars with random features of so many numbers."""
    dataset = Dataset.open(tiny_dataset(folder, sizes=(each,) * shards, held_out=1))
    found = Embedding("features", {"title": "random"}, length, 1, {"target": _target(dataset)})
    for split, parts in dataset.splits.items():
        plan, random = found.plan(dataset, split), np.random.default_rng(0)
        with EmbeddingWriter(plan, parts) as writer:
            first = 0
            for shard in parts:
                records = np.zeros(shard.samples, plan.record)
                records[VALUES] = random.standard_normal((shard.samples, 1, length), np.float32)
                records["there"] = HERE
                writer.put(np.arange(first, first + shard.samples), records)
                first += shard.samples
            writer.finish(range(len(parts)))
    found.save(dataset)
    return dataset


def _target(dataset: Dataset) -> dict[str, Any]:
    from lightning_shards.data.fields import target_field

    described: dict[str, Any] = target_field(dataset).describe()  # type: ignore[attr-defined]
    return described


def ours(folder: Path, batch: int) -> Batches:
    loader = ShardLoader(folder, batch, features="features")
    while True:
        for one in loader:
            yield one["features"], one["target"]


def memory(samples: int, length: int, batch: int) -> Batches:
    rows = np.random.default_rng(0).standard_normal((samples, length), np.float32).astype(np.float16)
    targets, random = np.zeros(samples, np.int64), np.random.default_rng(0)
    while True:
        order = random.permutation(samples)
        for first in range(0, samples - batch + 1, batch):
            ids = order[first : first + batch]
            yield torch.from_numpy(rows.take(ids, 0)), torch.from_numpy(targets.take(ids))


def rate(batches: Batches, seconds: float) -> float:
    """Samples/s, the first 20 batches left out."""
    for _ in islice(batches, 20):
        pass
    began, rows = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        rows += len(next(batches)[0])
    return rows / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shards", type=int, default=10)
    add("--each", type=int, default=20_000, help="samples of a shard")
    add("--length", type=int, default=384, help="numbers of a sample")
    add("--batch", type=int, nargs="+", default=[256, 1024, 4096])
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=3.0)
    add("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        folder = Path(scratch) / "data"
        prepare(folder, given.shards, given.each, given.length)
        for batch in given.batch:
            ways: dict[str, Callable[[], Batches]] = {
                "ours": lambda batch=batch: ours(folder, batch),  # type: ignore[misc]
                "memory": lambda batch=batch: memory(given.shards * given.each, given.length, batch),  # type: ignore[misc]
            }
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(given.rounds):
                for name, make in ways.items():
                    batches = make()
                    rates[name].append(rate(batches, given.seconds))
                    batches.close()  # type: ignore[attr-defined]
            for name, values in rates.items():
                rows.append({"way": name, "batch": batch, "median": round(statistics.median(values)), "rates": values})
                print(f"{name:8} batch {batch:5}: {statistics.median(values):12,.0f} samples/s", flush=True)
    about = {"hardware": device_name("cpu"), "python": platform.python_version(), "torch": torch.__version__}
    result = {**about, "samples": given.shards * given.each, "length": given.length, "seconds": given.seconds}
    if given.json:
        given.json.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
