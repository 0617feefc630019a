"""What it costs to read two datasets as a mixture, or one with its classes evened out: beside one dataset of that size.

    make bench BENCH=mixture

The images are Fashion-MNIST's of the sample, enlarged. The mixture has two datasets of half the size, with a share
of one half each, so that all three read as many images of the same kind. Each epoch has a process of its own, its
clock starts behind the first batch. Ratios are of neighbours, which other programs disturb alike.
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

BATCH, SIDE, CROP = 250, 160, 128
KINDS = ("one dataset", "a mixture", "balanced")


def epoch(folder: Path, kind: str) -> dict[str, float]:
    """One epoch in this process."""
    path, settings = folder / "whole/packed", dict[str, Any]()
    if kind == "a mixture":
        path = folder / "first/packed"
        settings["mixture"] = {str(path): 0.5, str(folder / "second/packed"): 0.5}
    elif kind == "balanced":
        settings["balance"] = 1.0
    loader = ShardLoader(path, BATCH, crop=CROP, workers=2, decoded_bytes=0, **settings)
    batches = iter(loader)
    next(batches)
    began, (own, machine) = time.perf_counter(), cpu_seconds()
    images = sum(len(batch.ids) for batch in batches)
    seconds, (after, machine_after) = time.perf_counter() - began, cpu_seconds()
    loader.close()
    return {
        "images_per_second": images / seconds,
        "images_per_cpu_second": images / (after - own),
        "others": max(0.0, machine_after - machine - after + own) / seconds / (os.cpu_count() or 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=2000, help="images of a shard, of which there are eight")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        print(json.dumps(epoch(Path(given.once[0]), given.once[1])))
        return
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    images = list(sample_images())
    with scratch() as folder:
        for seed, name in enumerate(("whole", "first", "second")):
            each = given.each // (1 if name == "whole" else 2)
            pack_tars(Path(folder) / name, Size(8, each, 1, (SIDE, SIDE)), images, seed)
        for _ in range(given.rounds):
            for kind in KINDS:
                command = [sys.executable, __file__, "--once", folder, kind]
                said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                runs[kind].append(json.loads(said.splitlines()[-1]))
    results: dict[str, Any] = {"command": "python benchmarks/mixture.py " + " ".join(sys.argv[1:])}
    results |= {"machine": hardware.device_name("cpu"), "images": 8 * given.each, "rounds": given.rounds}
    for what in ("images_per_second", "images_per_cpu_second"):
        results[what] = {kind: [round(one[what]) for one in runs[kind]] for kind in KINDS}
        for kind in KINDS[1:]:
            ratios = [other[what] / one[what] for one, other in zip(runs[KINDS[0]], runs[kind], strict=True)]
            results[what][f"{kind}, beside one dataset"] = [round(ratio, 3) for ratio in ratios]
            results[what][f"{kind}, beside one dataset, median"] = round(median(ratios), 3)
    results["others"] = [round(one["others"], 2) for kind in KINDS for one in runs[kind]]
    results["versions"] = hardware.versions()
    print(json.dumps(results, indent=1))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
