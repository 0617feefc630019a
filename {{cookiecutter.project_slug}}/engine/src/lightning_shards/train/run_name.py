"""The name of a run's folder, and that no two trainings have one."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ..entry import rank
from ..errors import InputError
from ..files import write_durably
from ..runs.folder import RUNS, checked
from . import cluster

VARIABLE = "LIGHTNING_SHARDS_RUN"  # one host's ranks learn the run's name by it


def choose(name: str | None) -> tuple[Path, bool]:
    """(folder, whether it goes on): from `--run`, else the Slurm job's or torchrun's id, else the date and time.

    A job that its scheduler starts again goes on with its run; a name that a person gives twice is refused. Rank zero
    makes the folder, so no other rank may be surprised to find it. One named after the time is made here, since another
    training may begin in the same second: `give_back` removes it where nothing comes of it.
    """
    inherited = os.environ.get(VARIABLE)
    if inherited:
        return RUNS / inherited, False
    if not name and cluster.nameless():
        raise InputError(
            "torchrun on several hosts needs one name for the run: give --rdzv-id to torchrun, or --run to train.py"
        )
    given, now = name or cluster.name(), datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if not given:
        return _made(now), False
    folder = RUNS / checked(given)
    if not (folder / "config.yaml").exists():
        return folder, False
    if cluster.goes_on() or rank() > 0:
        return folder, cluster.goes_on()
    if not name and cluster.layout() in (None, (1, 1)):  # the second training of one job
        return _made(f"{folder.name}_{now}"), False
    raise InputError(_taken(folder))


def _made(name: str) -> Path:
    """A new folder of that name, with a number behind it where there is one: mkdir is atomic, on a shared disk too."""
    for number in itertools.count(1):
        folder = RUNS / (name if number == 1 else f"{name}_{number}")
        with _writing(folder):
            RUNS.mkdir(exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    raise AssertionError


def give_back(folder: Path) -> None:
    """Remove the folder of a training that did not begin."""
    with suppress(OSError):  # it is in use, or was never made
        folder.rmdir()
        RUNS.rmdir()


def claim(folder: Path, config: str) -> None:
    """Write the run's `config.yaml`, by which a folder is one. Raises InputError where another training was quicker."""
    path = folder / "config.yaml"
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        mine = path.with_name(f"config.yaml.{uuid.uuid4().hex}.tmp")
        try:
            write_durably(mine, config.encode())
            try:
                os.link(mine, path)
            except FileExistsError:
                raise InputError(_taken(folder)) from None
            except OSError:  # there are no hard links here
                mine.replace(path)
        finally:
            mine.unlink(missing_ok=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Within it, that something cannot be written is bad input."""
    try:
        yield
    except OSError as error:
        raise InputError(f"the run's folder {folder} cannot be written ({error.strerror})") from None


def _taken(folder: Path) -> str:
    return f"the run {folder} exists: go on with it by `--resume {folder.name}`, or choose another --run"
