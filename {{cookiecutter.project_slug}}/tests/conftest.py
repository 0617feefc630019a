"""What the tests share: a tiny dataset, and settings that train on it in seconds with the model as it stands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning_shards.testing import tiny_dataset

PROJECT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures to train on, 30 to validate on, 30 to test on."""
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", task="{{ cookiecutter.task }}")


@pytest.fixture(scope="session")
def settings(dataset: Path) -> dict[str, Any]:
    """Those of configs/sample.yaml, on the tiny dataset."""
    given = yaml.safe_load((PROJECT / "configs" / "sample.yaml").read_text())
    given["data"] |= {"path": str(dataset), "global_batch_size": 10, "fraction": 1.0}
    given["trainer"] |= {"max_epochs": 3, "log_every_n_steps": 1, "enable_progress_bar": False}
    return {**given, "log": {"wandb": False, "report": False}}
