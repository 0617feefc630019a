"""`slurm/train.sbatch` on a real Slurm with two and more nodes, which the test starts and ends.

Each case is a job, or a few one after the other, and all run at once: most of their time is waiting for imports. They
are driven by threads; the tests look at how they ended.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning_shards import testing
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.order import WindowedOrder
from lightning_shards.train.ledger import read

from . import proofs
from .cluster import Cluster, blocks, missing, until
from .conftest import write_dataset
from .in_place import PROJECT

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "Slurm is here")

BATCH = 8
SETTINGS: dict[str, Any] = {
    "data": {"path": "colours", "global_batch_size": BATCH, "image_size": 16, "workers": 1},
    "model": {"backbone": "small_cnn", "optimizer": "sgd", "learning_rate": 0.01},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    "ledger": True,
    "save_every_minutes": 0.01,
    "log": {"wandb": False, "report": False},
}
BOXES = SETTINGS | {
    "data": SETTINGS["data"] | {"path": "boxes", "image_size": 32, "eval_crop": 1.0},
    "model": SETTINGS["model"] | {"backbone": "small_detector"},
}
CONFIG = "--config cluster.yaml"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Job:
    """One job, submitted from `site`, with the options of sbatch before the script and train.py's behind it."""

    def __init__(self, site: Site, options: str = "", arguments: str = CONFIG, run: str = "") -> None:
        self.site, self.cluster = site, site.cluster
        command = ["sbatch", "--parsable", *options.split(), "slurm/train.sbatch", *arguments.split()]
        self.id = self.cluster.call(*command, where=site.folder).strip()
        self.run = site.folder / "runs" / (run or self.id)
        self._hurried: set[str] = set()

    def __getitem__(self, name: str) -> str:
        return self.cluster.job(self.id)[name]

    @property
    def log(self) -> str:
        path = self.site.folder / f"slurm-{self.id}.log"
        return path.read_text() if path.exists() else ""

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for it; a pause that Slurm makes before it starts a job again is cut short."""

        def reached() -> bool:
            now = self.cluster.job(self.id)
            if now["Reason"] == "BeginTime" and now["Restarts"] not in self._hurried:
                self._hurried.add(now["Restarts"])  # not at once: in the same second, Slurm takes it for the old start
                self.cluster.call("scontrol", "update", f"jobid={self.id}", "starttime=now+2")
            return true()

        try:
            until(reached, what)
        except AssertionError as error:
            raise AssertionError(f"job {self.id} {self.cluster.job(self.id)}: {error}\n{self.log[-4000:]}") from None

    def until_steps(self, count: int) -> None:
        """Until it has made so many steps since now."""
        target = self.steps() + count
        self.until(lambda: self.steps() >= target, f"{count} more steps")

    def until_started(self, times: int) -> None:
        """Until rank zero was started for the so many-th time, and is in its imports."""

        def importing() -> bool:
            own = self.cluster.processes(f"SLURM_JOB_ID={self.id}", "SLURM_STEP_ID=0", "SLURM_PROCID=0")
            return self["Restarts"] == str(times - 1) and any(blocks(each, signal.SIGUSR1) for each in own)

        self.until(importing, f"start {times}")

    def end(self) -> str:
        """Wait for its end; the state and exit code."""
        self.until(lambda: self["JobState"] in ENDED, "its end")
        return f"{self['JobState']} {self['ExitCode']}"

    def steps(self) -> int:
        path = self.run / "ledger" / "rank-0.jsonl"
        return sum(bool(row["ids"]) for row in read(path)) if path.exists() else 0

    def signal(self, number: int) -> None:
        """To the tasks, as Slurm does near the time limit."""
        self.cluster.call("scancel", f"--signal={signal.Signals(number).name[3:]}", self.id)


class Site:
    """A project's folder on the cluster, with a dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("train.py", "slurm"):
            (folder / name).symlink_to(PROJECT / name)
        (folder / ".venv").symlink_to(sys.prefix)
        dataset = write_dataset(folder / "colours", (1700, 3000, 900, 400), held_out=200)
        write_dataset(folder / "tiny", (BATCH,), held_out=2 * BATCH)
        shards = Dataset.open(dataset).splits["train"]
        self.order = WindowedOrder([s.samples for s in shards], [s.bytes for s in shards])
        (folder / "cluster.yaml").write_text(yaml.safe_dump(SETTINGS))
        testing.tiny_dataset(folder / "boxes", "detection")
        (folder / "boxes.yaml").write_text(yaml.safe_dump(BOXES))
        # Lightning takes the first node's name for an address, and these have none of their own.
        self.cluster = Cluster(PYTHONPATH=os.environ["PYTHONPATH"], WANDB_MODE="offline", MASTER_ADDR="127.0.0.1")

    def examine(self, job: Job, killed: bool = False) -> None:
        """Each sample was trained on once, and all that the run left is right."""
        assert proofs.examine(job.run, self.order, 1, 1.0, [BATCH], killed) == (0, 0, []), job.log[-4000:]


def time_is_nearly_up(site: Site) -> Job:
    """Three times within an epoch, with W&B."""
    job = Job(site, "--nodes 2", f"{CONFIG} --log.wandb true")
    for restarts in ("1", "2", "3"):
        job.until_steps(20)
        job.signal(signal.SIGUSR1)
        job.until(lambda times=restarts: job["Restarts"] == times, "the requeue")  # type: ignore[misc]
    job.end()
    return job


