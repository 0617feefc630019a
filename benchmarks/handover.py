"""Ways of handing batches to the trainer, while a step of 20 ms keeps Python busy beside it, or only waits.

    make bench && cd build/lightning-shards-demo     # packs the photos that this takes
    uv run python ../../benchmarks/handover.py ../bench/PACKED --json ../../docs/results/handover.json

- threads: the project's decoder, run by threads of the trainer's process.
- threads, 0.1 ms: the same, with an interpreter that switches threads 50 times as often.
- process: the same threads in a process of their own, and shared memory.
- processes: the project's loader as it is: as many processes with a thread each, which take turns.
- workers: torch's DataLoader with one worker process a core, over the same reading and decoding.
- spdl: SPDL's pipeline of threads (a batch each) in the trainer's process, over the same, where spdl-core is installed.

All decode the same ids with the same crops. `alone` is the step without any loader, `ideal` what would be reached if
step and decoding never got in each other's way: the slower of the step alone and the loader alone (threads).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_shards.data.batcher import BatchDecoder, _AtOnce
from lightning_shards.data.crop import Crop
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.loader import EpochLoader, SkipLog
from lightning_shards.data.order import WindowedOrder
from lightning_shards.data.sampler import TrainSampler
from lightning_shards.data.worker import WorkerSpec

SIDE = 224
STEP_SECONDS = 0.02
WARM_UP = 8  # batches


def job_and_rows(dataset: str, batch: int, threads: int) -> tuple[WorkerSpec, TrainSampler]:
    """What to decode and how, and the ids of each batch."""
    data = Dataset.open(Path(dataset))
    shards = data.splits["train"]
    order = WindowedOrder([s.samples for s in shards], [s.bytes for s in shards])
    job = WorkerSpec(data, "train", Crop(SIDE), batch, 0, threads, (Path(), None))
    return job, TrainSampler(order, 0, 1, batch, 1, (0, 0))


def memory(job: WorkerSpec) -> dict[str, Any]:
    """Fresh arrays for the fields of a batch."""
    return job.layout.arrays(bytearray(job.layout.bytes))


def in_threads(dataset: str, batch: int, cores: int) -> Iterator[Any]:
    job, rows = job_and_rows(dataset, batch, cores)
    decoder = job.decoder
    made: list[Any] = []

    def take() -> tuple[int, Any]:
        made.append(memory(job))
        return 0, made[-1]

    for epoch in range(1 << 30):
        rows.set_epoch(epoch)
        for _ in decoder.batches(rows, take):
            yield torch.from_numpy(made.pop(0)["image"])


def in_quick_threads(dataset: str, batch: int, cores: int) -> Iterator[Any]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        yield from in_threads(dataset, batch, cores)
    finally:
        sys.setswitchinterval(before)


def in_process(dataset: str, batch: int, cores: int, processes: int = 1) -> Iterator[Any]:
    job, rows = job_and_rows(dataset, batch, cores // processes)
    loader = EpochLoader(job, rows, SkipLog(None, 0), processes=processes)
    for epoch in range(1 << 30):
        rows.set_epoch(epoch)
        yield from loader


def in_processes(dataset: str, batch: int, cores: int) -> Iterator[Any]:
    yield from in_process(dataset, batch, cores, processes=cores)


class _Rows(torch.utils.data.Dataset[Any]):
    """Batches by their ids, decoded by a worker process with the project's own code."""

    def __init__(self, dataset: str, batch: int) -> None:
        self.job = job_and_rows(dataset, batch, 1)[0]
        self.decoder: BatchDecoder | None = None

    def __getitem__(self, ids: Any) -> Any:
        decoder = self.decoder = self.decoder or self.job.decoder
        arrays = memory(self.job)
        decoder._finish(decoder._begin(_AtOnce(), ids, None, 0, 0, arrays), False)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class _Ids:
    """The same ids, batch by batch, without end."""

    def __init__(self, dataset: str, batch: int) -> None:
        self.rows = job_and_rows(dataset, batch, 1)[1]

    def __iter__(self) -> Iterator[Any]:
        for epoch in range(1 << 30):
            self.rows.set_epoch(epoch)
            yield from self.rows


