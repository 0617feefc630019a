"""A run's folder, by its name."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from ..errors import InputError

RUNS = Path("runs")


def began(folder: Path) -> datetime | None:
    """When the run in `folder` began, in this machine's time: what its first start or its summary has written down,
    which a copy keeps, else the time of `config.yaml`; None where neither is known."""
    for name, key in (("starts.jsonl", "at"), ("summary.json", "began")):
        with suppress(OSError, ValueError, TypeError, LookupError, RecursionError, OverflowError):
            with (folder / name).open(errors="replace") as file:
                text = file.readline() if name == "starts.jsonl" else file.read()
            when = datetime.fromisoformat(json.loads(text)[key])
            return when if when.tzinfo is None else when.astimezone().replace(tzinfo=None)
    with suppress(OSError, ValueError, OverflowError):  # a file's time may be anything
        return datetime.fromtimestamp((folder / "config.yaml").stat().st_mtime)
    return None


def find(name: str) -> Path:
    """The folder of run `name` (or `runs/name`); `last` is the one that began last. Raises InputError for no run."""
    if name == "last":
        folders = [folder for folder in RUNS.glob("*") if (folder / "config.yaml").is_file()]
        if not folders:
            raise InputError(f"there is no run in {RUNS}/ yet: start one with `uv run train.py`")
        return max(
            folders, key=lambda folder: (began(folder) or datetime.min, (folder / "config.yaml").stat().st_mtime_ns)
        )
    path = Path(name)
    folder = RUNS / checked(path.name if path.parent == RUNS else name)
    if not folder.is_dir():
        raise InputError(
            f"there is no run {name!r} in {RUNS}/; `ls {RUNS}` lists them, and `last` in place of a name is the newest"
        )
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder} is no run's folder: it has no config.yaml")
    return folder


def checked(name: str) -> str:
    """The name, if a run can have it. Raises InputError."""
    if Path(name).name != name or name in (".", "..", "last") or not name.isprintable():
        raise InputError(
            f"{name!r} cannot be a run's name: use letters, digits, '-', '_' and '.' (`last` is the newest)"
        )
    return name
