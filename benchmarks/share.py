"""What share of the machine the loader takes while the sample run's model trains, with arrays beside the tars or not.

    make demo && cd build/lightning-shards-demo
    uv run python ../../benchmarks/share.py --json ../share.json

CPU seconds of the decoding processes and of all processes of a training, and its images/s. The first epoch of the run
with arrays writes them, unless `pack --decoded` has; both runs have the same epochs, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_shards.train import hardware
from measure import tree

HERTZ = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> tuple[bool, float]:
    """Whether a process decodes, and its CPU seconds so far."""
    decodes = b"data.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return decodes, sum(map(int, ticks)) / HERTZ


def training(name: str, *settings: str) -> dict[str, Any]:
    """Run one and look at its processes ten times a second."""
    command = [sys.executable, "train.py", "--run", name, "--log.wandb", "false", *settings]
    spent: dict[int, tuple[bool, float]] = {}
    with subprocess.Popen([*command, "--trainer.enable_progress_bar", "false"], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            for pid in tree(process.pid):
                with suppress(OSError):
                    spent[pid] = cpu(pid)
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"the training {name} ended with status {process.returncode}")
    summary = json.loads(Path("runs", name, "summary.json").read_text())
    loader = sum(seconds for decodes, seconds in spent.values() if decodes)
    return {
        "images_per_second": summary["images_per_second"],
        "loader_cpu_seconds": round(loader, 2),
        "all_cpu_seconds": round(sum(seconds for _, seconds in spent.values()), 2),
        "accuracy": summary["metrics"]["test/accuracy"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    ways = {"from the tars": "0", "from arrays": "1000000000"}
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for number in range(given.rounds):
        for way, kept in ways.items():
            about = ("--data.decoded_bytes", kept, "--trainer.max_epochs", str(given.epochs))
            rows[way].append(training(f"share-{time.time_ns()}", *about, "--seed_everything", str(number)))
    ways_found = {}
    for way, runs in rows.items():
        share = statistics.median(run["loader_cpu_seconds"] / run["all_cpu_seconds"] for run in runs)
        ways_found[way] = {"share": round(share, 4), "runs": runs}
        print(f"{way}: the loader takes {share:.1%} of the CPU time")
    if given.json:
        command = " ".join(["python benchmarks/share.py", *sys.argv[1:]])
        result: dict[str, Any] = {"command": command, "machine": hardware.device_name("cpu")}
        result |= {"epochs": given.epochs, "versions": hardware.versions(), "ways": ways_found}
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
