"""One loader in a process of its own: pack, compare pixels, or measure. `loaders.py` calls it with a task as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from peers import ALL, Spec


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder on this disk, not in memory, and below `build/`, which git ignores; until its context ends."""
    build = Path(__file__).parents[1] / "build"
    build.mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(dir=build)


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in thread.read_text().split():
            yield from tree(int(child))


def memory_mb() -> float:
    """Memory of this process and those below it: anonymous and shared, each shared page counted once (PSS).

    Mapped files are left out: they are page cache, which the kernel takes back when it needs room.
    """
    total = 0
    for pid in tree(os.getpid()):
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += sum(int(kb) for kb in re.findall(r"^Pss_(?:Anon|Shmem): +(\d+)", rollup, re.MULTILINE))
    return total / 1024


def seconds_of(pids: Iterable[int]) -> float:
    """CPU time of processes that live."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def machine_seconds() -> float:
    """CPU time of the whole machine."""
    user, nice, system, _, _, interrupts, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> tuple[float, float]:
    """CPU time of this process and those below it, and of the whole machine."""
    return seconds_of(tree(os.getpid())), machine_seconds()


def measure(name: str, data: Path, spec: Spec, warmup: float, seconds: float) -> dict[str, float]:
    """Figures of one loader in this process; the clock starts `warmup` seconds behind its first batch.

    `memory_mb` is the most seen in the warm-up and at the end, `others` the share of the machine's cores that other
    programs used meanwhile, `mean` the mean pixel of the first batch, by which black images would be found out.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec.cores])
    batches = ALL[name].batches(data, spec)
    first = next(batches)
    sides = sorted(first.shape[1:])
    if str(first.dtype).split(".")[-1] != "uint8" or sides != [3, spec.size, spec.size]:
        raise SystemExit(f"{name} gives {first.dtype} {tuple(first.shape)}, not uint8 crops of {spec.size} pixels")
    mean = float(np.asarray(first).mean())
    memory, began = 0.0, time.perf_counter()
    while time.perf_counter() - began < warmup:
        next(batches)
        memory = max(memory, memory_mb())
    before, rows, began = cpu_seconds(), 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        rows += len(next(batches))
    own, machine = (now - then for now, then in zip(cpu_seconds(), before, strict=True))
    return {
        "images_per_second": rows / elapsed,
        "images_per_cpu_second": rows / own,
        "others": max(0.0, machine - own) / elapsed / (os.cpu_count() or 1),
        "memory_mb": max(memory, memory_mb()),
        "mean": mean,
    }


def do(task: dict[str, Any]) -> dict[str, float]:
    spec, data = Spec(**task["spec"]), Path(task["data"])
    if task["do"] == "pack":
        ALL[task["name"]].pack(Path(task["images"]), data, spec)
        return {}
    if task["do"] == "compare":
        from pixel_error import pixel_error

        return {"pixel_error": pixel_error(task["name"], data, spec.size)}
    return measure(task["name"], data, spec, task["warmup"], task["seconds"])


if __name__ == "__main__":
    print(json.dumps(do(json.loads(sys.argv[1]))), flush=True)
    os._exit(0)  # worker processes and threads that do not want to end are not waited for
