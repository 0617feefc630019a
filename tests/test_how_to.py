"""Every how-to page is run as it stands in a fresh project, and touches only the team's files.

How a page is written stands in the README of their folder.
"""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from template import PACKAGE, PROJECT, bake, environment, python_of, run, succeed
from warm import WarmPython

PAGES = sorted(path for path in (PROJECT / "engine" / "docs" / "how-to").glob("*.md") if path.name != "README.md")
BLOCK = re.compile(
    r"^(<!-- run -->\n+)?```(\w*)(?: title=\"([^\"]+)\")?( append)?\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
CODE_ALONE = {"notebook", "plain-pytorch", "webdataset-pipeline"}  # run by tests/engine/test_how_to_loader.py
SHORTER = "--trainer.max_epochs 1 --log.wandb false --trainer.enable_progress_bar false"
STAND_IN = """#!/bin/sh
# `uv` of a page: all pages share one environment, and trainings are shorter.
export PYTHONPATH="$PWD/src" PYTHONDONTWRITEBYTECODE=1
verb=$1; shift
case "$verb" in
  # an extra is called as its package
  add) touch .added; exec {uv} pip install --quiet --compile-bytecode --python {env} "$@" ;;
  sync) shift; touch .added; exec {uv} pip install --quiet --compile-bytecode --python {env} "$@" ;;
  run) while :; do case "$1" in --extra|--with) shift 2 ;; -*) shift ;; *) break ;; esac; done ;;
  *) echo "a how-to page calls uv $verb" >&2; exit 2 ;;
esac
[ "$1" = python ] && shift
python={warm}
[ -e .added ] && python={env}/bin/python  # which knows what was added
case "$1" in
  train.py) exec $python "$@" {shorter} ;;
  pytest|jupyter) exec $python -m "$@" ;;
  *) exec $python "$@" ;;
esac
"""


def is_the_teams(path: str) -> bool:
    """Whether a page may name this file."""
    return path == "train.py" or (not path.startswith(("engine", "/")) and ".." not in path)


@pytest.fixture(scope="module")
def fresh(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh project with an environment of its own, to which pages may add, and a tenth of its sample packed.

    The environment begins as a copy of the one that all tests share: compiling its bytecode takes half a minute.
    """
    made = bake(tmp_path_factory.mktemp("how-to") / "bakes")
    succeed(["cp", "-al", str(project / ".venv"), str(project / "uv.lock"), "."], made)
    keep_a_tenth(made / "sample" / "fashion-mnist-10k.zip")
    succeed("make data/sample/dataset.json", made)
    return made


@pytest.fixture(scope="module")
def warm(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Python of `fresh`, whose starts cost little."""
    server = WarmPython(python_of(fresh), tmp_path_factory.mktemp("warm"))
    yield str(server.path)
    server.stop()


def keep_a_tenth(path: Path) -> None:
    """Of a zip file's members, of each class and split alike."""
    with zipfile.ZipFile(path) as before:
        kept = {name: before.read(name) for name in sorted(before.namelist())[::10]}
    with zipfile.ZipFile(path, "w") as after:
        for name, content in kept.items():
            after.writestr(name, content)


def apply(project: Path, language: str, path: str, append: bool, text: str) -> None:
    """Do to a file what a block says."""
    assert is_the_teams(path), f"{path} is not the team's"
    file = project / path
    before = file.read_text() if file.exists() else ""
    if language == "diff":
        lines = text.splitlines(keepends=True)
        old = "".join(line[1:] or line for line in lines if line[0] in " -\n")
        new = "".join(line[1:] or line for line in lines if line[0] in " +\n")
        assert before.count(old) == 1, f"{path} has this part {before.count(old)} times:\n{old}"
        text = before.replace(old, new)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{before}\n\n{text}" if append else text)


@pytest.mark.project
@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in CODE_ALONE], ids=lambda page: page.stem)
def test_page_works_as_it_stands(page: Path, fresh: Path, warm: str, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(fresh, project, ignore=shutil.ignore_patterns(".venv", "runs"), symlinks=True)
    (project / ".venv").symlink_to(fresh / ".venv")
    real_uv = succeed("command -v uv", tmp_path).strip()
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    written = page.read_text(encoding="utf-8")
    shorter = SHORTER if "report" in written else f"{SHORTER} --log.report false"
    uv.write_text(STAND_IN.format(uv=real_uv, env=fresh / ".venv", warm=warm, shorter=shorter))
    uv.chmod(0o755)
    ran = 0
    for to_run, language, path, append, text in BLOCK.findall(written):
        text = text.replace("PACKAGE", PACKAGE)
        if path:
            apply(project, language, path.replace("PACKAGE", PACKAGE), bool(append), text)
        elif to_run:
            ran += 1
            path_with_uv = f"{uv.parent}:{environment({})['PATH']}"
            print(succeed(text, project, env={"PATH": path_with_uv})[-1500:])
    assert ran, "a page has a command that shows that it works"
    checked = run([sys.executable, "-m", "ruff", "check", "--no-cache", "src", "train.py"], project)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_fits_on_a_screen(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and len(lines) <= 90, f"{len(lines)} lines"
    assert max(map(len, lines)) <= 150


def test_index_of_the_pages() -> None:
    """Each page is listed, by its own headline; `make format` writes the list."""
    from how_to_index import index

    folder = PROJECT / "engine" / "docs" / "how-to"
    assert (folder / "README.md").read_text(encoding="utf-8") == index(folder)
