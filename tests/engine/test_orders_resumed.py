"""A mixture and balanced classes, cut and gone on with elsewhere: each position of the order once, as promised."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning_shards.train.datamodule import ShardDataModule

from . import proofs, starts
from .conftest import write_dataset
from .starts import Strike
from .test_resume import Trial

KILL, TERM = signal.SIGKILL, signal.SIGTERM


@pytest.fixture(scope="module")
def context() -> Any:
    return starts.server()


class OrderTrial(Trial):
    """A `Trial` with other settings of `data`."""

    def __init__(self, context: Any, folder: Path, dataset: Path, **changes: Any) -> None:
        super().__init__(context, folder, dataset)
        settings = yaml.safe_load((folder / "small.yaml").read_text())
        settings["data"] |= changes
        (folder / "small.yaml").write_text(yaml.safe_dump(settings))
        self.order = ShardDataModule(**settings["data"]).order


@pytest.mark.parametrize("kind", ["mixture", "balance"])
def test_each_position_comes_once_however_it_is_cut(context: Any, tmp_path: Path, dataset: Path, kind: str) -> None:
    changes: dict[str, Any] = {"balance": {"red": 2.5, "blue": 0.5}, "workers": 1}
    if kind == "mixture":
        other = write_dataset(tmp_path / "other", sizes=(7, 20, 4), held_out=5)
        changes = {"mixture": {str(dataset): 0.4, str(other): 0.6}, "window_samples": 40}
    trial = OrderTrial(context, tmp_path, dataset, **changes)
    assert trial.start(12, Strike("step", 4, KILL)) == [-KILL]
    assert trial.start(12, Strike("batch", 7, KILL, rank=1), devices=2, accumulation=2)[1] == -KILL
    assert trial.start(6, Strike("step", 3, TERM), devices=2) == [0, 0]
    assert proofs.summary(trial.run)["status"] == "stopped"
    trial.finish(12, accumulation=3)
    counts = Counter(i for step in proofs.history(trial.run) if step.epoch == 0 for i in step.ids)
    if kind == "balance":
        factors = [2.5, 1.0, 0.5]
        assert all(n <= -(-factors[i % 3] // 1) for i, n in counts.items()) and max(counts.values()) == 3
    else:
        assert max(counts.values()) >= 2 and {n for i, n in counts.items() if i < 96} == {1}
