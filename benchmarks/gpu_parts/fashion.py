"""Fashion-MNIST's 60,000 images to 95% of the 10,000 test images: accuracy, seconds, kWh and money.

records/fashion-gpu/config.yaml has the recipe. Nothing is chosen by the test images: there is no validation, and what
is tested is the average of the weights at the end.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path

import photos
from fashion_mnist import complete, pack_whole

from . import Figures, Setup, call

RECIPE = Path(__file__).resolve().parents[2] / "records" / "fashion-gpu" / "config.yaml"
GOAL = 0.95


def figures(setup: Setup) -> Figures:
    if not complete(setup.fashion):
        yield "left_out", f"{setup.fashion} has no Fashion-MNIST: apt install dataset-fashion-mnist, or give --fashion"
        return
    setup.work.mkdir(parents=True, exist_ok=True)
    dataset = photos.once(setup.work / "fashion", partial(pack_whole, setup.fashion)).absolute()
    prices, seconds = Path("prices.yaml").absolute(), max(30.0, setup.rest - 20)
    settings = ["--config", str(RECIPE), "--data.path", str(dataset), "--prices", str(prices)]
    settings += ["--trainer.accelerator", "gpu" if setup.device == "cuda" else "cpu"]
    settings += ["--max_hours", f"{seconds / 3600:.4f}", "--trainer.enable_progress_bar", "false"]
    if setup.quick:
        settings += ["--data.fraction", "0.05", "--trainer.max_epochs", "2", "--model.backbone", "small_cnn"]
    program = str(Path("train.py").absolute())
    with tempfile.TemporaryDirectory() as scratch:
        call([program, *settings, "--run", "fashion"], cwd=Path(scratch))
        told = json.loads(Path(scratch, "runs", "fashion", "summary.json").read_text())
    if told["status"] != "done":
        yield "left_out", f"{told['epochs']} epochs only in {seconds:.0f} s: give it more --minutes"
    yield "accuracy", told["metrics"].get("test/accuracy")
    for name in ("status", "images_seen", "seconds", "images_per_second", "data_wait_fraction", "kwh", "cost"):
        yield name, told[name]
    yield "loss", told["metrics"].get("train/loss")
    yield "resolved", told["resolved"]