def a_life(site: Site) -> dict[str, Any]:
    """One run: preempted with time to save, cancelled, finished by another job."""
    first = Job(site, "--partition preemptible", f"{CONFIG} --run named", run="named")
    first.until_steps(20)
    urgent = ["sbatch", "--partition=urgent", "--gpus-per-node=8", "--output=/dev/null", "--wrap=true"]
    site.cluster.call(*urgent, where=site.folder)
    first.until(lambda: first["Restarts"] == "1", "the requeue")
    first.until_steps(20)
    site.cluster.call("scancel", first.id)
    first.end()
    first.until(lambda: not site.cluster.processes(f"SLURM_JOB_ID={first.id}"), "its processes' end")
    status = proofs.summary(first.run)["status"]
    second = Job(site, arguments="--resume named", run="named")
    second.end()
    return {"first": first, "status": status, "second": second}


def in_vain(site: Site) -> Job:
    """Time is nearly up in each start: after the only step of the epoch, then always in the validation behind it."""
    job = Job(site, arguments=f"{CONFIG} --data.path tiny")
    for times in (1, 2, 3, 4):
        job.until_started(times)
        job.signal(signal.SIGUSR1)
    job.end()
    return job


def node_lost(site: Site) -> Job:
    job = Job(site, "--partition frail --nodes 2")
    job.until_steps(20)
    job.until((job.run / "checkpoints" / "last.ckpt").exists, "a checkpoint")
    site.cluster.lose_node("n5")
    job.until(lambda: job["JobState"] == "PENDING", "the requeue")
    site.cluster.repair_node("n5")
    job.end()
    return job


def budget_in_an_array(site: Site) -> Job:
    """On images with boxes, with the number of the task for its seed."""
    job = Job(site, "--array=3", "--config boxes.yaml --max_hours 0.000001 --seed_everything %a")
    job.run = site.folder / "runs" / f"{job.id}_3"
    job.end()
    return job


CASES: tuple[Callable[[Site], Any], ...] = (in_vain, time_is_nearly_up, a_life, node_lost, budget_in_an_array)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.cluster.stop()


@pytest.fixture(scope="module")
def outcomes(site: Site) -> Iterator[dict[str, Future[Any]]]:
    with ThreadPoolExecutor(len(CASES)) as pool:
        yield {case.__name__: pool.submit(case, site) for case in CASES}


def test_time_nearly_up_three_times_in_an_epoch(site: Site, outcomes: dict[str, Future[Job]]) -> None:
    job = outcomes["time_is_nearly_up"].result()
    assert job.end() == "COMPLETED 0:0" and job["Restarts"] == "3", job.log
    site.examine(job)
    assert {step.attempt for step in proofs.history(job.run)} == {1, 2, 3, 4}
    assert len(list((job.run / "ledger").iterdir())) == 2, "a rank on each of two nodes"
    identity = (job.run / "wandb-id.txt").read_text().strip()
    segments = [path.name for path in (job.run / "wandb").glob("offline-run-*")]
    assert len(segments) == 4 and all(name.endswith(identity) for name in segments)
    assert job.log.count("everything is saved") == 3, "one log for all of it"
    assert [path.name for path in (site.folder / "runs").glob(f"{job.id}*")] == [job.id]


def test_preempted_goes_on_and_cancelled_ends(site: Site, outcomes: dict[str, Future[dict[str, Any]]]) -> None:
    found = outcomes["a_life"].result()
    first, second = found["first"], found["second"]
    assert first["JobState"] == "CANCELLED" and first["Restarts"] == "1", first.log
    assert found["status"] == "stopped" and first.log.count("everything is saved") == 2, first.log
    assert second.end() == "COMPLETED 0:0", second.log
    assert {step.attempt for step in proofs.history(second.run)} == {1, 2, 3}
    assert proofs.check_ids(proofs.history(second.run), site.order, 1) == (0, 0, [])
    assert proofs.repeated_steps(second.run) == 0


def test_three_starts_in_vain_end_the_requeueing(outcomes: dict[str, Future[Job]]) -> None:
    job = outcomes["in_vain"].result()
    assert job.end() == "FAILED 1:0" and job["Restarts"] == "4", job.log
    assert "3 starts in a row came no further" in job.log
    assert "3 starts in a row" in proofs.summary(job.run)["error"]


def test_a_node_is_lost(site: Site, outcomes: dict[str, Future[Job]]) -> None:
    job = outcomes["node_lost"].result()
    assert job.end() == "COMPLETED 0:0" and job["Restarts"] == "1", job.log
    site.examine(job, killed=True)
    assert {step.attempt for step in proofs.history(job.run)} == {1, 2}, "it went on from a checkpoint"


def test_a_budget_that_is_reached_is_not_requeued(outcomes: dict[str, Future[Job]]) -> None:
    job = outcomes["budget_in_an_array"].result()
    assert job.end() == "COMPLETED 0:0" and job["Restarts"] == "0", job.log
    assert proofs.summary(job.run)["status"] == "budget" and "small_detector" in job.log
    assert yaml.safe_load((job.run / "config.yaml").read_text())["seed_everything"] == 3


def test_commands_of_the_readme_are_accepted(site: Site) -> None:
    lines = re.findall(r"^sbatch .*$", (PROJECT / "README.md").read_text(), flags=re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        sbatch, *rest = shlex.split(line, comments=True)
        site.cluster.call(sbatch, "--test-only", *rest, where=site.folder)
