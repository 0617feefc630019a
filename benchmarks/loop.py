"""What the training loop itself costs: the Trainer with all callbacks of a run, beside a bare PyTorch loop.

    make demo && cd build/lightning-shards-demo
    uv run python ../../benchmarks/loop.py --json ../../docs/results/loop.json

Both train the same network with the same optimizer, precision and batch, which lies in memory: nothing is read or
decoded. The width of the network is chosen so that a bare step takes about `--milliseconds`. They take turns of a few
hundred milliseconds in one process; a ratio is of one turn to the bare one before it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from baked import team
from lightning_shards.data.batch import Batch
from lightning_shards.train import TrainingCLI

ROWS, SIDE = {"cpu": 32, "cuda": 256}, 32  # a GPU needs more rows to be busy for 20 ms


class Memory:
    """In place of the loader: one batch, handed out again and again."""

    batch_sampler, sampler = None, range(0)

    def __init__(self, batch: Any, steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.steps):
            yield self.batch


def network(width: int) -> torch.nn.Module:
    """Convolutions of `width` channels; its cost grows with the square of the width."""
    layers: list[torch.nn.Module] = [torch.nn.Conv2d(3, width, 3, 2, 1), torch.nn.ReLU()]
    for _ in range(4):
        layers += [torch.nn.Conv2d(width, width, 3, 1, 1), torch.nn.BatchNorm2d(width), torch.nn.ReLU()]
    pool = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 10)]
    return torch.nn.Sequential(*layers, *pool).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def bare(model: Any, optimizer: torch.optim.Optimizer, batch: Any, steps: int, device: str) -> float:
    """Seconds a step of a plain loop: forward, loss, backward, update, a learning rate for each step."""
    model.train()
    half = torch.float16 if device == "cuda" and not torch.cuda.is_bf16_supported(False) else torch.bfloat16
    began = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / steps)
        optimizer.zero_grad()
        with torch.autocast(device, half, enabled=device == "cuda"):
            outputs = model((batch["image"] - model.mean) / model.std)
        torch.nn.functional.cross_entropy(outputs.float(), batch["target"]).backward()
        optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[5.0, 20.0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {device}",
        "torch": torch.__version__,
    }
    dataset = str(Path("data/sample").absolute())
    for milliseconds in arguments.milliseconds:
        with tempfile.TemporaryDirectory() as folder:
            results[f"{milliseconds:g} ms"] = compare(dataset, folder, milliseconds, arguments.rounds)
        print(f"{milliseconds:g} ms", results[f"{milliseconds:g} ms"], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def compare(dataset: str, folder: str, milliseconds: float, rounds: int) -> dict[str, Any]:
    """Interleaved turns of both loops with a step of about `milliseconds`."""
    os.environ["WANDB_MODE"] = "disabled"
    config = Path("configs/sample.yaml").absolute()
    here = Path.cwd()
    model, sample = team()
    rows = ROWS["cuda" if torch.cuda.is_available() else "cpu"]
    os.chdir(folder)
    try:
        data = ["--data.path", dataset, "--data.global_batch_size", str(rows), "--data.image_size", str(SIDE)]
        trainer = ["--trainer.max_epochs", str(rounds), "--trainer.limit_val_batches", "0", "--log.wandb", "false"]
        settings = ["--config", str(config), *data, *trainer, "--trainer.enable_progress_bar", "false"]
        cli = TrainingCLI(model, **sample, args=settings)
        return measure(cli, milliseconds / 1000, rounds)
    finally:
        os.chdir(here)


def measure(cli: Any, wanted: float, rounds: int) -> dict[str, Any]:
    device = cli.device
    random, count = torch.Generator().manual_seed(0), ROWS.get(device, 32)
    images = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
    targets, rows = torch.randint(0, 10, (count,), generator=random), torch.arange(count)
    images = images.contiguous(memory_format=torch.channels_last)
    batch = Batch({"image": images, "target": targets}, rows, rows, torch.ones(count, dtype=torch.bool))
    batch = batch.to(device)
    for width in (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024):
        plain = network(width).to(device)
        plain.mean, plain.std = cli.model.mean.to(device), cli.model.std.to(device)
        optimizer = torch.optim.AdamW(plain.parameters(), fused=True)
        bare(plain, optimizer, batch, 5, device)
        if bare(plain, optimizer, batch, 5, device) > 0.85 * wanted:
            break
    steps = max(10, int(0.4 / wanted))
    cli.model.backbone = network(width)
    cli.data.train_dataloader = lambda: Memory(batch, steps)
    cli.data.batches = lambda accumulation: (0, steps)
    turns: dict[str, list[float]] = {"bare": [], "trainer": []}

    class Turns(lightning.Callback):  # type: ignore[misc]
        """Between two epochs of the Trainer, the bare loop has its turn."""

        def on_train_epoch_start(self, *_: Any) -> None:
            turns["bare"].append(bare(plain, optimizer, batch, steps, device))
            self.began = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, batch: Any, number: int) -> None:
            if number == steps - 1:
                if device == "cuda":
                    torch.cuda.synchronize()
                turns["trainer"].append((time.perf_counter() - self.began) / steps)

    cli.trainer.callbacks.append(Turns())
    with cli.run:
        cli.start()
    pairs = list(zip(turns["bare"], turns["trainer"], strict=True))[2:]
    ratios = [bare / ours for bare, ours in pairs]
    extra = [1e6 * (ours - bare) for bare, ours in pairs]
    return {
        "rows": count,
        "width": width,
        "bare_ms": round(1000 * statistics.median(bare for bare, _ in pairs), 3),
        "trainer_ms": round(1000 * statistics.median(ours for _, ours in pairs), 3),
        "extra_us_a_step": round(statistics.median(extra)),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min_max": [round(min(ratios), 3), round(max(ratios), 3)],
    }


if __name__ == "__main__":
    main()
