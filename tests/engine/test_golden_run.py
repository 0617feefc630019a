"""What is learned stays what it was: a short training's loss curve is the committed one, on any processor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .golden_run import GOLDEN, differs, golden_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


def test_the_curve_is_what_it_was(folder: Path) -> None:
    found = differs(golden_run(folder), json.loads(GOLDEN.read_text()))
    assert not found, f"{found}: if that is meant, `make golden` writes the curve anew"


def test_a_change_of_learning_is_seen(folder: Path) -> None:
    """A rate that is a twentieth higher: less than people would notice in any accuracy."""
    faster = golden_run(folder, "--model.learning_rate", "0.00525", run="faster")
    assert differs(faster, json.loads(GOLDEN.read_text()))
