"""The decoding process: it ends with the trainer, however that ends, and the trainer learns how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_shards.data.batch import Batch
from lightning_shards.data.crop import Crop
from lightning_shards.data.loader import EpochLoader, SkipLog
from lightning_shards.data.worker import DecodeWorker
from lightning_shards.errors import InputError, RunError

from . import PATIENCE
from .test_loading import make_job, make_loader, make_sampler


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user's starts."""
    monkeypatch.setattr(DecodeWorker, "python", sys.executable)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def number(loader: EpochLoader) -> int:
    (process,) = loader._decoding
    return process._process.pid


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch["image"], batch["target"], batch.ids, batch.seeds, batch.valid]


def test_breaking_off_ends_it_and_the_next_epoch_has_another(dataset: Path) -> None:
    loader = make_loader(dataset)
    batches = iter(loader)
    first = next(batches)
    before = number(loader)
    batches.close()  # type: ignore[attr-defined]
    assert not alive(before)
    assert next(iter(loader)).ids.tolist() == first.ids.tolist()
    loader.close()


@pytest.mark.parametrize("side", [10**6, 10**9, 10**19])
def test_more_memory_than_there_is_is_a_sentence(dataset: Path, side: int) -> None:
    with pytest.raises(InputError, match="take smaller images or batches"):
        DecodeWorker(replace(make_job(dataset), crop=Crop(side)))


@pytest.mark.parametrize(("processes", "micro"), [(2, 8), (3, 8), (3, 48), (2, 96)])  # 12, 12, 2 and 1 batches
def test_several_take_turns(dataset: Path, processes: int, micro: int) -> None:
    """The same batches in the same order, epoch after epoch, also where there are fewer than processes."""
    one, several = make_loader(dataset, micro=micro), make_loader(dataset, micro=micro)
    several.processes = processes
    for epoch in range(2):
        one.sampler.set_epoch(epoch)
        several.sampler.set_epoch(epoch)
        for a, b in zip(one, several, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
    batches = iter(several)
    next(batches)
    before = [process._process.pid for process in several._decoding]
    batches.close()  # type: ignore[attr-defined]
    assert len(before) == processes
    if micro == 8:
        assert not any(map(alive, before)), "breaking off in the middle ends them all"
    one.close()
    several.close()


def test_a_pass_that_is_left_ends_only_its_own(dataset: Path) -> None:
    loader = make_loader(dataset)
    left, other = iter(loader), iter(loader)
    next(left)
    first = next(other)
    left.close()  # type: ignore[attr-defined]
    assert len([first, *other]) == 12
    loader.close()


def test_an_epoch_with_nothing_left_is_empty(dataset: Path) -> None:
    loader = make_loader(dataset, micro=12)
    loader.sampler.start = (0, 96)  # type: ignore[attr-defined]
    assert list(loader) == []
    loader.sampler.set_epoch(1)
    assert len(list(loader)) == 8


def test_killed_it_is_one_sentence(dataset: Path) -> None:
    loader = make_loader(dataset)
    with pytest.raises(RunError, match="killed by signal 9"):
        for _ in loader:
            os.kill(number(loader), signal.SIGKILL)


def test_errors_come_over_with_their_text(dataset: Path) -> None:
    shard = next((dataset / "train").glob("*.tar"))
    moved = shard.rename(shard.with_suffix(".away"))
    try:
        with pytest.raises(Exception, match="restore it or pack the dataset again"):
            list(make_loader(dataset))
    finally:
        moved.rename(shard)


class Unready:
    """A transform that cannot say whether it is for evaluation: the decoder cannot be made."""

    @property
    def evaluation(self) -> bool:
        raise OSError("there is no room for the cache")

    def __call__(self, sample: dict[str, Any], random: np.random.Generator) -> None:
        raise AssertionError


def test_one_that_cannot_begin_says_why(dataset: Path) -> None:
    job = replace(make_job(dataset), seed=None, transform=Unready())
    loader = EpochLoader(job, make_sampler(dataset), SkipLog(None, 1e9))
    with pytest.raises(OSError, match="no room for the cache") as error:
        next(iter(loader))
    assert any("In the decoding process" in note for note in error.value.__notes__)
    loader.close()


def test_signals_to_the_whole_group_are_the_trainers(dataset: Path) -> None:
    process = DecodeWorker(make_job(dataset))

    def strike() -> None:
        for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(process._process.pid, sent)

    strike()  # before it has run a line of its own
    process.begin(make_sampler(dataset))
    received = 0
    while rows := process.receive():
        received += 1
        strike()
        process.free(rows.slot)
    assert received == 12
    process.close()


def test_slots_are_filled_again_only_when_they_are_free(dataset: Path) -> None:
    process = DecodeWorker(make_job(dataset))
    process.begin(make_sampler(dataset))
    held = process.receive()
    assert held
    pixels = process.slots[held.slot]["image"].copy()
    others = []
    while rows := process.receive():  # the rest of the epoch, through the other slots
        others.append(rows.slot)
        process.free(rows.slot)
    assert len(others) == 11 and held.slot not in others
    assert (process.slots[held.slot]["image"] == pixels).all()
    process.close()


def test_it_ends_with_the_trainer(dataset: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from {__package__}.test_loading import make_loader
loader = make_loader(Path(sys.argv[1]))
batches = iter(loader)
next(batches)
print(loader._decoding[0]._process.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(dataset)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as trainer:
        assert trainer.stdout
        decoding = int(trainer.stdout.readline())
        assert alive(decoding)
        trainer.kill()
        trainer.wait(PATIENCE)
    end = time.monotonic() + PATIENCE
    while alive(decoding) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(decoding)


def test_many_epochs_leave_no_descriptors_and_no_memory(dataset: Path) -> None:
    """The trainer's side; the process itself is looked at from outside."""
    loader = make_loader(dataset)

    def used() -> tuple[int, int, int, int]:
        found = []
        for process in (os.getpid(), number(loader)):
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            found += [len(list(Path(f"/proc/{process}/fd").iterdir())), pages * os.sysconf("SC_PAGE_SIZE")]
        return found[0], found[1], found[2], found[3]

    early = None
    for epoch in range(50):
        loader.sampler.set_epoch(epoch)
        assert sum(len(batch.ids) for batch in loader) == 96
        if epoch == 9:
            early = used()
    late, end = used(), time.monotonic() + PATIENCE
    while early and late[2] > early[2] and time.monotonic() < end:  # it closes its shards after the last batch
        time.sleep(0.01)
        late = used()
    assert early and late[0] <= early[0] and late[2] <= early[2], "descriptors"
    assert late[1] - early[1] < 4 << 20 and late[3] - early[3] < 4 << 20, "bytes in 40 epochs"
    loader.close()
