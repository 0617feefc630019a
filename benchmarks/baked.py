"""The project in whose folder a benchmark runs: the team's package, its model and what its samples hold."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any


def package() -> str:
    """Name of the team's package, which can be imported from here on."""
    folder = next(path.parent for path in Path("src").glob("*/__init__.py"))
    if (source := str(Path("src").absolute())) not in sys.path:
        sys.path.insert(0, source)
    return folder.name


def team() -> tuple[Any, dict[str, Any]]:
    """The class of its model, and that of its data, as TrainingCLI takes it."""
    from lightning_shards.train.contract import data_class
    from lightning_shards.train.datamodule import ShardDataModule

    name = package()
    data = importlib.import_module(f"{name}.data")
    return importlib.import_module(f"{name}.model").ImageModel, {
        "datamodule_class": data_class(ShardDataModule, data.fields, data.transform)
    }
