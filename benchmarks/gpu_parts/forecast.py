"""`forecast` for three networks at 224 pixels, and how near training from files comes to training on one batch."""

from __future__ import annotations

import gc
import statistics
import tempfile
from typing import Any

from baked import team
from lightning_shards.forecasting.bench import Bench
from lightning_shards.forecasting.forecast import forecast

from . import Figures, Setup, tried

NETWORKS: dict[str, list[str]] = {
    "resnet50": [],
    "convnext_tiny": ["--model.optimizer", "adamw", "--model.learning_rate", "0.001", "--model.weight_decay", "0.05"],
    "vit_b_16": ["--model.optimizer", "adamw", "--model.learning_rate", "0.001", "--model.weight_decay", "0.05"],
}
IMAGES = 100_000_000
ROUNDS = 3


def figures(setup: Setup) -> Figures:
    networks = {setup.network: []} if setup.quick else NETWORKS
    share = 3.0 if setup.quick else setup.seconds / (len(networks) + 1.2)
    for name, settings in networks.items():
        arguments = [*setup.training, "--model.backbone", name, *settings]
        yield name, tried(lambda arguments=arguments: fitting(setup, arguments, 0.5 * share))  # type: ignore[misc]
    rounds, seconds = (1, 0.5) if setup.quick else (ROUNDS, max(1.0, (setup.left - 10) / (2 * ROUNDS) - 3))
    yield "rounds", tried(lambda: in_turn(setup, rounds, seconds))


def fitting(setup: Setup, arguments: list[str], seconds: float) -> dict[str, Any]:
    """The forecast with a micro-batch that fits into memory: the usual one, or a half or a quarter of it."""
    import torch

    for micro in (setup.micro, setup.micro // 2, setup.micro // 4):
        try:
            return one([*arguments, "--data.micro_batch_size", str(micro)], seconds)
        except torch.OutOfMemoryError:
            gc.collect()
            torch.cuda.empty_cache()
    raise RuntimeError(f"the device has no memory for a micro-batch of {micro}")


def one(arguments: list[str], seconds: float) -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model, sample = team()
    report: dict[str, Any] = forecast(model, arguments, IMAGES, max(1.0, seconds), **sample)
    del report["gpus"]  # what others would do is estimated
    stages = {name: stage["images_per_second"] for name, stage in report["stages"].items()}
    report["ratio"] = stages["both"] / stages["model"]
    if cuda:
        report["memory_gb"] = {
            "allocated": torch.cuda.max_memory_allocated() / 1e9,
            "reserved": torch.cuda.max_memory_reserved() / 1e9,
        }
    return report


def in_turn(setup: Setup, rounds: int, seconds: float) -> dict[str, Any]:
    """Training on one batch and training from files, in turn, and their ratio in each round."""
    model, sample = team()
    with tempfile.TemporaryDirectory() as scratch:
        trial = Bench(model, [*setup.training, "--model.backbone", setup.network], scratch, {}, **sample)
        rates = [(trial.model_alone(seconds), trial.both(seconds)[0]) for _ in range(rounds)]
    ratios = [both / model for model, both in rates]
    return {
        "network": setup.network,
        "seconds": seconds,
        "model": [round(model, 1) for model, _ in rates],
        "both": [round(both, 1) for _, both in rates],
        "ratio": [round(ratio, 4) for ratio in ratios],
        "median": round(statistics.median(ratios), 4),
    }
