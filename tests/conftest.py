"""Fixtures: one default bake to look at, and one that is set up. Made once; tests leave them as they are."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from template import DEFAULT, bake, python_of, set_up
from warm import WarmPython

# Before anything imports torch, which reads it once. The processes of the tests share few cores: threads of one that
# wait for each other would take the time of the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the tests are started by may ignore these, as nohup and a shell's background do, and so would our processes.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Files that take long, the longest first: they are begun first, so that none is left to one process at the end. Slurm
# is the first of all: it mostly waits, while others compute.
EARLY = ["slurm", "how_to", "train", "project", "resume", "forecast", "benchmarks", "hosts", "readme", "inference"]
EARLY += ["ranks", "packaging", "checkpoints", "cost", "answers", "flags", "any_model", "report", "stops", "fixed_keys"]
EARLY += ["embedding", "decoded", "own_callbacks", "foreign_data", "transform", "bake", "sweep", "records"]
EARLY += ["golden_run"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {f"test_{name}": number for number, name in enumerate(EARLY)}
    items.sort(key=lambda item: place.get(item.path.stem, len(EARLY)))


@pytest.fixture(scope="session")
def default_bake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project baked with the default answers, not set up."""
    return bake(tmp_path_factory.mktemp("default") / "bakes")


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A project baked with the default answers, with its environment and its packed sample images.

    It is the one that all tests share, also those that run in another process.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "project"
    with FileLock(f"{shared}.lock"):
        if not (shared / "ready").exists():
            made = bake(shared / "bakes")
            set_up(made, shared)
            (shared / "ready").touch()
    return shared / "bakes" / DEFAULT


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Python that runs the tests, for starts of train.py and of commands."""
    server = WarmPython(sys.executable, tmp_path_factory.mktemp("warm"))
    yield str(server.path)
    server.stop()


@pytest.fixture(scope="session")
def warm_python_of_project(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same of `project`."""
    server = WarmPython(python_of(project), tmp_path_factory.mktemp("warm-project"))
    yield str(server.path)
    server.stop()
