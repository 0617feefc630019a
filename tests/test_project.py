"""A generated project keeps its own promises: its tests, its lint and its imports, and a training of each task.

One environment serves all bakes. The default bake is installed in it; the others run with their own `src`
first on the path, and have a package of another name, so they cannot import the wrong one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from template import PACKAGE, PROJECT, bake, python_of, run, stand_in_for_uv, succeed

pytestmark = pytest.mark.project
TASKS = ["multi_label", "regression", "segmentation", "detection"]


@pytest.fixture(scope="module", params=TASKS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bake for another task, with every option that the default has not."""
    answers = {"task": request.param, "package_name": f"my_{request.param}", "project_slug": "other"}
    return bake(tmp_path_factory.mktemp(request.param) / "bakes", **answers, scaling="slurm", container_file="true")


def with_its_source(project: Path) -> dict[str, str]:
    """The environment variables that put a project's own package first."""
    return {"PYTHONPATH": str(project / "src"), "PYTHONDONTWRITEBYTECODE": "1"}


def test_the_model_learns_two_batches_by_heart(project: Path, warm_python_of_project: str, tmp_path: Path) -> None:
    """What configs/debug.yaml is for; where the time went is told beside."""
    over = [f"--config={project / 'configs' / name}" for name in ("sample.yaml", "debug.yaml")]
    over += ["--data.path", str(project / "data" / "sample"), "--run", "by-heart", "--log.report", "false"]
    over += ["--data.global_batch_size", "32", "--trainer.max_epochs", "30"]  # half of all, to save time
    succeed([warm_python_of_project, str(project / "train.py"), *over], tmp_path)
    folder = tmp_path / "runs" / "by-heart"
    assert json.loads((folder / "summary.json").read_text())["metrics"]["train/loss"] < 0.05
    assert list((folder / "profile").iterdir())


def test_default_project_passes_its_own_tests(project: Path) -> None:
    said = succeed("make test", project)
    lines = re.findall(r"^=* ?(\d+ passed.*?) ?=*$", said, flags=re.MULTILINE)
    assert len(lines) == 1 and "skipped" not in lines[0], said[-3000:]


def test_default_project_passes_its_own_lint(project: Path) -> None:
    succeed("make lint", project)


def test_the_team_has_little_to_read() -> None:
    """What a team owns: at most 10 files and 700 lines of code, at most 10 files and 400 lines of tests."""
    for folder, lines in (("src/{{cookiecutter.package_name}}", 700), ("tests", 400)):
        files = list((PROJECT / folder).glob("**/*.py"))
        assert len(files) <= 10 and sum(len(path.read_text().splitlines()) for path in files) <= lines, folder


def test_other_tasks_pack_their_sample_and_learn(
    project: Path, warm_python_of_project: str, other: Path, tmp_path: Path
) -> None:
    """The Makefile's own command packs the table; a small part of the training must already beat a model that
    guesses the mean."""
    environment = with_its_source(other)
    uv = stand_in_for_uv(tmp_path, project)
    succeed(["make", "data/sample/dataset.json", f"UV={uv}"], other, env=environment)
    composed = "compose.py" in {path.name for path in (other / "sample").iterdir()}
    epochs, part = ("1", "1.0") if composed else ("2", "0.25")
    train = ["train.py", "--run", "short", "--trainer.max_epochs", epochs, "--data.fraction", part]
    train += ["--log.wandb", "false"]
    succeed([warm_python_of_project, *train], other, env=environment)
    metrics = json.loads((other / "runs/short/summary.json").read_text())["metrics"]
    assert metrics.get("test/average_precision", 1) > 0.8 and metrics.get("test/r2", 1) > 0.5, metrics
    if "test/mean_iou" in metrics:
        predict = ["-m", "my_segmentation", "predict", "last", "data/sample", "--masks", "masks"]
        succeed([warm_python_of_project, *predict], other, env=environment)
        assert len(list((other / "masks").rglob("*.png"))) == 326, "as the README says"
    if "test/map" in metrics:
        predict = ["-m", "my_detection", "predict", "last", "data/sample", "--coco", "found.json"]
        succeed([warm_python_of_project, *predict], other, env=environment)
        assert len(json.loads((other / "found.json").read_text())["images"]) == 326, "as the README says"
    assert metrics.get("test/map", 1) > 0.05, metrics
    assert metrics.get("test/mean_iou", 1) > 0.15 and metrics.get("test/pixel_accuracy", 1) > 0.7, metrics


def test_other_tasks_have_configs_that_make_a_model(warm_python_of_project: str, other: Path) -> None:
    command = [warm_python_of_project, "-m", "pytest", "-p", "no:cacheprovider", "-k", "makes_a_model"]
    succeed(command, other, env=with_its_source(other))


def test_other_tasks_are_typed(project: Path, other: Path) -> None:
    cache = str(project / ".mypy_cache")  # of what the project's own lint has looked at
    succeed([python_of(project), "-m", "mypy", "--cache-dir", cache], other, env=with_its_source(other))


def test_training_script_says_what_it_takes(project: Path, warm_python_of_project: str) -> None:
    said = succeed([warm_python_of_project, "train.py", "--help"], project)
    assert "--config" in said and len(said.splitlines()) <= 60


def test_every_module_imports(project: Path, warm_python_of_project: str) -> None:
    code = (
        f"import importlib, pkgutil, lightning_shards, {PACKAGE}\n"
        f"for package in (lightning_shards, {PACKAGE}):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
    )
    succeed([warm_python_of_project, "-c", code], project)


def test_lock_pins_with_hashes(project: Path) -> None:
    lock = (project / "uv.lock").read_text()
    assert 'name = "torch"' in lock and "sha256:" in lock
    ignored = run(["git", "check-ignore", "--no-index", "uv.lock"], project)
    assert ignored.returncode != 0  # it is to be committed


def test_making_again_changes_nothing(project: Path) -> None:
    before = (project / "uv.lock").read_text()
    succeed("make setup", project)
    assert (project / "uv.lock").read_text() == before
