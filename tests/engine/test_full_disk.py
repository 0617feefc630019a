"""A disk that is full, or read-only, while a training runs: it ends at a checkpoint, and goes on without all else."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lightning_shards.errors import RunError
from lightning_shards.files import append
from lightning_shards.runs.checkpoints import is_whole
from lightning_shards.runs.metrics import read_table
from lightning_shards.train import checkpoint_io, metrics_file
from lightning_shards.train.checkpoints import Checkpoints
from lightning_shards.train.metrics_file import MetricsFile

from .test_train import ledger, project, start, summary  # noqa: F401  (`project` is a fixture)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to let any file become larger: for torch's own writer, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def from_the_save(number: int, monkeypatch: pytest.MonkeyPatch, fails: Any) -> None:
    """From that checkpoint on, it is written within the context `fails()`."""
    save, count = Checkpoints.save, iter(range(1, 1_000))

    def counted(self: Checkpoints, trainer: Any) -> None:
        if next(count) < number:
            return save(self, trainer)
        with fails():
            save(self, trainer)

    monkeypatch.setattr(Checkpoints, "save", counted)


def said_once(capfd: Any, *parts: str) -> str:
    err = capfd.readouterr().err
    assert "Traceback" not in err, err
    for part in parts:
        assert err.count(part) == 1, (part, err)
    return str(err)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_the_one_before_goes_on(
    project: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    kept, begin = Path("runs/r/checkpoints"), ["--run", "r", "--ledger", "true", "--trainer.max_epochs", "2"]
    for number, arguments in ((1, begin), (2, ["--resume", "r"])):
        with monkeypatch.context() as full:
            from_the_save(number, full, lambda: files_of_at_most(4096))
            assert start(full, *arguments, config="small.yaml" if number == 1 else None) == 1
        err = said_once(capfd, "last.ckpt could not be written (File too large)")
        assert ("--resume r" in err) == (number > 1) and err.count("\n") == 1
        assert not list(kept.parent.rglob("*.tmp")) and summary("r")["status"] == "failed"
        assert all(map(is_whole, kept.iterdir())) and (kept / "last.ckpt").exists() == (number > 1)
    assert start(monkeypatch, "--resume", "r", config=None) == 0
    assert summary("r")["status"] == "done"
    assert sorted(i for ids in ledger("r").values() for i in ids) == sorted([*range(96)] * 2)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_checkpoint_that_cannot_be_renamed_or_named_twice_is_one_sentence(tmp_path: Path, number: int) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"before")

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    def save() -> None:
        checkpoint_io.DurableCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")

    def add_name() -> None:
        checkpoint_io.add_name(tmp_path / "last.ckpt", "best.ckpt")

    places: list[tuple[Any, str, Any]] = [(os, "fsync", save), (Path, "replace", save), (Path, "replace", add_name)]
    for place, name, act in places:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError, match="could not be written"):
            patch.setattr(place, name, refused)
            act()
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("last.ckpt", b"before")]


def test_what_a_training_can_do_without_it_does_without(
    project: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    """No room for anything but checkpoints."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_file() and "checkpoints" not in str(path) and "config.yaml" not in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(metrics_file, "append", full)
    assert start(monkeypatch, "--run", "r", "--trainer.max_epochs", "1", "--log.report", "true") == 0
    printed, err = capfd.readouterr()
    assert "Traceback" not in err and "test/accuracy" in printed
    for name in ("metrics.csv", "evaluation/val.json", "evaluation/test.json", "summary.json"):
        assert err.count(f"runs/r/{name} could not be written (No space left on device)") == 1, err
    assert err.count("report.html could not be made") == 1 and err.count("\n") == 5, err
    assert is_whole(Path("runs/r/checkpoints/best.ckpt")) and not list(Path("runs").rglob("*.tmp"))


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO)), os.strerror(errno.EIO)),
        (b"model: [", "while parsing a flow node"),
        (b"", "it has no settings"),
    ],
)
def test_a_config_that_cannot_be_read_at_the_end_costs_neither_summary_nor_report(
    project: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
    found: Any,
    why: str,
) -> None:
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name != "config.yaml" or not is_whole(Path("runs/r/checkpoints/last.ckpt")):
            return real(path)
        if isinstance(found, OSError):  # the training has been done
            raise found
        return bytes(found)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert start(monkeypatch, "--run", "r", "--trainer.max_epochs", "1", "--log.report", "true") == 0
    said_once(capfd, f"runs/r/config.yaml cannot be used ({why}")
    assert summary("r")["status"] == "done" and Path("runs/r/report.html").exists()


def test_rows_that_found_no_room_are_written_once_there_is_some(tmp_path: Path, capfd: Any) -> None:
    """A part of a row that was written is taken back."""
    metrics = MetricsFile(tmp_path / "metrics.csv")
    for step in range(300):
        metrics.log_metrics({"train/loss": step / 7}, step)
        with files_of_at_most(3_001 if step < 290 else 1 << 20):
            metrics.save()
        assert (tmp_path / "metrics.csv").read_bytes().endswith(b"\n")
    assert [row["step"] for row in read_table(tmp_path / "metrics.csv")[1]] == [str(step) for step in range(300)]
    said_once(capfd, "metrics.csv could not be written")
    with files_of_at_most(10), pytest.raises(OSError, match="large"):
        append(tmp_path / "new", b"01234567890")
    assert (tmp_path / "new").read_bytes() == b""
    (tmp_path / "metrics.csv").write_text("step,a\n1,2\n2,0.0")  # torn
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.log_metrics({"a": 5.0}, 3)
    metrics.save()
    assert (tmp_path / "metrics.csv").read_text() == "step,a\n1,2\n3,5.0\n"


def test_a_run_that_cannot_have_a_folder_is_one_sentence(
    project: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    Path("runs").write_text("a file")
    for arguments in ([], ["--run", "r"]):
        assert start(monkeypatch, *arguments) == 2
        assert said_once(capfd, "cannot be written").count("\n") == 1
    assert Path("runs").read_text() == "a file"


def test_files_of_an_earlier_attempt_that_cannot_be_read_or_written_end_no_run(
    project: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    assert start(monkeypatch, "--run", "r", "--trainer.max_epochs", "1", "--log.report", "true") == 0
    for name in ("summary.json", "starts.jsonl", "metrics.csv", "report.html"):
        Path("runs/r", name).unlink()
        Path("runs/r", name).mkdir()
    for name in ("evaluation", "skipped"):
        shutil.rmtree(Path("runs/r", name), ignore_errors=True)
        Path("runs/r", name).write_text("in the way")
    assert start(monkeypatch, "--resume", "r", "--trainer.max_epochs", "2", config=None) == 0
    assert "Traceback" not in capfd.readouterr().err
    assert is_whole(Path("runs/r/checkpoints/last.ckpt"))
