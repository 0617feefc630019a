"""What a run goes on from: plain data under a fixed key, whatever the classes are called."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning_shards import train as train_package
from lightning_shards.errors import InputError
from lightning_shards.runs.checkpoints import KEY, newest, state
from lightning_shards.train.checkpoints import Checkpoints
from lightning_shards.train.cli import TrainingCLI
from lightning_shards.train.datamodule import ShardDataModule
from team.model import ImageModel

from .test_train import ledger, project, start, summary  # noqa: F401  (`project` is a fixture)


class Renamed(ShardDataModule):
    """The team's own."""


class Plain(BoringDataModule):
    """Lightning's own example."""


@pytest.fixture
def stopped(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """`checkpoints/` of a run of three epochs of 12 steps that an error ended after 19 steps, the last of them lost."""
    original = ImageModel.training_step

    def fails(self: ImageModel, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 19:
            raise OSError("a cable was pulled")
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ImageModel, "training_step", fails)
        with pytest.raises(OSError, match="cable"):
            start(patch, "--run", "r", "--ledger", "true", "--trainer.val_check_interval", "0.5")
    return Path("runs/r/checkpoints")


def all_files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}


def test_a_checkpoint_says_where_it_stands_in_plain_data(stopped: Path) -> None:
    content = torch.load(stopped / "last.ckpt", weights_only=True)
    place = content[KEY]
    assert (place["format"], place["epoch"], place["position"], place["images_seen"]) == (1, 1, 6 * 8, 18 * 8)
    assert place["order"]["seed"] == 0 and place["version"]
    assert not any(name in content for name in ("ShardDataModule", "Renamed"))
    assert all(key.startswith("lightning_shards/") for key in content["callbacks"]), "no names of classes"


def test_a_datamodule_of_another_name_goes_on_exactly(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_package, "TrainingCLI", partial(TrainingCLI, datamodule_class=Renamed))
    assert start(monkeypatch, "--resume", "r", config=None) == 0
    assert summary("r")["images_seen"] == 3 * 96
    for epoch in range(3):
        assert sorted(i for (e, _), ids in ledger("r").items() if e == epoch for i in ids) == list(range(96))


def test_a_datamodule_without_a_place_is_refused(
    project: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    monkeypatch.setattr(train_package, "TrainingCLI", partial(TrainingCLI, datamodule_class=Plain))  # type: ignore[arg-type]
    assert start(monkeypatch, "--run", "r") == 2
    assert "Plain keeps no place to go on from" in capfd.readouterr().err and not Path("runs").exists()
    trainer = L.Trainer(max_epochs=1, callbacks=[Checkpoints("loss", "min")], logger=False, accelerator="cpu")
    with pytest.raises(InputError, match="Plain keeps no place"):
        trainer.fit(BoringModel(), datamodule=Plain())


def renamed_key(content: dict[str, Any]) -> Any:
    content["ShardDataModule"] = content.pop(KEY)
    return content


def later_format(content: dict[str, Any]) -> Any:
    content[KEY]["format"] = 2
    return content


def wrong_type(content: dict[str, Any]) -> Any:
    content[KEY]["position"] = "48"
    return content


@pytest.mark.parametrize("change", [renamed_key, later_format, wrong_type])
def test_without_a_place_a_run_does_not_go_on(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, change: Callable[[dict[str, Any]], Any]
) -> None:
    for path in stopped.iterdir():
        torch.save(change(torch.load(path, weights_only=True)), path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    before = all_files()
    capfd.readouterr()
    assert start(monkeypatch, "--resume", "r", config=None) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"--model.weights {stopped}/last.ckpt" in errors[0]
    assert all_files() == before


def test_a_file_of_another_program_is_passed_over(stopped: Path, capfd: Any) -> None:
    """What is not ours comes last, and a pickle is not even opened."""
    earlier = stopped / "step-000000012.ckpt"
    assert (state(earlier)["epoch"], state(earlier)["position"]) == (1, 0)
    for path in (stopped / "last.ckpt", stopped / "best.ckpt", stopped / "step-000000018.ckpt"):
        path.unlink()
    torch.save({"state_dict": {}}, stopped / "last.ckpt")
    torch.save(os.system, stopped / "other.ckpt")
    (stopped / "more.ckpt").write_bytes(pickle.dumps([1]))
    assert newest(stopped) == earlier
    said = capfd.readouterr().err
    assert "last.ckpt has no place in the training" in said and said.count("looking for one before it") == 1
