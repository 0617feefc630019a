"""What a process reads from the variables of Slurm and torchrun: its place, the devices, the run's name."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from lightning_shards import entry
from lightning_shards.errors import InputError, RunError
from lightning_shards.train import cluster, run_name
from lightning_shards.train.restart_guard import note_start
from lightning_shards.train.run_name import choose, claim

ALLOCATION = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "interactive", "SLURM_NNODES": "2"}  # a shell in salloc
BATCH = {**ALLOCATION, "SLURM_JOB_NAME": "x", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}  # the script of sbatch
INNER = {**BATCH, "SLURM_STEP_ID": "4294967290"}  # a shell that salloc opened on the node
TASK = {  # as srun sets them for the fourth of 2 x 2 tasks
    **BATCH,
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NTASKS_PER_NODE": "2",
}
SECOND_STEP = {**TASK, "SLURM_STEP_ID": "1"}
ARRAY = {**TASK, "SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "14", "SLURM_ARRAY_TASK_ID": "0"}
TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "pets",
    "TORCHELASTIC_RESTART_COUNT": "0",
}
LIGHTNING = {"LOCAL_RANK": "2", "NODE_RANK": "0", "WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    ("environment", "name", "layout", "rank"),
    [
        ({}, None, None, 0),
        (ALLOCATION, None, None, 0),
        (INNER, None, None, 0),
        (BATCH, "12", None, 0),
        (TASK, "12", (2, 2), 3),
        (SECOND_STEP, "12.1", (2, 2), 3),
        (ARRAY, "14_0", (2, 2), 3),
        (TORCHRUN, "pets", (2, 4), 5),
        ({**TASK, **TORCHRUN}, "12", (2, 4), 5),
        (LIGHTNING, None, None, 2),
    ],
)
def test_place_and_name(
    environment: dict[str, str], name: str | None, layout: tuple[int, int] | None, rank: int
) -> None:
    assert cluster.name(environment) == name
    assert cluster.layout(environment) == layout
    assert entry.rank(environment) == rank


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"SLURM_STEP_TASKS_PER_NODE": "3,1"}, "3,1 tasks"), ({"SLURM_NTASKS_PER_NODE": None}, "--ntasks-per-node 2")],
)
def test_tasks_that_have_no_place_are_refused(changes: dict[str, str | None], sentence: str) -> None:
    environment = {name: value for name, value in {**TASK, **changes}.items() if value is not None}
    with pytest.raises(InputError, match=sentence):
        cluster.layout(environment)


def test_flags_may_say_what_was_launched_and_nothing_else() -> None:
    for devices, nodes in ((None, None), ("auto", None), ("4", "2"), ("-1", "2")):
        cluster.check_flags((2, 4), devices, nodes)
    for devices, nodes in (("1", None), (None, "1"), ("[0, 1]", None)):
        with pytest.raises(InputError, match="leave the flag out"):
            cluster.check_flags((2, 4), devices, nodes)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No launcher's variables, and a folder with the runs 12 and named."""
    for name in {run_name.VARIABLE, "SLURM_RESTART_COUNT", *TASK, *ARRAY, *TORCHRUN, *LIGHTNING}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("12", "named"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    return monkeypatch


def given(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", [None, "named"])
@pytest.mark.parametrize("rank", ["0", "3"])
def test_a_requeued_job_goes_on_with_its_run(environment: pytest.MonkeyPatch, name: str | None, rank: str) -> None:
    given(environment, {**TASK, "SLURM_PROCID": rank, "SLURM_RESTART_COUNT": "1"})
    assert choose(name) == (Path("runs", name or "12"), True)


@pytest.mark.parametrize("name", [None, "named"])
def test_another_start_writes_over_no_run(environment: pytest.MonkeyPatch, name: str | None) -> None:
    """Only rank zero looks: for the others it has made the folder already."""
    given(environment, TASK)
    assert choose(name) == (Path("runs", name or "12"), False)
    environment.setenv("SLURM_PROCID", "0")
    with pytest.raises(InputError, match="exists"):
        choose(name)


@pytest.mark.parametrize("variables", [{}, ALLOCATION, INNER, BATCH])
def test_a_second_training_by_hand_gets_a_name_of_its_own(
    environment: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    given(environment, variables)
    folder, goes_on = choose(None)
    assert not folder.exists() and not goes_on
    with pytest.raises(InputError, match="exists"):
        choose("named")


def test_trainings_that_start_in_one_second_get_folders_of_their_own(environment: pytest.MonkeyPatch) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Stopped:
            return cls(2026, 11, 25, 12, 0, 0)

    environment.setattr(run_name, "datetime", Stopped)
    with ThreadPoolExecutor(8) as pool:
        folders = [folder for folder, _ in pool.map(choose, [None] * 8)]
    assert sorted(folder.name for folder in folders) == [
        "2026-11-25_12-00-00",
        *(f"2026-11-25_12-00-00_{number}" for number in range(2, 9)),
    ]
    assert not any(folder.exists() for folder in folders)

    folder, _ = choose("new")
    with ThreadPoolExecutor(8) as pool:
        tries = [pool.submit(claim, folder, f"number: {number}") for number in range(8)]
    taken = [number for number, one in enumerate(tries) if one.exception() is None]
    assert len(taken) == 1 and (folder / "config.yaml").read_text() == f"number: {taken[0]}"
    assert all("exists" in str(one.exception()) for number, one in enumerate(tries) if number not in taken)
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_a_host_that_comes_late_to_a_named_torchrun_goes_on(environment: pytest.MonkeyPatch) -> None:
    given(environment, {**TORCHRUN, "RANK": "0", "TORCHELASTIC_RUN_ID": "named"})
    assert choose(None) == (Path("runs/named"), True)
    environment.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(InputError, match="--rdzv-id"):
        choose(None)


def test_three_starts_in_vain_and_a_person_begins_anew(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    note_start(tmp_path, None)
    environment.setenv("SLURM_RESTART_COUNT", "1")
    note_start(tmp_path, None)
    note_start(tmp_path, None)
    with pytest.raises(RunError, match="3 starts in a row came no further than epoch 0, image 0"):
        note_start(tmp_path, None)
    environment.delenv("SLURM_RESTART_COUNT")
    note_start(tmp_path, None)
    environment.setenv("SLURM_RESTART_COUNT", "1")
    note_start(tmp_path, None)
    assert [json.loads(line)["requeued"] for line in (tmp_path / "starts.jsonl").read_text().splitlines()] == [
        False,
        True,
        True,
        False,
        True,
    ]
