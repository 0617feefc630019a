"""A run that is cut at the worst moments and goes on elsewhere: nothing is lost, nothing is done twice.

The long version, with random moments, is `make soak`. Ranks come from multiprocessing's fork server, but for one test
with each of the other start methods.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.order import Order, WindowedOrder

from . import PATIENCE, proofs, starts
from .in_place import PROJECT
from .starts import Strike
from .test_train import SMALL

EPOCHS = 2
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


@pytest.fixture(scope="module")
def context() -> Any:
    return starts.server()


class Trial:
    """One run in a folder of its own: 96 samples, 2 epochs, 3 validations in each where the interval is 0.3."""

    def __init__(self, context: Any, folder: Path, dataset: Path, interval: float = 0.3) -> None:
        self.context, self.folder, self.interval = context, folder, interval
        self.run = folder / "runs" / "cut"
        self.batches: list[int] = []
        self.killed = False
        shards = Dataset.open(dataset).splits["train"]
        self.order: Order = WindowedOrder([s.samples for s in shards], [s.bytes for s in shards])
        trainer = SMALL["trainer"] | {"max_epochs": EPOCHS, "val_check_interval": interval}
        data = SMALL["data"] | {"path": str(dataset), "image_size": 8}
        settings = SMALL | {"data": data, "trainer": trainer, "ledger": True, "save_every_minutes": 0.00001}
        (folder / "small.yaml").write_text(yaml.safe_dump(settings))

    def start(self, batch: int, *strikes: Strike, devices: int = 1, accumulation: int = 1) -> list[int | None]:
        """Start or go on; the exit statuses of the ranks."""
        self.batches.append(batch)
        self.killed |= any(strike.number == KILL for strike in strikes)
        going = (self.run / "config.yaml").exists()
        arguments = ["--resume", "cut"] if going else ["--config", "small.yaml", "--run", "cut"]
        micro = batch // devices // accumulation
        arguments += ["--data.global_batch_size", str(batch), "--data.micro_batch_size", str(micro)]
        started = starts.Forked(self.context, self.folder, arguments, devices, strikes)
        statuses = starts.wait(started, PATIENCE)
        if None in statuses:
            started.send(KILL)
        assert None not in statuses, "it hangs"
        assert not started.left_behind()
        if 1 in statuses:  # shown where a test fails
            print(*(f"{log}:\n{log.read_text()[-3000:]}" for log in self.folder.glob("output-*.log")), sep="\n")
        return statuses

    def finish(self, batch: int, devices: int = 1, accumulation: int = 1) -> None:
        """Go on to the end, and examine what is there then."""
        assert self.start(batch, devices=devices, accumulation=accumulation) == [0] * devices
        assert proofs.examine(self.run, self.order, EPOCHS, self.interval, self.batches, self.killed) == (0, 0, [])


@pytest.fixture
def trial(context: Any, tmp_path: Path, dataset: Path) -> Iterator[Trial]:
    yield Trial(context, tmp_path, dataset)
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)


LAST_BATCH = 8  # of an epoch, with a global batch of 12
MOMENTS: list[tuple[str, int, int]] = [
    ("setup", 1, TERM),  # before the first step: a signal is not lost
    ("train", 1, INT),
    ("step", LAST_BATCH, TERM),
    ("step", LAST_BATCH, KILL),
    ("validation", 2, TERM),
    ("validation", 2, KILL),
    ("validated", 1, KILL),
    ("validated", 3, TERM),
    ("epoch", 1, KILL),
    ("epoch", 1, TERM),
    ("best", 1, KILL),  # between the two checkpoints
    ("metrics", 4, KILL),
    ("test", 1, KILL),
]


@pytest.mark.parametrize(("moment", "count", "number"), MOMENTS)
def test_struck_at_any_moment(trial: Trial, moment: str, count: int, number: int) -> None:
    statuses = trial.start(12, Strike(moment, count, number))
    assert statuses == [-KILL if number == KILL else 75]
    trial.finish(12)


@pytest.mark.parametrize("interval", [0.5, 1.0])
def test_stopped_at_the_last_batch_where_a_validation_is_due(
    context: Any, tmp_path: Path, dataset: Path, interval: float
) -> None:
    trial = Trial(context, tmp_path, dataset, interval)
    assert trial.start(12, Strike("step", LAST_BATCH, TERM)) == [75]
    assert trial.start(12, Strike("validation", 1, TERM)) == [75], "in the validation that was left"
    trial.finish(12)


def test_killed_while_it_writes_and_again_before_the_next_step(trial: Trial) -> None:
    for strike in (Strike("fsync", 6), Strike("rename", 5), Strike("train", 1), Strike("step", 1), Strike("save", 2)):
        assert trial.start(12, strike) == [-KILL]
        assert not proofs.torn_files(trial.run)
    trial.finish(12)


def test_accumulation_changes(trial: Trial) -> None:
    assert trial.start(12, Strike("batch", 5)) == [-KILL]
    assert trial.start(12, Strike("batch", 7), accumulation=4) == [-KILL], "while gradients accumulate"
    assert trial.start(12, Strike("batch", 6, TERM), accumulation=4) == [75]
    trial.finish(12)


@pytest.mark.parametrize(
    ("batches", "steps"),
    [((6, 12, 6), (3, 2)), ((12, 6, 24), (4, 3)), ((6, 24), (15,)), ((24, 48), (3,))],  # the last two: nothing remains
)
def test_the_global_batch_changes_in_mid_epoch(trial: Trial, batches: Sequence[int], steps: Sequence[int]) -> None:
    for batch, count in zip(batches, steps, strict=False):
        assert trial.start(batch, Strike("step", count, TERM)) == [75]
    trial.finish(batches[-1])


def test_ranks_change(trial: Trial) -> None:
    """One rank is killed, the others with it; then one is told to stop, and the others learn it from it."""
    assert trial.start(12, Strike("step", 5, KILL, rank=1), devices=2)[1] == -KILL
    assert trial.start(12, Strike("validation", 2, TERM, rank=2), devices=3) == [0, 0, 0]
    assert proofs.summary(trial.run)["status"] == "stopped"
    trial.finish(12)


def killed_as_two_and_finished_as_three(method: str, folder: str, dataset: str) -> None:
    starts.prepare()
    trial = Trial(multiprocessing.get_context(method), Path(folder), Path(dataset))
    assert trial.start(12, Strike("step", 5, KILL, rank=1), devices=2)[1] == -KILL
    trial.finish(12, devices=3)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_start_methods(tmp_path: Path, dataset: Path, method: str) -> None:
    """In a process of its own: this one may have threads, which a fork would lose."""
    call = f"import sys; from {__name__} import *; {killed_as_two_and_finished_as_three.__name__}(*sys.argv[1:])"
    command = [sys.executable, "-c", call, method, str(tmp_path), str(dataset)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
