"""Lightning's flags that a run cannot obey are refused in a sentence, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .test_train import project, start  # noqa: F401  (`project` is a fixture)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fast_dev_run", "true"),
        ("overfit_batches", "2"),
        ("default_root_dir", "elsewhere"),
        ("enable_checkpointing", "false"),
        ("use_distributed_sampler", "true"),
        ("barebones", "true"),
    ],
)
@pytest.mark.usefixtures("project")
def test_a_flag_that_is_not_obeyed_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, name: str, value: str
) -> None:
    assert start(monkeypatch, f"--trainer.{name}", value) == 2
    assert f"trainer.{name} cannot be set" in capfd.readouterr().err and not Path("runs").exists()
