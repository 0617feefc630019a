"""What the tests share: where the template is, how a project is baked from it, how a command is run.

Everything goes through the commands a person would type (cookiecutter, make, uv), in a process of its own; only that
bakes start warm (`warm`).
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from warm import WarmPython

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "{{cookiecutter.project_slug}}"
DEFAULT = "lightning-shards-demo"
PACKAGE = "lightning_shards_demo"
NOTHING: Mapping[str, str] = {}
PATIENCE = 1800  # seconds for a command to end: on the slowest machine, only what hangs takes longer
_MADE = shutil.ignore_patterns(".git", "build", ".venv", ".uv", "uv.lock", "__pycache__", ".*_cache", ".hypothesis")


def litter(folder: str, names: list[str]) -> set[str]:
    """What is made in a working folder and belongs to no commit, for shutil.copytree."""
    trained = {"runs", "data"} if Path(folder) == PROJECT else set()
    return _MADE(folder, names) | trained & set(names)


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a person's shell: nothing of our own environment or tests, no colours, no W&B key.

    But for OMP_NUM_THREADS, as conftest.py sets it: the tests share the machine.
    """
    ours = {"VIRTUAL_ENV", "WANDB_API_KEY", "PYTHONPATH", "UV_PROJECT_ENVIRONMENT", "UV_COMPILE_BYTECODE"}
    ours |= {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}  # of the make that runs the tests
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {"NO_COLOR": "1", "COLUMNS": "200", "WANDB_MODE": "offline", "PYTHONUNBUFFERED": "1"} | dict(more)


def run(command: list[str] | str, where: Path, *, env: Mapping[str, str] = NOTHING) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with nothing to read; a string is a line of shell."""
    return subprocess.run(
        command if isinstance(command, list) else ["bash", "-euo", "pipefail", "-c", command],
        cwd=where,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def succeed(command: list[str] | str, where: Path, *, env: Mapping[str, str] = NOTHING) -> str:
    """Run a command that must end with status 0; return what it printed."""
    done = run(command, where, env=env)
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{said[-6000:]}"
    return said


@cache
def baker() -> str:
    """The Python that bakes: importing cookiecutter takes half of a bake's time."""
    folder = TemporaryDirectory(prefix="baker-")
    # cookiecutter takes note of the home when it is imported, and keeps the last answers there
    server = WarmPython(sys.executable, Path(folder.name), ("cookiecutter.cli",), HOME=folder.name)
    atexit.register(folder.cleanup)
    atexit.register(server.stop)
    return str(server.path)


def cookiecutter(answers: dict[str, str], template: Path = ROOT) -> list[str]:
    """The command that bakes with these answers and asks nothing."""
    given = [f"{name}={value}" for name, value in answers.items()]
    return [baker(), "-m", "cookiecutter", "--no-input", "--default-config", str(template), *given]


def bake(where: Path, **answers: str) -> Path:
    """Bake a project into the folder `where` (made if needed); return the project's folder."""
    where.mkdir(parents=True, exist_ok=True)
    succeed(cookiecutter(answers), where, env={"HOME": str(where.parent)})
    (project,) = where.iterdir()
    return project


def python_of(project: Path) -> str:
    """The interpreter of a project that was set up."""
    return str(project / ".venv" / "bin" / "python")


def set_up(project: Path, folder: Path) -> None:
    """`make setup data/sample/dataset.json` of a bake, with the bytecode that the tests' own environment has.

    To compile it anew takes half a minute of both cores, and is done by the README's commands, which a test runs.
    """
    program, uv = folder / "uv", os.environ.get("UV", "uv")  # `uv run` says where it lies
    without = 'for word; do shift; [ "$word" = --compile-bytecode ] || set -- "$@" "$word"; done'
    program.write_text(f'#!/bin/sh\n{without}\nexec "{uv}" "$@"\n')
    program.chmod(0o755)
    succeed(["make", "setup", f"UV={program}"], project)
    ours, theirs = (
        Path(root) / "lib" / f"python3.{sys.version_info.minor}" for root in (sys.prefix, project / ".venv")
    )
    for compiled in ours.glob("site-packages/**/__pycache__"):
        place = theirs / compiled.relative_to(ours)
        if place.parent.exists() and not place.exists():
            shutil.copytree(compiled, place)
    succeed(["make", "data/sample/dataset.json", f"UV={program}"], project)


def stand_in_for_uv(folder: Path, project: Path, more: str = "") -> Path:
    """A program for `make UV=...` in another bake: it runs all in the environment of `project`, with `more` at the end,
    and makes none."""
    program, environment = folder / "uv", Path(python_of(project)).parent
    program.write_text(f'#!/bin/sh\n[ "$1" = sync ] && exit 0\nshift\nPATH="{environment}:$PATH" exec "$@" {more}\n')
    program.chmod(0o755)
    return program


def text_files(project: Path) -> dict[str, str]:
    """Every file of a fresh bake that is text, by its path in the project."""
    found = {}
    for path in sorted(project.rglob("*")):
        if path.is_file() and path.suffix not in {".zip", ".png", ".jpg"}:
            found[str(path.relative_to(project))] = path.read_text(encoding="utf-8")
    return found
