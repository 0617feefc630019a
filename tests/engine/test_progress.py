"""Standard output of a training: a bar for a person at a terminal, plain lines for a file or a pipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning_shards.train import progress

from .in_place import PROJECT

SETTINGS: dict[str, Any] = {
    "data": {"global_batch_size": 8, "image_size": 16},
    "model": {"backbone": "small_cnn"},
    "trainer": {"max_epochs": 2, "log_every_n_steps": 1, "accelerator": "cpu"},
    "log": {"wandb": False, "report": False},
}


@pytest.fixture
def command(tmp_path: Path, dataset: Path, warm_python: str) -> list[str]:
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "path": str(dataset)}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    return [warm_python, str(PROJECT / "train.py"), "--config", "small.yaml"]


def test_a_pipe_gets_plain_lines(command: list[str], tmp_path: Path) -> None:
    """One after each validation, with the loss and what was measured; nothing is drawn over."""
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "\r" not in said and "\x1b" not in said and max(map(len, said.splitlines())) < 300, said
    lines = [line for line in done.stdout.splitlines() if ", validated: " in line]
    assert [line.split(",")[0] for line in lines] == ["epoch 0", "epoch 1"]
    assert all("val/accuracy" in line and "train/loss" in line for line in lines)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    meter: Any = SimpleNamespace(rate=0.0)
    for terminal, kind in ((True, progress.ProgressBar), (False, progress.ProgressLines)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        assert type(progress.progress_bar(meter)) is kind


def test_a_long_epoch_is_not_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line in every half minute, whatever the number of batches."""
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    meter: Any = SimpleNamespace(rate=0.0)
    bar = progress.ProgressLines(meter)
    monkeypatch.setattr(bar, "get_metrics", lambda *_: {"train/loss": 0.5})
    trainer: Any = SimpleNamespace(num_training_batches=1000, current_epoch=3)
    for batch in range(1000):
        now += 0.1
        bar.on_train_batch_end(trainer, meter, None, None, batch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("epoch 3, batch 301 of 1,000: train/loss 0.5")
