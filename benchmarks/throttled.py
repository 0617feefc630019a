"""A disk of 8 ms a seek and 150 MB/s: the share of its sequential rate that arrives as batches, read ahead or not.

    make bake && cd build/lightning-shards-demo && uv sync
    uv run python ../../benchmarks/throttled.py --json ../../docs/results/throttled.json

The disk is simulated: `os.pread` sleeps, one reader at a time, unless the bytes were read before and are in its
simulated page cache. Everything else is the decoder as training uses it, but in this process. Images are tiny but weigh
100 kB each (JPEG comments), so that the disk and not the decoder is the limit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from lightning_shards.data.crop import Crop
from lightning_shards.data.dataset import Dataset, Shard
from lightning_shards.data.order import WindowedOrder
from lightning_shards.data.sampler import TrainSampler
from lightning_shards.data.shard_file import ShardFile
from lightning_shards.data.tar_index import ShardIndex
from lightning_shards.data.worker import WorkerSpec

SEEK_SECONDS, BYTES_PER_SECOND = 0.008, 150e6
PAGE = 128 << 10  # a random read brings this much into memory, as the kernel's own read-ahead does
SAMPLE_BYTES, SAMPLES_PER_SHARD, SHARDS, WINDOW = 100_000, 320, 32, 4


class Disk:
    """Stands in for `os.pread`: sleeps as the disk would, one read at a time."""

    def __init__(self) -> None:
        self.pread, self.lock = os.pread, threading.Lock()
        self.cached: set[tuple[int, int]] = set()
        self.head = (0, 0)
        self.seeks = self.bytes = 0

    def __call__(self, descriptor: int, size: int, offset: int) -> bytes:
        file = os.fstat(descriptor).st_ino
        pages = {(file, page) for page in range(offset // PAGE, (offset + size - 1) // PAGE + 1)}
        if not pages <= self.cached:
            with self.lock:
                missing = sorted(pages - self.cached)
                seek = bool(missing) and self.head != missing[0]
                self.seeks, self.bytes = self.seeks + seek, self.bytes + len(missing) * PAGE
                time.sleep(seek * SEEK_SECONDS + len(missing) * PAGE / BYTES_PER_SECOND)
                if missing:
                    self.head = (file, missing[-1][1] + 1)
                self.cached |= pages
        return self.pread(descriptor, size, offset)

    def in_memory(self, opened: Any, offset: int) -> bool:
        return (os.fstat(opened._descriptor).st_ino, offset // PAGE) in self.cached


def make_dataset(root: Path) -> None:
    import cv2
    import webdataset

    (root / "train").mkdir(parents=True)
    jpeg = cv2.imencode(".jpg", np.full((32, 32, 3), 127, np.uint8))[1].tobytes()
    comment = b"\xff\xfe" + (50_000).to_bytes(2, "big") + bytes(49_998)
    heavy = jpeg[:2] + comment * (SAMPLE_BYTES // 50_000) + jpeg[2:]
    shards = []
    for number in range(SHARDS):
        path = root / "train" / f"{number:06d}.tar"
        with webdataset.TarWriter(str(path), mtime=0) as writer:
            for sample in range(SAMPLES_PER_SHARD):
                writer.write({"__key__": f"{number:04d}{sample:06d}", "jpg": heavy, "cls": b"0"})
        ShardIndex.build(path).save(path.with_name(path.name + ".index"))
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append(Shard(f"train/{path.name}", SAMPLES_PER_SHARD, path.stat().st_size, checksum))
    Dataset(root, "single_label", ["0"], {"train": shards}).save()


def deliver(root: Path, ahead: bool, batches: int | None) -> dict[str, float]:
    """Iterate over an epoch, or its first batches, from the simulated disk."""
    data = Dataset.open(root)
    shards = data.splits["train"]
    window = SAMPLES_PER_SHARD * WINDOW
    plan = WindowedOrder([s.samples for s in shards], [s.bytes for s in shards], window_samples=window)
    job = WorkerSpec(data, "train", Crop(32), 64, 0, 16, (Path(), None))
    decoder = job.decoder
    if not ahead:
        decoder.store.expect = lambda numbers: None  # type: ignore[method-assign]
    rows = TrainSampler(plan, 0, 1, 64, 1, (0, 0))
    arrays = job.layout.arrays(bytearray(job.layout.bytes))  # nobody looks at them
    disk = Disk()
    os.pread = disk  # type: ignore[assignment]
    ShardFile.in_memory = lambda opened, offset: disk.in_memory(opened, offset)  # type: ignore[method-assign, assignment]
    began, samples = time.perf_counter(), 0
    for number, batch in enumerate(decoder.batches(rows, lambda: (0, arrays)), 1):
        samples += int(batch.valid.sum())
        if number == batches:
            break
    seconds = time.perf_counter() - began
    os.pread = disk.pread
    rate = samples * shards[0].bytes / SAMPLES_PER_SHARD / seconds
    return {
        "samples": samples,
        "seconds": round(seconds, 2),
        "seeks": disk.seeks,
        "megabytes_read": disk.bytes // 10**6,
        "megabytes_per_second": round(rate / 1e6, 1),
        "share_of_sequential": round(rate / BYTES_PER_SECOND, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder))
        figures = {
            "disk": {"seek_ms": SEEK_SECONDS * 1e3, "megabytes_per_second": BYTES_PER_SECOND / 1e6},
            "read ahead": [deliver(Path(folder), True, None) for _ in range(3)],
            "not read ahead, the first 15 batches": deliver(Path(folder), False, 15),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
