"""Fixtures: one default bake to look at, and one that is set up. Made once; tests leave them as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock
from template import DEFAULT, bake, succeed


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
            succeed("make setup data/sample/dataset.json", made, timeout=1200)
            (shared / "ready").touch()
    return shared / "bakes" / DEFAULT
