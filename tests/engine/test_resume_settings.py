"""Going on with other settings: each takes effect or is refused in a sentence, and flags win over config files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_shards.data import order
from lightning_shards.errors import InputError
from lightning_shards.train import optimizer_state, resume_settings
from lightning_shards.train.run import Run
from lightning_shards.train.settings import value_of, with_files
from lightning_shards.train.trained_model import best_model
from team.model import ImageModel

from . import PATIENCE
from .test_inference import call
from .test_train import project, start, summary  # noqa: F401  (`project` is a fixture)


def groups() -> list[tuple[float, float]]:
    content = torch.load("runs/a/checkpoints/last.ckpt", weights_only=True)
    return [(group["weight_decay"], group["momentum"]) for group in content["optimizer_states"][0]["param_groups"]]


@pytest.mark.usefixtures("project")
def test_weight_decay_and_momentum_take_effect_and_go_back(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    assert start(monkeypatch, "--run", "a", "--model.optimizer", "sgd", "--trainer.max_epochs", "1") == 0
    assert groups() == [(0.05, 0.9), (0.0, 0.9)]
    window = summary("a")["resolved"]["window_bytes"]
    monkeypatch.setattr(order, "memory_bytes", lambda: 1 << 18)  # a smaller machine: the window stays
    changed = ["--model.weight_decay", "0.2", "--model.momentum", "0.5"]
    assert start(monkeypatch, "--resume", "a", "--trainer.max_epochs", "2", *changed, config=None) == 0
    assert summary("a")["resolved"]["window_bytes"] == window
    assert "more than a quarter of this machine's memory" in capfd.readouterr().out
    assert groups() == [(0.2, 0.5), (0.0, 0.5)]
    assert summary("a")["changed_on_resume"]["model.weight_decay"] == 0.2
    assert start(monkeypatch, "--resume", "a", "--trainer.max_epochs", "3", config=None) == 0
    assert groups() == [(0.05, 0.9), (0.0, 0.9)]  # as its config says again


@pytest.mark.usefixtures("project")
def test_what_needs_a_new_run_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    assert start(monkeypatch, "--run", "a", "--trainer.max_epochs", "2") == 0
    before = {path: path.stat().st_mtime_ns for path in Path("runs/a").rglob("*")}
    best = "--model.weights runs/a/checkpoints/best.ckpt"
    for arguments, said in (
        (["--model.backbone", "resnet18"], ("model.backbone", best)),
        (["--model.optimizer", "sgd"], ("model.optimizer", best)),
        (["--model.weights", "runs/a/checkpoints/best.ckpt"], ("model.weights cannot be set",)),
        (["--trainer.max_epochs", "1"], ("trainer.max_epochs is 1", "2 epochs")),
    ):
        capfd.readouterr()
        assert start(monkeypatch, "--resume", "a", *arguments, config=None) == 2
        error = capfd.readouterr().err
        assert all(part in error for part in said) and "Traceback" not in error
    assert {path: path.stat().st_mtime_ns for path in Path("runs/a").rglob("*")} == before


@pytest.mark.usefixtures("project")
def test_a_run_that_another_process_trains_is_left_alone(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """`last` is easily a run that is not yet done: two trainings would write over each other's files."""
    assert start(monkeypatch, "--run", "a", "--trainer.max_epochs", "1") == 0
    going_on = ["--resume", "last", "--trainer.max_epochs", "2"]
    Path("runs/a/checkpoints/last.ckpt.1.tmp").touch()
    before = {path: path.stat().st_mtime_ns for path in Path("runs/a").rglob("*")}
    hold = "import sys, fcntl; f = open(sys.argv[1], 'rb+'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True)"
    command = [sys.executable, "-c", f"{hold}; sys.stdin.read()", "runs/a/config.yaml"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        capfd.readouterr()
        assert start(monkeypatch, *going_on, config=None) == 2
        assert "runs/a is being trained by another process" in capfd.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in Path("runs/a").rglob("*")} == before
        with monkeypatch.context() as restarted:
            restarted.setenv("TORCHELASTIC_RESTART_COUNT", "1")
            again = Run(Path("runs/a"), "", True, dict)
            again._hold()  # is not refused: a launcher ends ranks before it starts them again
            again._held.close()
        other.communicate(timeout=PATIENCE)
    assert start(monkeypatch, *going_on, config=None) == 0
    assert not list(Path("runs/a").rglob("*.tmp"))


