"""A run's folder, by its name."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError

RUNS = Path("runs")


def find(name: str) -> Path:
    """The folder of run `name` (or `runs/name`); `last` is the one that began last. Raises InputError for no run."""
    if name == "last":
        folders = [folder for folder in RUNS.glob("*") if (folder / "config.yaml").is_file()]
        if not folders:
            raise InputError(f"there is no run in {RUNS}/ yet: start one with `uv run train.py`")
        return max(folders, key=lambda folder: (folder / "config.yaml").stat().st_mtime_ns)
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
