"""LAMB, of timm: trains, goes on exactly where it was stopped, and is asked for in a sentence where it is missing."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from . import starts
from .starts import Strike
from .test_inference import call
from .test_resume import Trial
from .test_train import project, start, summary  # noqa: F401  (`project` is a fixture)


@pytest.fixture(scope="module")
def context() -> Any:
    return starts.server()


class LambTrial(Trial):
    """A `Trial` with LAMB."""

    def __init__(self, context: Any, folder: Path, dataset: Path) -> None:
        folder.mkdir()
        super().__init__(context, folder, dataset)
        settings = yaml.safe_load((folder / "small.yaml").read_text())
        settings["model"] |= {"optimizer": "lamb", "loss": "binary_cross_entropy", "trivial_augment": True}
        (folder / "small.yaml").write_text(yaml.safe_dump(settings))

    def checkpoint(self) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(self.run / "checkpoints" / "last.ckpt", weights_only=True)
        return content


def test_a_resume_goes_on_exactly(context: Any, tmp_path: Path, dataset: Path) -> None:
    whole, cut = LambTrial(context, tmp_path / "whole", dataset), LambTrial(context, tmp_path / "cut", dataset)
    whole.finish(12)
    assert cut.start(12, Strike("step", 5, signal.SIGTERM)) == [75]
    cut.finish(12)
    expected, found = whole.checkpoint(), cut.checkpoint()
    assert all(torch.equal(value, found["state_dict"][name]) for name, value in expected["state_dict"].items())
    (before,), (after,) = expected["optimizer_states"], found["optimizer_states"]
    assert [float(group["step"]) for group in after["param_groups"]] == [16.0, 16.0]
    for number, state in before["state"].items():
        assert all(torch.equal(value, after["state"][number][name]) for name, value in state.items())


@pytest.mark.usefixtures("project")
def test_without_timm_it_is_one_sentence_and_nothing_is_written(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    before = set(Path().iterdir())
    assert start(monkeypatch, "--run", "a", "--model.optimizer", "lamb") == 2
    error = capfd.readouterr().err
    assert error.strip().endswith("uv sync --extra timm") and error.count("\n") == 1
    assert set(Path().rglob("runs/a/*")) == set() and set(Path().iterdir()) == before


@pytest.mark.usefixtures("project")
def test_the_long_config_is_trained_and_measured(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """All at once that it puts together, with small images, batches and a small network."""
    small = ["--config", "small.yaml", "--data.global_batch_size", "12", "--data.micro_batch_size", "6"]
    small += ["--data.size_schedule", "{8: 0.3, 12: 0.3}", "--trainer.max_epochs", "4"]
    assert start(monkeypatch, *small, "--run", "long", config="configs/scratch_long.yaml") == 0
    asked = yaml.safe_load(Path("runs/long/config.yaml").read_text())
    wanted = {"optimizer": "lamb", "loss": "binary_cross_entropy", "rand_augment": [2, 21], "mixup": 0.1, "cutmix": 1.0}
    assert {name: asked["model"][name] for name in wanted} == wanted
    assert asked["data"]["repeats"] == 3 and asked["ema_decay"] == 0.9998
    capfd.readouterr()
    assert call(monkeypatch, "evaluate", "long", "--json") == 0
    found, told = json.loads(capfd.readouterr().out), summary("long")["metrics"]
    assert found["test/loss"] == pytest.approx(told["test/loss"], abs=1e-4)
