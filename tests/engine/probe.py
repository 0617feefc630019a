"""A tiny training in this process, with any of Lightning's flags, and what was seen of it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import train
import yaml
from lightning_shards.train.cli import TrainingCLI

from .conftest import write_dataset
from .recorder import PLAIN

STEPS, VAL, TEST = 4, 2, 2  # batches of an epoch, of a validation and of the test


class Probe(L.Callback):
    """Counts batches, and notes what the flags change inside a training."""

    def __init__(self) -> None:
        self.trained: list[tuple[int, list[int]]] = []  # (epoch, ids) of each batch
        self.validated: list[int] = []  # batches of each validation
        self.sanity = self.tested = 0
        self.loaders: set[int] = set()  # of the training
        self.steepest = 0.0  # of all gradients, once they are clipped
        self.inference: set[bool] = set()
        self.anomalies: set[bool] = set()

    def on_train_batch_end(self, trainer: L.Trainer, model: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.trained.append((trainer.current_epoch, batch.ids.tolist()))
        self.loaders.add(id(trainer.train_dataloader))
        self.anomalies.add(torch.is_anomaly_enabled())

    def on_before_zero_grad(self, trainer: L.Trainer, model: L.LightningModule, optimizer: Any) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                self.steepest = max(self.steepest, float(parameter.grad.abs().max()))

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.validated.append(0)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.sanity_checking:
            self.sanity += 1
        else:
            self.validated[-1] += 1

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        self.tested += 1
        self.inference.add(torch.is_inference_mode_enabled())  # a validation within a training never has it


@dataclass
class Seen:
    """What became of one start of train.py."""

    status: int = -1
    out: str = ""
    err: str = ""
    cli: Any = None  # None: it ended before the training began
    probe: Probe = field(default_factory=Probe)

    @property
    def trainer(self) -> Any:
        return self.cli.trainer

    @property
    def epochs(self) -> dict[int, list[list[int]]]:
        """The ids of each batch, by epoch."""
        found: dict[int, list[list[int]]] = {}
        for epoch, ids in self.probe.trained:
            found.setdefault(epoch, []).append(ids)
        return found

    @property
    def files(self) -> list[str]:
        return sorted(str(path.relative_to("runs/tried")) for path in Path("runs/tried").rglob("*") if path.is_file())

    @property
    def metrics(self) -> str:
        path = Path("runs/tried/metrics.csv")
        return path.read_text() if path.exists() else ""

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(Path("runs/tried/summary.json").read_text())


def write(folder: Path) -> None:
    """Into an empty folder: two datasets of 16 samples to train on, `data` with 6 each to validate and test, and
    `bare` without, and a config for them."""
    write_dataset(folder / "data", sizes=(8, 8), held_out=6)
    write_dataset(folder / "bare", sizes=(8, 8), held_out=0)
    settings = {
        "data": {"path": "data", "global_batch_size": 4, "image_size": 16, "workers": 1},
        "model": {"backbone": PLAIN, "learning_rate": 0.01},
        "trainer": {"max_epochs": 1, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "log": {"wandb": False, "report": False},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(settings))


def attempt(monkeypatch: pytest.MonkeyPatch, capfd: Any, *arguments: str, resume: bool = False) -> Seen:
    """Start train.py in the current folder, as the run `tried`.

    An exception that would reach the user as a traceback is raised.
    """
    seen = Seen()
    original = TrainingCLI.start

    def start(self: TrainingCLI) -> None:
        seen.cli = self
        self.trainer.callbacks.insert(0, seen.probe)  # type: ignore[attr-defined]
        original(self)

    begin = ["--resume", "tried"] if resume else ["--config", "small.yaml"]
    if not resume and "--run" not in arguments and not any("fast_dev_run" in a for a in arguments):
        begin += ["--run", "tried"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingCLI, "start", start)
        patch.setattr(sys, "argv", ["train.py", *begin, *arguments])
        capfd.readouterr()
        try:
            train.main()
            seen.status = 0
        except SystemExit as end:
            seen.status = int(end.code or 0)
    seen.out, seen.err = capfd.readouterr()
    return seen
