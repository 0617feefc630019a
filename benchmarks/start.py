"""How long one waits: for a bake, for help, for a refusal, for the first training step.

    make demo && cd build/lightning-shards-demo
    uv run --with cookiecutter python ../../benchmarks/start.py --json ../../docs/results/start.json

Each is a process of its own, from its start; medians and extremes of some rounds, after one that is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).resolve().parents[1]
FIRST_STEP = """
import sys, time
sys.argv[0] = "train.py"
sys.path.insert(0, "")
import train
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop as Loop
advance = Loop.advance
def first(self, fetcher):
    advance(self, fetcher)
    import os
    os.write(3, b"stepped")
    os._exit(0)
Loop.advance = first
train.main()
"""


def timed(command: list[str], folder: Path, status: int = 0, **more: Any) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **more)
    seconds = time.perf_counter() - began
    assert done.returncode == status, done.stderr
    return seconds


def first_step(project: Path) -> float:
    """Until one global batch of the sample has been trained on; the run is left in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("configs", "data", "train.py", "prices.yaml"):
            (Path(folder) / name).symlink_to(project / name)
        reading, writing = os.pipe()
        os.set_inheritable(writing, True)
        environment = {**os.environ, "PYTHONPATH": str(project / "src"), "WANDB_MODE": "disabled"}
        code = FIRST_STEP.replace("os.write(3", f"os.write({writing}")
        seconds = timed([sys.executable, "-c", code], Path(folder), env=environment, pass_fds=(writing,))
        os.close(writing)
        assert os.read(reading, 100) == b"stepped"
        os.close(reading)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    project, python = Path.cwd(), sys.executable
    package = next(path.parent.name for path in Path("src").glob("*/__init__.py"))
    environment = {**os.environ, "PYTHONPATH": "src"}
    figures: dict[str, list[float]] = {}
    for _ in range(arguments.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            bake = [python, "-m", "cookiecutter", "--no-input", "--default-config", "-o", folder, str(TEMPLATE)]
            for name, seconds in {
                "cookiecutter": timed(bake, project),
                f"python -m {package} --help": timed([python, "-m", package, "--help"], project, env=environment),
                "train.py --help": timed([python, "train.py", "--help"], project, env=environment),
                "train.py --data.path nowhere": timed(
                    [python, "train.py", "--data.path", "nowhere"], project, 2, env=environment
                ),
                "train.py, to the first step": first_step(project),
            }.items():
                figures.setdefault(name, []).append(seconds)
    results = {
        name: {
            part: round(how(seconds[1:]), 2)
            for part, how in (("median", statistics.median), ("min", min), ("max", max))
        }
        for name, seconds in figures.items()
    }
    print(json.dumps(results, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