@pytest.mark.usefixtures("project")
def test_a_model_is_measured_as_its_last_attempt_measured_it(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """With the sizes and crops that a resume has changed, and without what only a training can have."""
    of_training = ["--data.repeats", "2", "--data.image_size", "16", "--data.size_schedule", "{8: 0.5}"]
    assert start(monkeypatch, "--run", "a", *of_training, "--trainer.max_epochs", "2") == 0
    changed = ["--data.image_size", "20", "--data.eval_crop", "0.5", "--trainer.max_epochs", "4"]
    assert start(monkeypatch, "--resume", "a", *changed, config=None) == 0
    for flags, side in (([], 20), (["--data.image_size", "null"], 16)):
        if flags:
            assert start(monkeypatch, "--resume", "a", *flags, "--trainer.max_epochs", "6", config=None) == 0
        assert best_model(ImageModel, Path("runs/a"))[1]["data"]["image_size"] == side
        capfd.readouterr()
        assert call(monkeypatch, "evaluate", "a", "--json") == 0
        found, told = json.loads(capfd.readouterr().out), summary("a")["metrics"]
        for name in ("test/accuracy", "test/loss"):
            assert found[name] == pytest.approx(told[name], abs=1e-4), (name, side)


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_what_is_kept_of_each_weight_follows_its_memory_layout(kind: str) -> None:
    """A fused optimizer would take the numbers of other weights: `--model.channels_last` changed on a resume."""
    before, after = (torch.nn.Parameter(torch.rand(4, 3, 2, 2)) for _ in range(2))
    before.data = before.data.to(memory_format=torch.channels_last)
    options: dict[str, Any] = {"lr": 0.1, "fused": True} | ({"momentum": 0.9} if kind == "SGD" else {})
    old, new = (getattr(torch.optim, kind)([parameter], **options) for parameter in (before, after))
    before.grad, after.grad = torch.rand_like(before), torch.rand(4, 3, 2, 2)
    old.step()
    new.load_state_dict(old.state_dict())
    optimizer_state.lay_out(new)
    kept = [value for value in new.state[after].values() if value.ndim]
    assert kept and all(value.stride() == after.stride() for value in kept)
    assert all(torch.equal(value, old.state[before][name]) for name, value in new.state[after].items())


def test_flags_win_over_config_files_wherever_they_stand(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    for path in (one, two):
        path.write_text("{}")
    arguments, _ = with_files(["--seed_everything", "3", "--config", str(one), "--run", "a", f"--config={two}"])
    assert arguments == ["--config", str(one), f"--config={two}", "--seed_everything", "3", "--run", "a"]


def test_of_a_flag_that_is_given_twice_the_last_counts() -> None:
    assert value_of(["--resume", "a", "--run", "b", "--resume=c"], "--resume") == "c"
    assert value_of(["--resume=a", "--resume", "b"], "--resume") == "b"
    with pytest.raises(InputError, match="needs a name"):
        value_of(["--resume", "a", "--resume", ""], "--resume")


def test_the_documentation_names_what_the_code_names() -> None:
    text = Path(resume_settings.__file__).resolve().parents[3].joinpath("docs/resume.md").read_text()
    assert all(f"`{name}`" in text for name in resume_settings.NEEDS_NEW_RUN + resume_settings.FIXED)
    ours = ("trained_blocks", "thaw_after", "layer_decay", "drop_path", "gradient_checkpointing", "pretrained")
    assert all(f"`model.{name}`" in text for name in ours)
