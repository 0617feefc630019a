"""A generated project keeps its own promises: its tests, its lint and its imports, for each task.

One environment serves all bakes. The default bake is installed in it; the others run with their own `src`
first on the path, and have a package of another name, so they cannot import the wrong one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from template import PACKAGE, bake, environment, python_of, run, succeed

pytestmark = pytest.mark.project
TASKS = ["multi_label", "regression"]
WAITING = ("resume", "ranks", "hosts", "crash", "checkpoints", "sweep")


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


@pytest.fixture(scope="module")
def beside(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """The tests that mostly wait for processes, and then those on a real Slurm, started beside the others: both cores
    have work. Call it for what they said at their end."""
    slurm = bake(
        tmp_path_factory.mktemp("slurm") / "bakes", project_slug="jobs", package_name="my_jobs", scaling="slurm"
    )
    pytest_of = f"{python_of(project)} -m pytest -p no:cacheprovider"
    first = f"cd {project} && {pytest_of} {' '.join(f'tests/test_{name}.py' for name in WAITING)}"
    second = f"cd {slurm} && PYTHONPATH={slurm}/src {pytest_of} tests/test_slurm.py"
    with (slurm.parent / "log").open("w+") as log:
        process = subprocess.Popen(
            ["bash", "-c", f"({first}); one=$?; ({second}) && exit $one"],
            env=environment({}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

        def said() -> str:
            status = process.wait(timeout=1800)
            log.seek(0)
            text = log.read()
            assert status == 0, text[-8000:]
            return text

        yield said
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)


def test_default_project_passes_its_own_tests(project: Path, beside: object) -> None:
    ignored = " ".join(f"--ignore=tests/test_{name}.py" for name in WAITING)
    print(closing_line(succeed("make test", project, timeout=1800, env={"PYTEST_ADDOPTS": ignored})))


def test_default_project_passes_its_own_lint(project: Path) -> None:
    succeed("make lint", project)


def test_other_tasks_pass_the_tests_that_read_answers(project: Path, other: Path) -> None:
    """The package is the same in every bake, so what is run again is what depends on answers: names and configs."""
    chosen = [f"tests/test_{name}.py" for name in ("training", "train", "sweep")]
    chosen += ["-k", "test_training or shipped or leak or help or learns or takes"]
    command = [python_of(project), "-m", "pytest", "-p", "no:cacheprovider", *chosen]
    print(closing_line(succeed(command, other, timeout=900, env=with_its_source(other))))


def test_other_tasks_pack_their_sample_and_learn(project: Path, other: Path, tmp_path: Path) -> None:
    """The Makefile's own command packs the table; two epochs must already beat a model that guesses the mean."""
    stand_in = tmp_path / "uv"  # runs in the shared environment instead of making another
    folder = Path(python_of(project)).parent
    stand_in.write_text(f'#!/bin/sh\n[ "$1" = sync ] && exit 0\nshift\nPATH="{folder}:$PATH" exec "$@"\n')
    stand_in.chmod(0o755)
    environment = with_its_source(other)
    succeed(["make", "data/sample/dataset.json", f"UV={stand_in}"], other, env=environment)
    train = ["train.py", "--run", "two", "--trainer.max_epochs", "2", "--log.wandb", "false"]
    succeed([python_of(project), *train], other, timeout=300, env=environment)
    metrics = json.loads((other / "runs/two/summary.json").read_text())["metrics"]
    assert metrics.get("test/average_precision", 1) > 0.8 and metrics.get("test/r2", 1) > 0.5, metrics


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


def test_what_ran_beside_passed(beside: Callable[[], str]) -> None:
    """The second half of the default project's tests, and those of one for Slurm: skipped, with the reason, where Slurm
    cannot run."""
    lines = re.findall(r"^=* ?(\d+ (?:passed|skipped).*?) ?=*$", beside(), flags=re.MULTILINE)
    print(*lines, sep="\n")
    assert len(lines) == 2
