"""Fashion-MNIST's 60,000 images to 95% of the 10,000 test images: accuracy, seconds, kWh and money.

benchmarks/fashion.yaml has the recipe. Nothing is chosen by the test images: there is no validation, and what is tested
is the average of the weights at the end.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import photos
from make_sample import CLASSES, read

from . import Figures, Setup, call

RECIPE = Path(__file__).resolve().parent.parent / "fashion.yaml"
GOAL = 0.95


def figures(setup: Setup) -> Figures:
    if not (setup.fashion / "train-images-idx3-ubyte.gz").exists():
        yield "left_out", f"{setup.fashion} has no Fashion-MNIST: apt install dataset-fashion-mnist, or give --fashion"
        return
    setup.work.mkdir(parents=True, exist_ok=True)
    dataset = photos.once(setup.work / "fashion", partial(packed, setup.fashion)).absolute()
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


def packed(source: Path, dest: Path) -> None:
    """The originals' images as PNG in class folders of a zip, packed: all for training and for the test."""
    import cv2

    archive = dest.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for split, original in (("train", "train"), ("test", "t10k")):
            images, labels = read(source, original)
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                png = cv2.imencode(".png", image)[1].tobytes()
                file.writestr(f"{split}/{list(CLASSES)[label]}/{number:05d}.png", png)
    call(["-m", "lightning_shards", "pack", str(archive.absolute()), str(dest.absolute()), "--val", "0"])
    archive.unlink()
