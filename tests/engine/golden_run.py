"""A short seeded training on the CPU whose curve is committed, in golden_run.json: a change of what is learned is seen.

    make golden    # trains anew, and writes the file: for a change that is meant

It is the default project's, by configs/sample.yaml: 2,000 of its images, twice, in batches of 64. Processors round in
different ways, and a training makes more of it with each step: the tolerance allows for that.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from lightning_shards.runs.metrics import curves, read_table
from lightning_shards.testing import train

from .in_place import PROJECT

GOLDEN = Path(__file__).with_suffix(".json")
WINDOW = 6  # steps whose mean is one point of the curve
# Relative, of the first two points and of the others. Between AVX-512, AVX2 and SSE 4.1, one thread and two, 0.0003 and
# 0.012 were seen. A rate that is a twentieth higher moves the first two by 0.002 and 0.005.
FIRST, TOLERANCE = 0.001, 0.02
SETTINGS = ("--data.fraction", "0.25", "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1")


def golden_run(folder: Path, *settings: str, run: str = "golden") -> dict[str, Any]:
    """Train in `folder`; the number of steps, and the mean loss of each WINDOW of them."""
    data = folder / "data"
    if not data.exists():
        command = ["-m", "lightning_shards", "pack", str(PROJECT / "sample" / "fashion-mnist-10k.zip"), str(data)]
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    config = str(PROJECT / "configs" / "sample.yaml")
    fixed = ("--config", config, "--data.path", str(data), "--log.wandb", "false", "--log.report", "false")
    train(PROJECT, folder, *fixed, "--run", run, *SETTINGS, *settings)
    _, rows = read_table(folder / "runs" / run / "metrics.csv")
    losses = [value for _, value in curves(rows)["train/loss"]]
    whole = len(losses) // WINDOW * WINDOW
    points = np.reshape(losses[:whole], (-1, WINDOW)).mean(axis=1)
    return {"steps": len(losses), "train/loss": [round(float(x), 4) for x in points]}


def differs(found: dict[str, Any], golden: dict[str, Any]) -> list[str]:
    """The points, by their place, that are further from the committed ones than rounding takes them."""
    if found["steps"] != golden["steps"]:
        return [f"{found['steps']} steps, not {golden['steps']}"]
    pairs = enumerate(zip(found["train/loss"], golden["train/loss"], strict=True))
    limits = [FIRST, FIRST, *[TOLERANCE] * len(golden["train/loss"])]
    return [f"point {n}: {a}, not {b}" for n, (a, b) in pairs if abs(a - b) > limits[n] * b]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        curve = golden_run(Path(scratch))
        faster = golden_run(Path(scratch), "--model.learning_rate", "0.00525", run="faster")
    GOLDEN.write_text(json.dumps({"golden": curve, "rate a twentieth higher": faster}) + "\n")
    print(f"{GOLDEN.name} is written: look at what changed, and commit it with its reason.")
