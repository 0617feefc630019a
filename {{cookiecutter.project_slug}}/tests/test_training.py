"""The model as it stands learns, survives being killed, and predicts: three processes, of seconds each."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning_shards.testing import Proof, kill_and_resume

from .conftest import PROJECT

PACKAGE = "{{ cookiecutter.package_name }}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def proof(folder: Path, settings: dict[str, Any]) -> Proof:
    """A training of three epochs that was killed in the first and resumed."""
    return kill_and_resume(PROJECT, folder, settings)


def test_a_training_that_is_killed_goes_on_exactly(proof: Proof) -> None:
    assert (proof.lost, proof.repeated) == (0, 0), "samples lost, samples repeated"
    assert proof.summary["status"] == "done" and proof.summary["epochs"] == 3


def test_the_model_learns(proof: Proof) -> None:
    """The images are plain colours: a model that cannot tell them apart does not learn at all."""
    losses = proof.curves["train/loss"]
    first, last = losses[0], sum(losses[-5:]) / 5
    assert last < 0.7 * first, (
        f"the loss was {first:.3g} at first and is still {last:.3g} after {len(losses)} steps: look at forward(), "
        f"losses() and configure_optimizers() in src/{PACKAGE}/model.py, and at the rate in configs/sample.yaml"
    )


def test_predictions_have_a_row_for_each_image(proof: Proof, folder: Path, dataset: Path) -> None:
    command = [sys.executable, "-m", PACKAGE, "predict", "killed", str(dataset), "--out", "predictions.csv"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with (folder / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 30
