"""A training on the device is killed twice and goes on: the ledger is exact, the weights are those of one never cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine import proofs
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.order import WindowedOrder

from . import Figures, Setup, call, environment, last_lines

EPOCHS = 3
LAUNCH = 120.0  # seconds that a start may take until it has made its steps


def figures(setup: Setup) -> Figures:
    import torch

    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS is the same in each run only so
    program, data = str(Path("train.py").absolute()), Path("data/sample").absolute()
    settings = ["--config", str(Path("configs/sample.yaml").absolute()), "--data.path", str(data), "--ledger", "true"]
    settings += ["--trainer.deterministic", "warn", "--trainer.benchmark", "false", "--log.wandb", "false"]
    settings += ["--trainer.accelerator", "gpu" if setup.device == "cuda" else "cpu", "--save_every_minutes", "0.002"]
    settings += ["--trainer.max_epochs", str(EPOCHS), "--trainer.enable_progress_bar", "false"]
    settings += ["--data.fraction", "0.1"] if setup.quick else []
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch, "runs")

        def weights(run: str) -> dict[str, Any]:
            path = runs / run / "checkpoints" / "last.ckpt"
            return dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])

        call([program, *settings, "--run", "whole"], cwd=Path(scratch))
        steps = len(proofs.history(runs / "whole"))
        yield "steps", steps
        kills = []
        for share in (0.3, 0.7):
            going = ["--resume", "cut"] if (runs / "cut").exists() else [*settings, "--run", "cut"]
            kills.append(killed([program, *going], Path(scratch), runs / "cut", int(share * steps)))
        call([program, "--resume", "cut"], cwd=Path(scratch))
        yield "killed_after_steps", kills
        yield "done_again", proofs.repeated_steps(runs / "cut")
        order = train_order(data, 0.1 if setup.quick else 1.0)
        lost, repeated, wrong = proofs.check_ids(proofs.history(runs / "cut"), order, EPOCHS)
        yield "ledger", {"lost": lost, "repeated": repeated, "wrong": wrong}
        yield "weights", difference(weights("whole"), weights("cut"))
        call([program, *settings, "--run", "again"], cwd=Path(scratch))
        yield "never_cut_twice", difference(weights("whole"), weights("again"))


def train_order(dataset: Path, fraction: float) -> Any:
    shards = Dataset.open(dataset).splits["train"]
    return WindowedOrder([s.samples for s in shards], [s.bytes for s in shards], fraction=fraction)


def killed(command: list[str], cwd: Path, run: Path, steps: int) -> int:
    """Start, and kill once `steps` are in the ledger and there is a checkpoint; the steps that were made by then."""
    with (cwd / "log").open("w+") as log:
        process = subprocess.Popen([sys.executable, *command], cwd=cwd, env=environment(), stdout=log, stderr=log)
        end, made = time.monotonic() + LAUNCH, 0
        try:
            while process.poll() is None and time.monotonic() < end:
                made = len(proofs.history(run)) if (run / "checkpoints" / "last.ckpt").exists() else 0
                if made >= steps:
                    return made
                time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        log.seek(0)
        raise RuntimeError(f"it was over, or too slow, before step {steps}, at {made}:\n{last_lines(log.read())}")


def difference(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Whether all weights are equal to the last bit; else, how far they are from each other."""
    apart = {name: float((tensor.double() - second[name].double()).abs().max()) for name, tensor in first.items()}
    return {"tensors": len(first), "equal": not any(apart.values()), "largest_difference": max(apart.values())}
