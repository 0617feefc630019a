"""The memory that `pack` takes to plan a table of 100,000,000 rows: paths are simulated, all else is what `pack` does.

    make bake && cd build/lightning-shards-demo && uv sync
    uv run python ../../benchmarks/pack_plan.py --json ../../docs/results/pack_plan.json

A Parquet file is written a million rows at a time; then a process of its own lists it and plans splits and order.
Memory is what no file backs of that process, at its peak, above what it was after imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from measure import scratch

PIECE = 1_000_000


def write_table(path: Path, rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("path", pa.string()), ("c", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, PIECE):
            numbers = range(first, min(first + PIECE, rows))
            paths = [f"part-{i // 1000:06d}/image-{i:010d}.jpg" for i in numbers]
            writer.write_table(pa.table({"path": paths, "c": np.array(numbers) % 1000}, schema), 100_000)


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def measure(table: Path, folder: Path) -> dict[str, float]:
    """List and plan in this process; a thread looks at its memory a hundred times a second."""
    from lightning_shards.packing.sources import TableColumns, list_source
    from lightning_shards.packing.splits import plan

    before, peak, ended = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    listing, _ = list_source(table, "single_label", TableColumns(targets=("c",)), folder)
    listed = time.perf_counter()
    order = plan(listing, {"val": 0.01, "test": 0.01}, None, 0)
    planned = time.perf_counter()
    ended.set()
    watcher.join()
    rows = sum(map(len, order.values()))
    return {
        "rows": rows,
        "list_seconds": round(listed - began, 1),
        "plan_seconds": round(planned - listed, 1),
        "bytes_a_sample": round((peak[0] - before) / rows, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--measure", type=Path, metavar="TABLE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        folder = arguments.measure.parent / "listing"
        folder.mkdir()
        print(json.dumps(measure(arguments.measure, folder)))
        return
    with scratch() as name:
        table = Path(name) / "table.parquet"
        write_table(table, arguments.rows)
        command = [sys.executable, __file__, "--measure", str(table)]
        result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
