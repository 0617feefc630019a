"""Every config that the project ships can be used: its settings exist, and a model can be made of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from lightning_shards.train import TrainingCLI

from {{ cookiecutter.package_name }}.data import fields, transform
from {{ cookiecutter.package_name }}.model import ImageModel

from .conftest import PROJECT

PACKAGE = "{{ cookiecutter.package_name }}"
OTHERS = ("debug.yaml", "many_gpus.yaml", "probe.yaml")  # which go over another config, or with features
ALONE = sorted(path.name for path in (PROJECT / "configs").glob("*.yaml") if path.name not in OTHERS)


@pytest.mark.parametrize("over", [(), ("debug.yaml",)], ids=["alone", "debug"])
@pytest.mark.parametrize("name", ALONE)
def test_config_makes_a_model(
    name: str, over: tuple[str, ...], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [part for one in (name, *over) for part in ("--config", str(PROJECT / "configs" / one))]
    given += ["--data.path", str(dataset), "--data.global_batch_size", "12"]
    given += ["--data.micro_batch_size", "12", "--model.weights", "null"]
    if name == "scratch_long.yaml" and not find_spec("timm"):  # an extra
        given += ["--model.optimizer", "adamw"]
    cli = TrainingCLI(ImageModel, fields=fields, transform=transform, args=given)
    assert sum(parameter.numel() for parameter in cli.model.parameters()) > 0
    assert list(tmp_path.iterdir()) == [], "nothing is written before a training starts"


@pytest.mark.skipif(not (PROJECT / "configs" / "probe.yaml").exists(), reason="features are of whole images")
def test_a_head_trains_on_features(dataset: Path, tmp_path: Path) -> None:
    """`embed`, then configs/probe.yaml: two processes, of seconds each."""
    shutil.copytree(dataset, tmp_path / "data")
    embed = ["-m", PACKAGE, "embed", "small_cnn", "data", "--weights", "none", "--image-size", "28"]
    probe = [str(PROJECT / "train.py"), "--config", str(PROJECT / "configs" / "probe.yaml"), "--data.path", "data"]
    probe += ["--data.global_batch_size", "10", "--trainer.max_epochs", "1"]
    probe += ["--log.wandb", "false", "--log.report", "false"]
    for command in (embed, probe):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]


def test_settings_of_the_sweep_exist(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parameters = yaml.safe_load((PROJECT / "sweep.yaml").read_text())["parameters"]
    tried = [f"--{name}={value.get('values', [value.get('min')])[0]}" for name, value in parameters.items()]
    given = ["--config", str(PROJECT / "configs" / "sample.yaml"), "--data.path", str(dataset)]
    TrainingCLI(ImageModel, fields=fields, transform=transform, args=[*given, *tried])
