"""How fast the shards come: from the disk past the page cache, or from a URL, in the loader's own access pattern."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..data.array_plan import ArrayPlan
from ..data.dataset import Shard
from ..data.remote import Remote
from ..data.sample_reader import STREAMS
from ..data.shard_file import ShardFile
from ..machine import memory_bytes
from ..train.datamodule import ShardDataModule

MEMORY_SHARE = 0.75  # of the memory that the page cache may take


def reading(data: ShardDataModule, seconds: float, scale: float = 1.0) -> dict[str, Any]:
    """Read training shards for about so long, one at least, of a dataset that will be `scale` times as large.

    Returns `bytes_per_second` (None where it could not be measured: `note` says why), `kind` (disk or network),
    `bytes` of the training samples, and whether they are `cached` after the first epoch.
    """
    share = scale * len(data.order) / data.dataset.samples("train")
    if data.features:
        return _arrays(data.features.plan(data.dataset, "train"), data.dataset.splits["train"], share, seconds)
    size = round(sum(shard.bytes for shard in data.dataset.splits["train"]) * share)
    parts = data.dataset.parts("train")  # of a mixture one is read, which is behind a URL if any is
    part, shards = next((found for found in parts if isinstance(found[0].root, str)), parts[0])
    rate: float | None
    if cache := data.new_cache():
        rate, note = _network(str(part.root), shards, seconds), ""
        room, place = float(cache.capacity), "on this node's disk"
    else:
        rate, note = _disk(Path(part.root), shards, seconds)
        room, place = MEMORY_SHARE * memory_bytes(), "in memory"
    kind = "network" if cache else "disk"
    if size <= room:
        note = "; ".join(filter(None, (note, f"then cached {place}")))
    return {"kind": kind, "bytes_per_second": rate, "bytes": size, "cached": size <= room, "note": note}


def _disk(root: Path, shards: Sequence[Shard], seconds: float) -> tuple[float | None, str]:
    """Bytes/s of long reads of whole tars, each dropped from the page cache before."""
    began, done, kept = 0.0, 0, 0
    for shard in shards:
        opened = ShardFile(shard, root / shard.name, ())
        _forget(root / shard.name)
        if opened.in_memory(shard.bytes // 2):
            kept += 1
            continue
        began = began or time.perf_counter()
        opened.read_ahead(threading.Event())
        done += shard.bytes
        if time.perf_counter() - began > seconds:
            break
    if not done:
        return None, f"{root} is kept in memory by its file system: not measured"
    note = "rough: few MB" if done < 64 << 20 else ""
    return done / (time.perf_counter() - began), note


def _arrays(plan: ArrayPlan, shards: Sequence[Shard], share: float, seconds: float) -> dict[str, Any]:
    """What `reading` returns, of a training that reads arrays beside the tars and not the tars."""
    began, done = time.perf_counter(), 0
    for shard in shards:
        if found := plan.open(shard):
            _forget(found.path)
            done += len(found.path.read_bytes())
        if time.perf_counter() - began > seconds:
            break
    size, note = round(plan.needed(shards) * share), "rough: few MB; " if done < 64 << 20 else ""
    cached = size <= MEMORY_SHARE * memory_bytes()
    note = (note + ("then cached in memory" if cached else "")).removesuffix("; ")
    rate = done / (time.perf_counter() - began)
    return {"kind": "disk", "bytes_per_second": rate, "bytes": size, "cached": cached, "note": note}


def _forget(path: Path) -> None:
    """Drop a file from the page cache, where its file system does so."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _network(url: str, shards: Sequence[Shard], seconds: float) -> float:
    """Bytes/s of as many streams as the loader has; what comes is thrown away."""
    counts, end = [0] * len(shards), time.perf_counter() + seconds

    def fetch(number: int) -> None:
        if number and time.perf_counter() > end:
            return
        for piece in Remote(url).pieces(shards[number].name, shards[number].bytes):
            counts[number] += len(piece)
            if time.perf_counter() > end:
                return

    began = time.perf_counter()
    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(fetch, range(len(shards))))
    return sum(counts) / (time.perf_counter() - began)
