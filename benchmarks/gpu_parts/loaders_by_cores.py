"""The loader on 1, 2, 4, ... cores, beside the bare decoder and the loaders of others: `loaders.py`'s measurements."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import asdict
from typing import Any

from loaders import BATCH, CASES, in_own_process, pack
from peers import PEERS, Spec

from . import Figures, Setup

CASE = "256short"
ALWAYS = ("ours", "bare")
LONGEST = 40.0  # seconds of one measurement


def figures(setup: Setup) -> Figures:
    most = len(os.sched_getaffinity(0))
    cores = sorted({min(most, 1 << power) for power in range(9)}, reverse=True)
    others = [name for name in PEERS if name not in (*ALWAYS, "originals")]
    wanted = [*itertools.product(cores, ALWAYS), *itertools.product(cores, others)]
    warm, seconds = (0.1, 0.3) if setup.quick else (1.0, 2.0)
    rates: dict[str, dict[int, float]] = {}
    missing: dict[str, str] = {}
    longest = 0.0
    for count, name in wanted:
        if name in missing:
            continue
        if setup.left < longest:
            missing["what follows"] = f"no time was left for {PEERS[name].title} on {count} cores, and the rest"
            break
        began = time.monotonic()
        found = measure(setup, name, asdict(Spec(CASES[CASE], BATCH, count)), warm, seconds)
        longest = max(longest, time.monotonic() - began)
        if isinstance(found, str):
            missing[name] = found
        else:
            rates.setdefault(name, {})[count] = round(found["images_per_second"], 1)
        yield "images_per_second", rates
        yield "missing", missing
    yield "missing", missing


def measure(setup: Setup, name: str, spec: dict[str, Any], warm: float, seconds: float) -> dict[str, float] | str:
    reads = PEERS[name].reads
    try:
        data = {"images": setup.images, "ours": setup.dataset}.get(reads) or pack(
            CASE, reads, setup.images, spec, setup.peers
        )
    except RuntimeError as error:
        return str(error)
    task = {"do": "measure", "name": name, "data": str(data), "spec": spec, "warmup": warm, "seconds": seconds}
    return in_own_process(task, setup.peers, min(LONGEST, max(10.0, setup.left)))
