"""One rank and three give the same training, with masked rows on one rank only, and the same counts in validation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

import {{cookiecutter.package_name}}
from {{cookiecutter.package_name}}.loading.order import Order

from .conftest import PROJECT, write_dataset

# A network without batch statistics, which are each rank's own; Lightning's launcher runs this file on every rank.
SCRIPT = """
import sys
from torch import nn
sys.path.insert(0, {project!r})
from {package}.training import backbones

class Plain(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        stem = nn.Conv2d(3, 8, 3, 2), nn.GELU(), nn.GroupNorm(2, 8)
        self.body = nn.Sequential(*stem, nn.Flatten(), nn.Linear(392, outputs))

    def forward(self, images):
        return self.body(images)

backbones.SmallCNN = Plain
import train
train.main()
"""


def run(folder: Path, devices: int, micro: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Train in a process of its own; its summary and its last weights."""
    name = f"{devices}x{micro}"
    package = Path({{cookiecutter.package_name}}.__file__).parent
    (folder / "plain.py").write_text(SCRIPT.format(project=str(PROJECT), package=package.name))
    arguments = [
        "--config",
        "c.yaml",
        "--run",
        name,
        "--trainer.devices",
        str(devices),
        "--data.micro_batch_size",
        str(micro),
    ]
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    done = subprocess.run(
        [sys.executable, "plain.py", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((folder / "runs" / name / "summary.json").read_text())
    return summary, torch.load(folder / "runs" / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def evaluation(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / name / "evaluation" / "test.json").read_text())


def test_three_ranks_train_and_count_as_one(tmp_path: Path) -> None:
    """With the augmentation that is each sample's own; what mixing does is the micro-batch's."""
    sizes = (17, 30, 9, 40)
    order = Order(sizes, [1] * 4)
    first_step = order.ids(0, 0, 12).tolist()  # with three ranks, all of these damaged rows are on the first one
    root = write_dataset(tmp_path / "data", sizes, damaged=dict.fromkeys(first_step[:3], b"no image"), held_out=20)
    settings = {
        "data": {"path": str(root), "global_batch_size": 12, "image_size": 16, "max_skipped_fraction": 0.5},
        "model": {
            "backbone": "small_cnn",
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "warmup": 0.0,
            "erasing": 0.5,
            "color_jitter": 0.4,
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
        "log": {"wandb": False},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    one, weights = run(tmp_path, 1, 12)
    found = evaluation(tmp_path, "1x12")
    assert sum(map(sum, found["counts"]["confusion"])) == found["images"] == 20
    for devices, micro in ((3, 4), (1, 4)):
        other, others = run(tmp_path, devices, micro)
        for name, value in weights.items():
            assert torch.allclose(value, others[name], rtol=1e-4, atol=1e-5), (devices, micro, name)
        for name in ("val/accuracy", "test/accuracy", "val/skipped", "test/skipped"):
            assert other["metrics"][name] == one["metrics"][name], "each held-out sample is counted once"
        assert other["images_seen"] == one["images_seen"] == 2 * 96
        others_found = evaluation(tmp_path, f"{devices}x{micro}")
        assert others_found["counts"] == found["counts"] and others_found["images"] == 20
        for kind, examples in found["examples"].items():
            ids = {example["id"] for example in examples}
            assert {example["id"] for example in others_found["examples"][kind]} == ids, (
                "the same images, whoever met them"
            )
        assert other["skipped"] == one["skipped"] == 6, "three samples, two epochs, whichever rank met them"
