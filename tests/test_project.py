"""A generated project keeps its own promises: its tests, its lint and its imports, for each task.

One environment serves all bakes. The default bake is installed in it; the others run with their own `src`
first on the path, and have a package of another name, so they cannot import the wrong one.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from template import PACKAGE, bake, python_of, run, succeed

pytestmark = pytest.mark.project
TASKS = ["multi_label", "regression"]


def closing_line(said: str) -> str:
    """What pytest says last: how many tests passed."""
    lines = re.findall(r"^=* ?(\d+ passed.*?) ?=*$", said, flags=re.MULTILINE)
    assert lines, said[-3000:]
    return str(lines[-1])


@pytest.fixture(scope="module", params=TASKS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bake for another task, with every option that the default has not."""
    answers = {"task": request.param, "package_name": f"my_{request.param}", "project_slug": "other"}
    return bake(tmp_path_factory.mktemp(request.param) / "bakes", **answers, scaling="slurm", container_file="true")


def with_its_source(project: Path) -> dict[str, str]:
    """The environment variables that put a project's own package first."""
    return {"PYTHONPATH": str(project / "src"), "PYTHONDONTWRITEBYTECODE": "1"}


def test_default_project_passes_its_own_tests(project: Path) -> None:
    print(closing_line(succeed("make test", project, timeout=900)))


def test_default_project_passes_its_own_lint(project: Path) -> None:
    succeed("make lint", project)


def test_other_tasks_pass_their_own_tests(project: Path, other: Path) -> None:
    command = [python_of(project), "-m", "pytest", "-p", "no:cacheprovider"]
    print(closing_line(succeed(command, other, timeout=900, env=with_its_source(other))))


def test_other_tasks_are_typed(project: Path, other: Path) -> None:
    succeed([python_of(project), "-m", "mypy"], other, env=with_its_source(other))


def test_training_script_says_what_it_takes(project: Path, other: Path) -> None:
    for bake_of, python in ((project, python_of(project)), (other, python_of(project))):
        said = succeed([python, "train.py", "--help"], bake_of, env=with_its_source(bake_of))
        assert "--config" in said and len(said.splitlines()) <= 60


def test_every_module_imports(project: Path) -> None:
    code = (
        f"import importlib, pkgutil, {PACKAGE} as p\n"
        "for module in pkgutil.walk_packages(p.__path__, p.__name__ + '.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
    )
    succeed([python_of(project), "-c", code], project)


def test_lock_pins_with_hashes(project: Path) -> None:
    lock = (project / "uv.lock").read_text()
    assert 'name = "torch"' in lock and "sha256:" in lock
    ignored = run(["git", "check-ignore", "--no-index", "uv.lock"], project)
    assert ignored.returncode != 0  # it is to be committed


def test_making_again_changes_nothing(project: Path) -> None:
    before = (project / "uv.lock").read_text()
    succeed("make setup", project)
    assert (project / "uv.lock").read_text() == before
