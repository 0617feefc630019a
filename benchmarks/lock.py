"""Images a second that Python's interpreter lock lets through, by processes and threads, as if there were cores enough.

    make bench BENCH="--cases 256short --only ours"      # packs the photos
    cd build/lightning-shards-demo
    ../bench/bin/python ../../benchmarks/lock.py data/bench/made-2000/256short-16000/ours

The project's decoder runs as it is, but for decoding and resizing themselves: these sleep for as long as they take (380
and 90 us, without the lock), so that many threads fit on few cores. What is left is Python: reading, choosing crops,
taking turns. The rest of a machine's limits (memory, caches) does not show.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import multiprocessing
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lightning_shards.data import crop as cropping
from lightning_shards.data import decode
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.worker import WorkerSpec

DECODE, RESIZE = 380e-6, 90e-6  # seconds of one image of 39 KB: benchmarks/decoders.py
BATCH, SIDE = 128, 224
PR_SET_TIMERSLACK = 29  # linux/prctl.h
_exact = threading.local()


def nap(seconds: float) -> None:
    """Sleep without the 50 us by which Linux lets a thread oversleep."""
    if not hasattr(_exact, "set"):
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
        _exact.set = True
    time.sleep(seconds)


def batches(samples: int) -> Iterator[Any]:
    random = np.random.default_rng(0)
    while True:
        ids = random.permutation(samples).astype(np.int64)
        yield from np.split(ids[: samples // BATCH * BATCH], samples // BATCH)


class Sampler:
    """Batches without end."""

    epoch, micro, side = 0, BATCH, None

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int:
        return 1 << 30

    def occurrences(self, batch: int) -> None:
        return None

    def shards(self, first: int, last: int) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        return batches(self.samples)


def deliver(dataset: str, threads: int, seconds: float, barrier: Any, rates: Any) -> None:
    """Images per second of one process."""

    def decoded(data: bytes, frame: Any, by: int, rows: int, keep: bool) -> Any:
        nap(DECODE)
        return decode.scratch("decoded", (frame.height, frame.width, 3))

    vars(cropping).update(decode_jpeg=decoded, resize=lambda region, out: nap(RESIZE))
    data = Dataset.open(Path(dataset))
    job = WorkerSpec(data, "train", cropping.Crop(SIDE), BATCH, 0, threads, (Path(), None))
    slots = itertools.cycle([(n, job.layout.arrays(bytearray(job.layout.bytes))) for n in range(6)])
    rows = job.decoder.batches(Sampler(data.samples("train")), lambda: next(slots))
    for _ in range(10):
        next(rows)
    barrier.wait()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(rows)
        count += BATCH
    rates.put(count / (time.perf_counter() - began))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="packed photos")
    parser.add_argument("--layouts", default="1x2,1x4,1x8,1x16,2x4,2x8,4x2,4x4", help="processes x threads of each")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results: dict[str, list[int]] = {}
    for _ in range(arguments.rounds):
        for layout in arguments.layouts.split(","):
            processes, threads = map(int, layout.split("x"))
            barrier, rates = context.Barrier(processes), context.Queue()
            given = (arguments.dataset, threads, arguments.seconds, barrier, rates)
            started = [context.Process(target=deliver, args=given, daemon=True) for _ in range(processes)]
            for process in started:
                process.start()
            results.setdefault(layout, []).append(round(sum(rates.get() for _ in started)))
            for process in started:
                process.kill()
    for layout, found in results.items():
        print(f"{layout:>6}: {sorted(found)[len(found) // 2]:7,} images/s ({min(found):,} to {max(found):,})")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