def in_workers(dataset: str, batch: int, cores: int) -> Iterator[Any]:
    ids: Any = _Ids(dataset, batch)
    rows, kind = _Rows(dataset, batch), "forkserver"
    yield from torch.utils.data.DataLoader(
        rows, batch_size=None, sampler=ids, num_workers=cores, multiprocessing_context=kind, prefetch_factor=2
    )


def in_spdl(dataset: str, batch: int, cores: int) -> Iterator[Any]:
    from spdl.pipeline import PipelineBuilder

    builder = PipelineBuilder().add_source(iter(_Ids(dataset, batch)))
    decode = _Rows(dataset, batch).__getitem__
    builder = builder.pipe(decode, concurrency=cores, output_order="input").add_sink(2)
    pipeline = builder.build(num_threads=cores)
    with pipeline.auto_stop():
        yield from pipeline


WAYS: dict[str, Callable[[str, int, int], Iterator[Any]]] = {
    "threads": in_threads,
    "threads, 0.1 ms": in_quick_threads,
    "process": in_process,
    "processes": in_processes,
    "workers": in_workers,
    "spdl": in_spdl,
}


def spin(turns: int) -> int:
    """Work that never lets go of the interpreter's lock of its own accord."""
    total = 0
    for turn in range(turns):
        total += turn * turn % 7
    return total


def turns_of_a_step() -> int:
    """How often `spin` turns in STEP_SECONDS on this machine, at its quickest."""
    turns, best = 200_000, float("inf")
    for _ in range(20):
        began = time.perf_counter()
        spin(turns)
        best = min(best, time.perf_counter() - began)
    return int(turns * STEP_SECONDS / best)


def measure(batches: Iterator[Any], step: Callable[[], object], batch: int, seconds: float) -> float:
    """Images per second, from the second `WARM_UP` on."""
    for _ in islice(batches, WARM_UP):
        step()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(batches)
        step()
        count += batch
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="packed images, larger than 224 pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    cores, turns = len(os.sched_getaffinity(0)), turns_of_a_step()
    steps: dict[str, Callable[[], object]] = {
        "no step": lambda: None,
        "waiting": lambda: time.sleep(STEP_SECONDS),
        "Python": lambda: spin(turns),
    }
    figures: dict[str, dict[str, list[float]]] = {}
    for _ in range(arguments.rounds):
        for batch in arguments.batches:
            for kind, step in steps.items():
                row = figures.setdefault(f"batch {batch}, {kind}", {})
                nothing = iter(lambda: 0, 1)
                if kind != "no step":
                    row.setdefault("alone", []).append(measure(nothing, step, batch, arguments.seconds / 3))
                for name, way in WAYS.items():
                    if name == "spdl" and importlib.util.find_spec("spdl") is None:
                        continue
                    batches = way(arguments.dataset, batch, cores)
                    row.setdefault(name, []).append(measure(batches, step, batch, arguments.seconds))
                    batches.close()  # type: ignore[attr-defined]
    results: dict[str, Any] = {"cores": cores, "images_per_second": {}}
    for name, row in figures.items():
        loader_alone = statistics.median(figures[f"{name.split(',')[0]}, no step"]["threads"])
        ideal = min(loader_alone, statistics.median(row.get("alone", [loader_alone])))
        medians = {way: round(statistics.median(values)) for way, values in row.items()}
        results["images_per_second"][name] = {"ideal": round(ideal), "median": medians, "all": row}
        print(f"{name:20} ideal {ideal:7,.0f} ", *(f"{way} {value:,}" for way, value in medians.items()), sep="  ")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
