"""Which checkpoints stay, which one a run goes on from, and when a training that gets no better is over."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_shards.errors import InputError
from lightning_shards.runs.checkpoints import is_whole, newest
from lightning_shards.train.checkpoint_io import DurableCheckpointIO
from lightning_shards.train.checkpoints import Checkpoints, outdated

from .recorder import PLAIN
from .test_train import ledger, project, start, summary  # noqa: F401  (`project` is a fixture)


@pytest.fixture
def folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """`checkpoints/` of a run of three epochs of 12 steps."""
    arguments = ["--ledger", "true", "--keep_checkpoints", "3", "--save_every_minutes", "0.000001"]
    assert start(monkeypatch, "--run", "r", *arguments) == 0
    return Path("runs/r/checkpoints")


def epoch(path: Path) -> tuple[int, int]:
    place = torch.load(path, weights_only=True)["lightning_shards"]
    return place["epoch"], place["position"]


def cut(path: Path) -> None:
    """Half of it is there, as after a copy that was broken off. The other names of the file keep theirs."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def test_the_last_few_stay(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "step-000000034.ckpt",
        "step-000000035.ckpt",
        "step-000000036.ckpt",
    ]
    assert folder.joinpath("last.ckpt").samefile(folder / "step-000000036.ckpt"), "no space is taken twice"
    assert epoch(folder / "step-000000034.ckpt") == (2, 80)


def test_a_copy_without_times_goes_on_from_the_furthest(folder: Path) -> None:
    """What a checkpoint says of its place decides, and no file's time: here the oldest is the youngest file."""
    (folder / "last.ckpt").unlink()
    for age, path in enumerate(sorted(folder.glob("step-*.ckpt"))):
        os.utime(path, (1e9 - 100 * age,) * 2)
    assert newest(folder) == folder / "step-000000036.ckpt"


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_one_is_never_chosen(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, damage: Any) -> None:
    """The run goes on from the one before, and everything after it is trained again."""
    damage(folder / "last.ckpt")
    damage(folder / "step-000000036.ckpt")
    damage(folder / "best.ckpt")
    assert newest(folder) == folder / "step-000000035.ckpt" and not is_whole(folder / "best.ckpt")
    seen: list[tuple[int, int]] = []
    original = Checkpoints.on_train_start

    def noted(self: Checkpoints, trainer: Any, module: Any) -> None:
        seen.append(trainer.datamodule.place)
        original(self, trainer, module)

    monkeypatch.setattr(Checkpoints, "on_train_start", noted)
    capfd.readouterr()
    assert start(monkeypatch, "--resume", "r", config=None) == 0
    said = capfd.readouterr().err
    assert ("last.ckpt is damaged" in said) == (damage is not Path.unlink)
    assert seen == [(2, 88)] and summary("r")["status"] == "done"
    assert sorted(i for (e, _), ids in ledger("r").items() if e == 2 for i in ids) == list(range(96))
    assert is_whole(folder / "last.ckpt") and is_whole(folder / "best.ckpt")


def test_where_all_are_damaged_nothing_is_begun(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    for path in folder.iterdir():
        cut(path)
    before = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}
    assert start(monkeypatch, "--resume", "r", config=None) == 2
    assert "no checkpoint that can be read" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()} == before
    with pytest.raises(InputError):
        newest(folder)


def test_without_hard_links_there_are_copies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refused)
    shutil.rmtree("runs/r")
    assert start(monkeypatch, "--run", "r") == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "step-000000024.ckpt", "step-000000036.ckpt"}
    assert all(is_whole(path) for path in folder.iterdir())


def test_a_training_that_gets_no_better_ends(project: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:  # noqa: F811
    """Weights that hardly move: the first epoch is the best, and after two more it is over, for a resume too."""
    still = [
        "--model.backbone",
        PLAIN,
        "--model.learning_rate",
        "1e-30",
        "--trainer.max_epochs",
        "9",
        "--patience",
        "2",
    ]
    assert start(monkeypatch, "--run", "p", *still) == 0
    told = summary("p")
    assert (told["status"], told["epochs"], told["images_seen"]) == ("done", 3, 3 * 96)
    assert "test/accuracy" in told["metrics"]
    assert start(monkeypatch, "--resume", "p", config=None) == 0
    assert summary("p")["epochs"] == 3
    assert start(monkeypatch, "--resume", "p", "--patience", "3", config=None) == 0
    assert summary("p")["epochs"] == 4
    assert start(monkeypatch, "--resume", "p", "--patience", "null", config=None) == 0
    assert summary("p")["epochs"] == 9


def test_only_checkpoints_are_removed(tmp_path: Path) -> None:
    """Which one to remove, a ModelCheckpoint may have from a run that somebody else made."""
    for name in ("old.ckpt", "folder.ckpt/thesis.txt", "thesis.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        DurableCheckpointIO().remove_checkpoint((tmp_path / name).parent if "/" in name else tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder.ckpt", "thesis.txt", "thesis.txt"]


def test_the_newest_is_kept_also_where_the_clock_was_put_back(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        path = tmp_path / f"step-{step:09d}.ckpt"
        path.write_bytes(b"")
        os.utime(path, (1e9 - 100 * step,) * 2)
    names = [path.name for path in outdated(tmp_path, "step-000000003.ckpt", 2)]
    assert names == ["step-000000002.ckpt"], "the last one written stays, though its time is the oldest"
    assert len(outdated(tmp_path, "step-000000004.ckpt", 1)) == 3, "of attempts that kept more: last.ckpt is the one"
