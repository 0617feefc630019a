"""Fixtures: one default bake to look at, and one that is set up. Made once; tests leave them as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from template import bake, succeed


@pytest.fixture(scope="session")
def default_bake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project baked with the default answers, not set up."""
    return bake(tmp_path_factory.mktemp("default") / "bakes")


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project baked with the default answers, with its environment: the one that all tests share."""
    made = bake(tmp_path_factory.mktemp("project") / "bakes")
    succeed("make setup", made, timeout=1200)
    return made
