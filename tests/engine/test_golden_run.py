"""What is learned stays what it was: a short training's loss curve is the committed one, on any processor."""

from __future__ import annotations

import json
from pathlib import Path

from .golden_run import GOLDEN, differs, golden_run

CURVES = json.loads(GOLDEN.read_text())


def test_the_curve_is_what_it_was(tmp_path: Path) -> None:
    found = differs(golden_run(tmp_path), CURVES["golden"])
    assert not found, f"{found}: if that is meant, `make golden` writes the curve anew"


def test_a_small_change_of_learning_would_be_seen() -> None:
    """A rate that is a twentieth higher changes no accuracy that people would notice."""
    assert differs(CURVES["rate a twentieth higher"], CURVES["golden"])
