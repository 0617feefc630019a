"""Loops in plain PyTorch that are killed and go on with other ranks, batches and workers: each sample once, the same.

The long version, with train.py among what is struck, is `make soak`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from . import starts
from .chains import write_datasets
from .in_place import ROOT
from .plain_chain import PlainChain


@pytest.fixture(scope="module")
def context() -> Any:
    return starts.server()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chains")
    write_datasets(folder)
    return folder


@pytest.mark.parametrize(
    ("number", "door", "kind"),
    [
        (1, "ShardLoader", "masks"),
        (18, "ShardSamples", "mixture"),
        (6, "ShardLoader", "balance"),
        (3, "ShardLoader", "boxes"),
        (13, "ShardLoader", "weights"),
    ],
)
def test_nothing_is_lost_or_repeated(
    context: Any, data: Path, tmp_path: Path, number: int, door: str, kind: str
) -> None:
    chain = PlainChain(context, data, tmp_path / "chain", 0, number, door, kind)
    chain.timed = 0  # strikes at chosen moments fall on any machine
    chain.play()
    assert (chain.lost, chain.repeated, chain.wrong) == (0, 0, []), " ".join(chain.story)
    assert chain.attempts > 1
    state = chain._load()
    dropped = state["steps"].pop(1)
    state["steps"][0]["marks"][0] += 1
    torch.save(state, chain.state)
    chain._examine()
    assert chain.lost == len(dropped["ids"]) and any("other pixels" in what for what in chain.wrong), (
        "the proof sees it"
    )


def test_the_soak_itself_can_be_called() -> None:
    """As `make soak` does, in a process that pytest has not prepared."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "engine.soak", "--help"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--chains" in done.stdout, done.stderr[-2000:]
