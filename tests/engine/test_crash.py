"""A rank that dies ends all ranks, long before their waiting for it would: it is said, nothing stays behind, and the
run goes on.

Rank zero is forked, Lightning's launcher starts rank one from it as it does for a user. What happens to a host under
torchrun is in `test_hosts`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_shards.train import rank_watchdog
from team.model import ImageModel

from . import PATIENCE, proofs, starts
from .test_resume import Trial

SCRIPT = f"import sys; del sys.path[0]; from {__name__} import arm; arm(); import train; train.main()"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")


@pytest.fixture(scope="module")
def context() -> Any:
    return starts.server()


def arm() -> None:
    """Let one rank get into TROUBLE at its tenth step, and the other one be busy then, if it is to be."""
    rank, how, busy = json.loads(os.environ["TROUBLE"])
    here, original, steps = int(os.environ.get("LOCAL_RANK", 0)), ImageModel.training_step, 0
    rank_watchdog.GRACE = 3.0

    def step(self: ImageModel, batch: Any, batch_idx: int) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 10:
            Path(f"trouble-{here}").touch()
            if here != rank:
                time.sleep(2 * PATIENCE if busy else 0)
            elif how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise torch.OutOfMemoryError
        return original(self, batch, batch_idx)

    ImageModel.training_step = step  # type: ignore[method-assign]


def rank_zero(folder: Path, arguments: list[str], trouble: str) -> None:
    """What the forked process does."""
    os.environ["TROUBLE"] = trouble
    sys.modules["__main__"].__spec__ = None  # a script, from which the launcher starts the other rank
    arm()
    starts._rank(starts.train_py, folder, folder / "output-0.log", arguments, {}, ())


def members(session: int) -> list[str]:
    """Command lines of what lives in a session: everything that its first process has started."""
    found = []
    for process in (p for p in Path("/proc").iterdir() if p.name.isdigit()):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("rank", "how", "busy", "told", "summed_up"),
    [
        (
            1,
            "kill",
            False,
            "error: rank 1 was killed by signal 9",
            "signal 9 (SIGKILL: the kernel does that when memory",
        ),
        (0, "memory", True, "no memory left with a micro-batch of 6: try --data.micro_batch_size 3", "no memory left"),
    ],
    ids=["killed", "out of memory"],
)
def test_one_rank_ends_all(
    context: Any, tmp_path: Path, dataset: Path, rank: int, how: str, busy: bool, told: str, summed_up: str
) -> None:
    trial = Trial(context, tmp_path, dataset)
    (tmp_path / "train.py").write_text(SCRIPT)
    sizes = ["--data.global_batch_size", "12", "--trainer.devices", "2"]
    arguments = ["--config", "small.yaml", "--run", "cut", *sizes]
    process = context.Process(target=rank_zero, args=(tmp_path, arguments, json.dumps([rank, how, busy])))
    process.start()
    try:
        end = time.monotonic() + PATIENCE
        while not (tmp_path / f"trouble-{rank}").exists() and time.monotonic() < end and process.is_alive():
            time.sleep(0.05)
        assert (tmp_path / f"trouble-{rank}").exists(), (tmp_path / "output-0.log").read_text()
        began = time.monotonic()
        process.join(PATIENCE)
        while members(process.pid) and time.monotonic() < began + PATIENCE:
            time.sleep(0.05)
        assert not members(process.pid), "nothing stays behind"
    finally:
        if members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    output = (tmp_path / "output-0.log").read_text()
    assert process.exitcode == 1 and told in output, output
    summary = proofs.summary(trial.run)
    assert summary["status"] == "failed" and summed_up in summary["error"]
    assert "Traceback" not in output and ("--resume cut" in output or rank == 0)
    trial.batches, trial.killed = [12], True
    trial.finish(12)


def busy(folder: Path) -> None:
    """Rank zero in a step without end, and two others, of which one is killed."""
    os.setsid()
    rank_watchdog.GRACE = 0.5

    def end(sentence: str) -> None:
        (folder / "said").write_text(sentence)
        raise BrokenPipeError  # nobody listens any more

    watch = rank_watchdog.RankWatchdog(end)
    others = [subprocess.Popen(["sleep", str(2 * PATIENCE)]) for _ in range(2)]
    watch._begin(others)
    others[1].kill()
    time.sleep(PATIENCE)


def test_a_busy_rank_zero_is_ended_with_the_others(context: Any, tmp_path: Path) -> None:
    process = context.Process(target=busy, args=(tmp_path,))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 1 and not members(process.pid)
    assert (tmp_path / "said").read_text().startswith("rank 2 was killed by signal 9 (SIGKILL")


def test_a_run_that_is_killed_is_not_what_it_was_before(context: Any, tmp_path: Path, dataset: Path) -> None:
    trial = Trial(context, tmp_path, dataset)
    assert trial.start(12, starts.Strike("step", 3, signal.SIGTERM)) == [75]
    before = proofs.summary(trial.run)
    assert before["status"] == "stopped"
    assert trial.start(12, starts.Strike("batch", 2)) == [-signal.SIGKILL]
    assert proofs.summary(trial.run) == before | {"status": "unfinished"}
    trial.finish(12)
