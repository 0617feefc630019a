"""`pack` beside its limit: the same decoding, resizing and encoding in a tight loop on all cores, and nothing else.

    make bench && cd build/lightning-shards-demo      # makes the photos that this takes
    uv run python ../../benchmarks/pack_rate.py ../bench/PHOTOS --json ../../docs/results/pack_rate.json

The limit's processes hold the files' bytes in memory and throw away what they make. `pack` lists, reads, checks for
copies, and writes and syncs tars; it gets each photo eight times, for shards of some size. Both are measured in the
same round; starting processes is left out of both, by the difference between packing all images and packing a few.
Memory is that of the largest process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_shards.packing.encode import encode
from measure import scratch

SHORT_SIDE, QUALITY = 256, 95
FEW, TIMES = 200, 8


def encode_all(paths: Sequence[str], barrier: Any, seconds: Any) -> None:
    """Encode all files again and again for two seconds at least; what took how long goes into `seconds`."""
    contents = [Path(path).read_bytes() for path in paths]
    encode(contents[0], SHORT_SIDE, QUALITY)
    barrier.wait()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < 2:
        for data in contents:
            encode(data, SHORT_SIDE, QUALITY)
        done += len(contents)
    seconds.put((done, time.perf_counter() - began))


def limit(paths: list[str], cores: int) -> float:
    """Images per second of the bare work on all cores."""
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(cores), context.Queue()
    shares = [paths[core : 400 * cores : cores] for core in range(cores)]
    workers = [context.Process(target=encode_all, args=(share, barrier, seconds)) for share in shares]
    for worker in workers:
        worker.start()
    rates = [done / took for done, took in (seconds.get() for _ in workers)]
    for worker in workers:
        worker.join()
    return sum(rates)


def pack(source: Path, dest: Path, images: int | None) -> tuple[float, float]:
    """Seconds of packing so many images, and MB of the largest process."""
    code = (
        "import json, resource, sys, time; from pathlib import Path\n"
        "from lightning_shards.packing.pack import PackOptions, pack\n"
        "if __name__ == '__main__':\n"
        "    began = time.perf_counter()\n"
        "    side, quality, limit, workers = json.loads(sys.argv[3])\n"
        "    recipe = PackOptions(short_side=side, quality=quality, limit=limit, val=0, test=0)\n"
        "    pack(Path(sys.argv[1]), Path(sys.argv[2]), recipe, workers)\n"
        "    used = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]\n"
        "    print(json.dumps([time.perf_counter() - began, max(used) / 1024]))\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".py") as program:
        program.write(code)
        program.flush()
        cores = len(os.sched_getaffinity(0))
        arguments = [str(source), str(dest), json.dumps([SHORT_SIDE, QUALITY, images, cores])]
        command = [sys.executable, program.name, *arguments]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    shutil.rmtree(dest)
    seconds, memory = json.loads(said)
    return seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="JPEG files in class folders")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    paths = sorted(map(str, arguments.photos.glob("*/*")))
    cores = len(os.sched_getaffinity(0))
    results: dict[str, Any] = {"cores": cores, "images": TIMES * len(paths), "limit": [], "pack": [], "memory_mb": {}}
    with scratch() as folder:
        source, dest = Path(folder) / "images", Path(folder) / "packed"
        for number, path in enumerate(paths * TIMES):
            link = source / Path(path).parent.name / f"{number}.jpg"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(path).absolute())
        pack(source, dest, FEW)
        for _ in range(arguments.rounds):
            results["limit"].append(round(limit(paths, cores)))
            (few, small), (whole, large) = (pack(source, dest, n) for n in (FEW, None))
            results["pack"].append(round((results["images"] - FEW) / (whole - few)))
            results["memory_mb"] = {str(FEW): round(small), str(results["images"]): round(large)}
    ratios = [ours / bare for ours, bare in zip(results["pack"], results["limit"], strict=True)]
    results["ratio"] = round(statistics.median(ratios), 3)
    results["images_per_second_per_core"] = round(statistics.median(results["pack"]) / cores)
    print(json.dumps(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
