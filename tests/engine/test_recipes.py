"""docs/recipes.md: every setting that it advises is one that the shipped configs and a network can take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from lightning_shards.train import TrainingCLI
from team.model import ImageModel

from .in_place import PROJECT

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
OPTIONS = [shlex.split(code) for code in re.findall(r"`(--(?:data|model)\.[^`]+)`", PAGE)]
ROWS = "\n".join(row.split("|")[1] for row in PAGE.splitlines() if row.startswith("| `"))
NAMED = re.findall(r"`((?:(?:data|model|trainer)\.\w+|ema_decay)) ([^`]+)`", ROWS)
SETTINGS = [[f"--{name}", *shlex.split(value)] for name, value in NAMED]


@pytest.mark.parametrize(
    ("config", "given"),
    [*(("finetune", given) for given in OPTIONS), *(("desktop", given) for given in SETTINGS)],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_setting_of_the_page_is_taken(
    config: str, given: list[str], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ["--config", str(PROJECT / "configs" / f"{config}.yaml"), "--data.path", str(dataset)]
    base += ["--data.global_batch_size", "12", "--data.micro_batch_size", "12", "--data.image_size", "224"]
    base += ["--model.trained_blocks", "0"] if "--model.thaw_after" in given else []
    base += ["--model.weights", "null", "--model.backbone", "convnext_tiny"]  # it has blocks, and drops some
    assert TrainingCLI(ImageModel, args=[*base, *(part.replace("N", "2") for part in given)]).model


def test_the_page_advises_something() -> None:
    assert len(OPTIONS) >= 2 and len(SETTINGS) >= 15
