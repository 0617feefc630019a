"""What it costs the first epoch to keep what it decodes: beside an epoch that keeps nothing, in turn.

    uv run --group engine python benchmarks/first_epoch.py --json docs/results/first_epoch.json

The images are Fashion-MNIST's of the sample, as PNG of 28 pixels and enlarged: they take less to decode than photos, so
keeping them costs a larger share. Each epoch has a process of its own, its clock starts behind the first batch, and its
CPU time counts until the last array has its name. Ratios are of neighbours, which other programs disturb alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from hundred_parts.data import Size, pack_tars, sample_images
from lightning_shards.data import ShardLoader
from lightning_shards.train import hardware
from measure import cpu_seconds, scratch

BATCH, ALL = 250, 1 << 50  # the batch divides the images: each comes, so the arrays become whole


def epoch(data: Path, side: int, kept: int) -> dict[str, float]:
    """The first epoch in this process."""
    loader = ShardLoader(data, BATCH, crop=side, workers=2, decoded_bytes=kept)
    batches = iter(loader)
    next(batches)
    began, (own, machine), images = time.perf_counter(), cpu_seconds(), 0
    images = sum(len(batch.ids) for batch in batches)
    seconds, limit = time.perf_counter() - began, time.monotonic() + 20
    while list(data.glob("train/*.partial")) and time.monotonic() < limit:
        time.sleep(0.02)
    passed = time.perf_counter() - began
    after, machine_after = cpu_seconds()
    loader.close()
    return {
        "images_per_second": images / seconds,
        "images_per_cpu_second": images / (after - own),
        "others": max(0.0, machine_after - machine - after + own) / passed / (os.cpu_count() or 1),
    }


def compare(data: Path, side: int, rounds: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {"nothing kept": [], "kept": []}
    for _ in range(rounds):
        for name, kept in (("nothing kept", 0), ("kept", ALL)):
            for path in data.glob("train/*.npy*"):
                path.unlink()
            command = [sys.executable, __file__, "--once", str(data), str(side), str(kept)]
            said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            runs[name].append(json.loads(said.splitlines()[-1]))
    found: dict[str, Any] = {}
    for what in ("images_per_second", "images_per_cpu_second"):
        pairs = list(zip(*([one[what] for one in runs[name]] for name in runs), strict=True))
        slower = [round(without / kept - 1, 3) for without, kept in pairs]
        found[what] = {"nothing kept": [round(one) for one, _ in pairs], "kept": [round(one) for _, one in pairs]}
        found[what] |= {"slower": slower, "slower_median": median(slower)}
    found["others"] = [round(one["others"], 2) for name in runs for one in runs[name]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[28, 32, 64], help="pixels")
    parser.add_argument("--each", type=int, default=5000, help="images of a shard, of which there are eight")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        print(json.dumps(epoch(Path(given.once[0]), int(given.once[1]), int(given.once[2]))))
        return
    results: dict[str, Any] = {"command": "python benchmarks/first_epoch.py " + " ".join(sys.argv[1:])}
    results |= {"machine": hardware.device_name("cpu"), "images": 8 * given.each, "rounds": given.rounds}
    images = list(sample_images())
    with scratch() as folder:
        for side in given.sides:
            data = pack_tars(Path(folder) / str(side), Size(8, given.each, 1, (side, side)), images, 0)
            results[f"{side} pixels"] = compare(Path(data.root), side, given.rounds)
            print(side, json.dumps(results[f"{side} pixels"]), flush=True)
    results["versions"] = hardware.versions()
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
