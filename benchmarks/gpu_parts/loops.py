"""Our Trainer's loop with all callbacks beside a bare PyTorch loop: `loop.py` on this device."""

from __future__ import annotations

import tempfile
from pathlib import Path

import loop

from . import Figures, Setup, tried


def figures(setup: Setup) -> Figures:
    dataset = str(Path("data/sample").absolute())
    for milliseconds in (20.0,) if setup.quick else (20.0, 5.0):
        rounds = 4 if setup.quick else max(5, min(25, int(setup.left / (2 if milliseconds > 5 else 1) - 8)))
        with tempfile.TemporaryDirectory() as folder:
            compare = (dataset, folder, milliseconds, rounds)
            yield f"{milliseconds:g} ms", tried(lambda compare=compare: loop.compare(*compare))  # type: ignore[misc]
