"""Whoever stops a training, and wherever: what was not trained on is owed, and `--resume` pays it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Timer
from lightning_shards.train.ledger import read
from team.model import ImageModel

from .recorder import PLAIN
from .test_train import ledger, project, start, summary  # noqa: F401  (`project` is a fixture)

STEPS = 12  # of an epoch of 96 images with a global batch of 8
pytestmark = pytest.mark.usefixtures("project")


def cut(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Start the run `cut` of two epochs."""
    plain = ["--run", "cut", "--ledger", "true", "--model.backbone", PLAIN, "--trainer.max_epochs", "2"]
    return start(monkeypatch, *plain, *arguments)


def paid(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Go on to the end: every image of each epoch was trained on once, and each step was made once.

    The settings ask for no report, and one of the attempt that was cut would tell of another end: it is gone, too.
    """
    page = Path("runs/cut/report.html")
    page.write_text("of the attempt before")
    assert start(monkeypatch, "--resume", "cut", "--trainer.callbacks", "null", *arguments, config=None) == 0
    assert not page.exists()
    told = summary("cut")
    assert (told["status"], told["epochs"], told["images_seen"], told["steps"]) == ("done", 2, 2 * 96, 2 * STEPS)
    for epoch in range(2):
        assert sorted(i for (e, _), ids in ledger("cut").items() if e == epoch for i in ids) == list(range(96))
    rows = [row for row in read(Path("runs/cut/ledger/rank-0.jsonl")) if row["ids"]]
    assert len(rows) >= 2 * STEPS


def stops(hook: str, way: str, call: int) -> list[str]:
    name = "--trainer.callbacks"
    return [f"{name}+=engine.stops.Stops", f"{name}.hook={hook}", f"{name}.way={way}", f"{name}.call={call}"]


@pytest.mark.parametrize(("step", "micro"), [(1, 8), (STEPS, 8), (STEPS + 5, 4)])
def test_what_a_callback_leaves_out_is_trained_on_later(monkeypatch: pytest.MonkeyPatch, step: int, micro: int) -> None:
    stop = stops("on_train_batch_end", "asks", step * 8 // micro)
    assert cut(monkeypatch, *stop, "--data.micro_batch_size", str(micro)) == 0
    told = summary("cut")
    assert (told["status"], told["epochs"], told["images_seen"]) == ("stopped", step // STEPS, 8 * step)
    paid(monkeypatch)
    rows = [row for row in read(Path("runs/cut/ledger/rank-0.jsonl")) if row["ids"]]
    assert len(rows) == 2 * STEPS, "nothing is trained on twice"


ANYWHERE = [  # a hook and the call of it that ends the training, the way, and the images that then count
    ("setup", 1, "fails", 0),
    ("on_fit_start", 1, "leaves", 0),
    ("on_train_start", 1, "asks", 0),
    ("on_train_epoch_start", 2, "interrupts", 96),
    ("on_train_batch_start", 5, "fails", 32),
    ("on_before_optimizer_step", STEPS + 5, "leaves", 96 + 32),
    ("on_train_batch_end", STEPS + 5, "interrupts", 96 + 32),
    ("on_validation_start", 1, "leaves", 48),
    ("on_validation_batch_end", 1, "interrupts", 48),
    ("on_validation_end", 1, "asks", 48),
    ("on_save_checkpoint", 2, "fails", 96),
    ("on_train_epoch_end", 1, "fails", 96),
    ("on_train_epoch_end", 1, "asks", 96),
    ("on_train_end", 1, "leaves", 192),
    ("teardown", 1, "fails", 192),
    ("on_test_batch_start", 1, "interrupts", 192),
]


@pytest.mark.parametrize(("hook", "call", "way", "images"), ANYWHERE)
def test_what_any_end_leaves_out_is_trained_on_later(
    monkeypatch: pytest.MonkeyPatch, hook: str, call: int, way: str, images: int
) -> None:
    arguments = [*stops(hook, way, call), "--trainer.val_check_interval", "0.5"]
    if way == "fails":
        with pytest.raises(OSError, match="cable"):
            cut(monkeypatch, *arguments)
    else:
        assert cut(monkeypatch, *arguments) == (0 if way == "asks" else 1)
    told = summary("cut")
    assert (told["status"], told["images_seen"]) == ("stopped" if way == "asks" else "failed", images)
    paid(monkeypatch)


@pytest.mark.parametrize("interval", ["0.25", "1.0"])
def test_early_stopping(monkeypatch: pytest.MonkeyPatch, interval: str) -> None:
    """In the middle of an epoch the rest of it is owed; at its end the training is done, as its rule says."""
    early = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    early += ["--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=1e9"]  # nothing is ever better
    assert cut(monkeypatch, *early, "--trainer.val_check_interval", interval, "--trainer.max_epochs", "3") == 0
    told = summary("cut")
    if interval == "0.25":
        assert (told["status"], told["epochs"], told["images_seen"]) == ("stopped", 0, 6 * 8)
    else:
        assert (told["status"], told["epochs"], told["images_seen"]) == ("done", 2, 2 * 96)
    paid(monkeypatch, "--trainer.max_epochs", "2")


@pytest.mark.parametrize("given", ["max_time", "Timer"])
def test_a_limit_of_time_is_a_budget(monkeypatch: pytest.MonkeyPatch, capfd: Any, given: str) -> None:
    with monkeypatch.context() as patch:
        passed = iter(range(0, 10_000, 10))
        patch.setattr(Timer, "time_elapsed", lambda self, stage="train": next(passed))
        if given == "max_time":
            limit = ["--trainer.max_time", '{"minutes": 1}']
        else:
            limit = ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:00:01:00"]
        assert cut(patch, *limit) == 0
    told = summary("cut")
    assert told["status"] == "budget" and 0 < told["images_seen"] < 96 and told["epochs"] == 0
    said = capfd.readouterr().out
    more = said.rpartition("uv run train.py --resume cut")[2]
    if given == "max_time":
        assert "Stopped at trainer.max_time 60" in said and '{"seconds": 120}' in more
    else:
        assert "Stopped at the callback Timer 60" in said and "a longer duration" in more
        assert start(monkeypatch, "--resume", "cut", "--trainer.max_time", "00:01:00:00", config=None) == 2
        assert "give one of them" in capfd.readouterr().err
    again = ["--trainer.max_time", "00:00:00:01"] if given == "max_time" else []
    assert start(monkeypatch, "--resume", "cut", *again, config=None) == 0
    assert summary("cut")["status"] == "budget" and summary("cut")["images_seen"] == told["images_seen"]
    monkeypatch.setattr(Timer, "time_elapsed", lambda self, stage="train": 61)
    paid(monkeypatch, *(shlex.split(more) if given == "max_time" else []))


def test_a_model_may_leave_out_the_rest_of_an_epoch(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    original = ImageModel.on_train_batch_start

    def skips(self: ImageModel, batch: Any, batch_idx: int) -> int | None:
        original(self, batch, batch_idx)
        return -1 if self.trainer.global_step == 5 and batch_idx == 5 else None

    monkeypatch.setattr(ImageModel, "on_train_batch_start", skips)
    assert cut(monkeypatch) == 0
    assert "the model ended epoch 0 itself: 56 images are left out" in capfd.readouterr().out
    told = summary("cut")
    assert (told["status"], told["epochs"], told["images_seen"]) == ("done", 2, 96 + 5 * 8)


def test_the_users_checkpoints_may_not_go_where_ours_are(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    own = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=runs/cut/checkpoints"]
    assert cut(monkeypatch, *own) == 2
    assert "keeps its own checkpoints" in capfd.readouterr().err and not Path("runs").exists()
