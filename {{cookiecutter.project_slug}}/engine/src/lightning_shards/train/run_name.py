"""The name of a run's folder, and that no two trainings have one."""

from __future__ import annotations

import atexit
import hashlib
import itertools
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
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
    makes the folder, so no other rank may be surprised to find it. Of trainings that begin in the same second each gets
    a name of its own.
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
        return _free(now), False
    folder = RUNS / checked(given)
    if not (folder / "config.yaml").exists():
        return folder, False
    if cluster.goes_on() or rank() > 0:
        return folder, cluster.goes_on()
    if not name and cluster.layout() in (None, (1, 1)):  # the second training of one job
        return _free(f"{folder.name}_{now}"), False
    raise InputError(_taken(folder))


def _free(name: str) -> Path:
    """The folder of that name, with a number behind it where another training has it. Nothing is written to `RUNS`."""
    for number in itertools.count(1):
        folder = RUNS / (name if number == 1 else f"{name}_{number}")
        if not folder.exists() and _reserve(folder):
            return folder
    raise AssertionError


def _reserve(folder: Path) -> bool:
    """Keep a name from other processes of this host while this one lives; of those on other hosts `claim` says it."""
    digest = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:32]
    try:
        path = Path(tempfile.gettempdir()) / f"lightning-shards-{digest}.name"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    except OSError:
        return True
    atexit.register(path.unlink, missing_ok=True)
    return True


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
