"""One epoch of 100,000,000 images on 1 to 128 nodes of 8 ranks, simulated: what a rank's plan costs, what a node reads.

    make bake && cd build/lightning-shards-demo && uv sync
    uv run python ../../benchmarks/cluster.py --json ../../docs/results/cluster.json

The order and the samplers are the real ones; no image is read. A node's samples are those of its ranks, batch by batch,
through the whole epoch; a rank's plan is timed on one of them, alone on a core, as it runs beside the training.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from lightning_shards.data.order import WindowedOrder
from lightning_shards.data.sampler import TrainSampler

SHARDS, SAMPLES, SAMPLE_BYTES = 10_000, 10_000, 27_000  # photos packed at a short side of 256 pixels
WINDOW_BYTES = 4 << 30  # the default of data.window_bytes
BATCH, RANKS = 8192, 8
IMAGES_PER_SECOND = 2_500  # of one GPU: a stated figure, to say what share of the time the plan is


def simulate(nodes: int) -> dict[str, Any]:
    """The figures of one epoch for the last of `nodes` nodes, and for its last rank."""
    order = WindowedOrder([SAMPLES] * SHARDS, [SAMPLES * SAMPLE_BYTES] * SHARDS, window_bytes=WINDOW_BYTES)
    world = nodes * RANKS
    micro = min(256, BATCH // world)
    sampler = TrainSampler(order, world - 1, world, micro, BATCH // (micro * world), (0, 0))
    began, rows = time.perf_counter(), 0
    for ids in sampler:
        rows += len(ids)
    seconds = time.perf_counter() - began
    shards, touches, read, share = set(), 0, 0, BATCH // nodes
    for window in range(len(order._plan(0)[1]) - 1):
        first, last = (int(p) for p in order._plan(0)[2][window : window + 2])
        batches = np.arange(first // BATCH, min(-(-last // BATCH), len(order) // BATCH)) * BATCH
        positions = (batches[:, None] + np.arange((nodes - 1) * share, BATCH)).ravel()
        positions = positions[(positions >= first) & (positions < last)] - first
        found = np.unique(order._window(0, window)[0][positions] // SAMPLES)
        touches += len(found)
        shards |= set(found.tolist())
        read += len(positions)
    return {
        "nodes": nodes,
        "ranks": world,
        "micro_batch": micro,
        "plan_seconds_a_rank": seconds,
        "plan_share_of_time": seconds / (rows / IMAGES_PER_SECOND),
        "samples_a_node": read,
        "read_bytes_a_node": read * SAMPLE_BYTES,
        "shards_touched_a_node": len(shards),
        "shards_touched_again": touches - len(shards),
        "fetched_bytes_a_node": len(shards) * SAMPLES * SAMPLE_BYTES,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2, 8, 32, 128])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for nodes in given.nodes:
        rows.append(simulate(nodes))
        r = rows[-1]
        read, fetched = r["read_bytes_a_node"] / 1e9, r["fetched_bytes_a_node"] / 1e9
        plan = f"{r['plan_seconds_a_rank']:.1f} s a rank ({r['plan_share_of_time']:.1%} of the time)"
        print(f"{nodes:4} nodes: plan {plan}, {read:,.0f} GB read and {fetched:,.0f} GB fetched a node", flush=True)
    if given.json:
        facts: dict[str, Any] = {
            "samples": SHARDS * SAMPLES,
            "shards": SHARDS,
            "sample_bytes": SAMPLE_BYTES,
            "global_batch": BATCH,
        }
        facts |= {"window_bytes": WINDOW_BYTES, "images_per_second_a_rank": IMAGES_PER_SECOND}
        facts |= {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.processor() or "?"}
        given.json.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
