"""100,000,000 samples in 10,000 shards: what it costs to start, to resume in the middle, and to make a batch.

    make bake && cd build/lightning-shards-demo && uv sync
    uv run python ../../benchmarks/scale.py --json ../../docs/results/scale.json

The dataset is real but for its size: one tar of 10,000 small images with its real index, under 10,000 names (hard
links), so every read, checksum and decode happens. Each figure is of a process of its own; times are after imports.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measure import scratch

SAMPLES_PER_SHARD = 10_000
BATCH = 256


def make_dataset(root: Path, shards: int) -> None:
    """`shards` names of one tar with SAMPLES_PER_SHARD images of 28 pixels."""
    import cv2
    import numpy as np
    import webdataset
    from lightning_shards.data.dataset import Dataset, Shard
    from lightning_shards.data.tar_index import ShardIndex

    (root / "train").mkdir(parents=True)
    first = root / "train" / "000000.tar"
    random = np.random.default_rng(0)
    with webdataset.TarWriter(str(first), mtime=0) as writer:
        for number in range(SAMPLES_PER_SHARD):
            image = cv2.imencode(".png", random.integers(0, 255, (28, 28), np.uint8))[1].tobytes()
            writer.write({"__key__": f"{number:08d}", "png": image, "cls": str(number % 10).encode()})
    ShardIndex.build(first).save(first.with_name("000000.tar.index"))
    facts = (SAMPLES_PER_SHARD, first.stat().st_size, hashlib.sha256(first.read_bytes()).hexdigest())
    names = [f"train/{number:06d}.tar" for number in range(shards)]
    for name in names[1:]:
        (root / name).hardlink_to(first)
        (root / f"{name}.index").hardlink_to(first.with_name("000000.tar.index"))
    split = {"train": [Shard(name, *facts) for name in names]}
    Dataset(root, "single_label", [str(i) for i in range(10)], split).save()


def measure(root: Path, share: float) -> dict[str, float]:
    """Start at `share` of the epoch in this process: seconds to the first batch, per batch after it, and memory."""
    from lightning_shards.data.shard_loader import ShardLoader

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    loader = ShardLoader(root, BATCH, crop=28, workers=2)
    opened = time.perf_counter() - started
    if share:
        position = int(len(loader) * share) * BATCH
        loader.load_state_dict({**loader.state_dict(), "epoch": 3, "position": position})
    batches = iter(loader)
    next(batches)
    first = time.perf_counter() - started
    times = []
    for _ in range(300):
        began = time.perf_counter()
        next(batches)
        times.append(time.perf_counter() - began)
    assert loader._epochs
    decoding = Path(f"/proc/{loader._epochs._decoding[0]._process.pid}/status").read_text().split("VmHWM:")[1]
    loader.close()
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "open_seconds": opened,
        "first_batch_seconds": first,
        "batch_milliseconds_median": 1000 * sorted(times)[len(times) // 2],
        "memory_mb_above_imports": memory,
        "memory_mb_decoding_process": int(decoding.split()[0]) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--measure", nargs=2, metavar=("ROOT", "SHARE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), float(arguments.measure[1]))))
        return
    results: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "rounds": arguments.rounds}
    with scratch() as folder:
        for shards in (arguments.shards // 100, arguments.shards):
            root = Path(folder) / str(shards)
            make_dataset(root, shards)
            for share in (0.0, 0.5):
                command = [sys.executable, __file__, "--measure", str(root), str(share)]
                runs = []
                for _ in range(arguments.rounds):
                    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    runs.append(json.loads(said.splitlines()[-1]))
                name = f"{shards * SAMPLES_PER_SHARD} samples, from {share:.0%}"
                results[name] = {key: [round(run[key], 4) for run in runs] for key in runs[0]}
                print(name, results[name], flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
