"""Bakes with every pair of answers: what comes out is whole, valid, clean and what was asked for."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from template import DEFAULT, PROJECT, bake, cookiecutter, run, succeed, text_files

OPTIONS: dict[str, list[str]] = {
    "license": ["MIT", "BSD-3-Clause", "Apache-2.0", "Proprietary"],
    "python_version": ["3.11", "3.12", "3.13", "3.14"],
    "task": ["single_label", "multi_label", "regression", "segmentation", "detection"],
    "scaling": ["one_gpu", "many_gpus", "slurm"],
    "torch_build": ["default", "cpu", "cu126", "cu128", "cu130"],
    "container_file": ["false", "true"],
    "github_actions": ["true", "false"],
    "wandb_entity": ["", "a-team"],
    "image_size": ["224", "64"],
    "package_name": ["plain", "our_own_image_experiments"],
}
LICENSE_WORDS = {
    "MIT": "MIT License",
    "BSD-3-Clause": "BSD 3-Clause License",
    "Apache-2.0": "Version 2.0, January 2004",
    "Proprietary": "All rights reserved",
}


def pairs_of(answers: dict[str, str]) -> set[tuple[tuple[str, str], ...]]:
    return set(itertools.combinations(answers.items(), 2))


def pairwise(options: dict[str, list[str]]) -> list[dict[str, str]]:
    """A small set of answers in which every two options meet in each combination of their values (greedy)."""
    draw = random.Random(0)
    pairs = {
        ((first, one), (second, other))
        for first, second in itertools.combinations(options, 2)
        for one, other in itertools.product(options[first], options[second])
    }
    chosen = []
    while pairs:
        must = min(pairs)
        candidates = [{name: draw.choice(values) for name, values in options.items()} | dict(must) for _ in range(40)]
        best = max(candidates, key=lambda answers: len(pairs & pairs_of(answers)))
        pairs -= pairs_of(best)
        chosen.append(best)
    return chosen


BAKES = pairwise(OPTIONS)
PACKAGE_FOLDER = "{{cookiecutter.package_name}}"
LITTER = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}


@pytest.fixture(scope="module", params=range(len(BAKES)))
def baked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    answers = BAKES[request.param]
    return answers, bake(tmp_path_factory.mktemp("pair") / "bakes", **answers)


def test_questions_and_options_are_the_same() -> None:
    """Every choice of cookiecutter.json is baked here, and the file is flat, so that cruft can update."""
    questions = json.loads((PROJECT.parent / "cookiecutter.json").read_text())
    for name, default in questions.items():
        assert name.startswith("__") or not isinstance(default, dict)
        assert not (isinstance(default, list) and any(isinstance(value, bool) for value in default))
        if isinstance(default, list) and not name.startswith("_"):
            assert OPTIONS[name] == default
        if not name.startswith("_"):
            assert name in questions["__prompts__"]


def test_nothing_of_the_template_is_left(baked: tuple[dict[str, str], Path]) -> None:
    for name, text in text_files(baked[1]).items():
        if name.startswith("engine/"):  # copied as it is; its report is a page of jinja2
            continue
        left = re.findall(r"(?<!\$)\{\{.*|\{%.*|\{#.*|cookiecutter\..*", text)
        assert not left, f"{name}: {left[:3]}"
        assert not re.search(r"\n{4}", text), f"{name}: blank lines where an option was"
        assert text == "" or text.endswith("\n"), f"{name}: no end of line"


def test_files_are_valid(baked: tuple[dict[str, str], Path]) -> None:
    for name, text in text_files(baked[1]).items():
        if name.endswith(".toml"):
            tomllib.loads(text)
        elif name.endswith((".yaml", ".yml")):
            assert isinstance(yaml.safe_load(text), dict), name
        elif name.endswith(".json"):
            json.loads(text)
        elif name.endswith(".py"):
            compile(text, name, "exec")


def test_code_is_clean(baked: tuple[dict[str, str], Path]) -> None:
    """Sorted imports too: they depend on the name of the package."""
    ruff = [sys.executable, "-m", "ruff"]
    succeed([*ruff, "check", "--no-cache", "."], baked[1])
    succeed([*ruff, "format", "--no-cache", "--check", "."], baked[1])


@pytest.mark.parametrize("folder", ["src", "engine"])
def test_code_is_copied_as_it_stands(baked: tuple[dict[str, str], Path], folder: str) -> None:
    """No answer cuts into the engine, nor into the team's package: their files are the template's, byte for byte."""
    answers, project = baked
    source = PROJECT / folder
    files = {path for path in source.rglob("*") if path.is_file() and not LITTER & set(path.parts)}
    named = {path: str(path.relative_to(PROJECT)).replace(PACKAGE_FOLDER, answers["package_name"]) for path in files}
    assert files
    for path in files:
        assert (project / named[path]).read_bytes() == path.read_bytes(), path
    made = {str(path.relative_to(project)) for path in (project / folder).rglob("*") if path.is_file()}
    assert made - {"engine/MANIFEST"} == set(named.values())


def test_the_engine_has_no_template_syntax() -> None:
    """Not even as two braces of a formatted text: it is the same in every project, whoever copies it."""
    files = list((PROJECT / "engine").rglob("*.py"))
    found = [path.name for path in files if re.search(r"{{|{%|{#", path.read_text(encoding="utf-8"))]
    assert len(files) > 100 and not found


def test_answers_are_used(baked: tuple[dict[str, str], Path]) -> None:
    answers, project = baked
    files = text_files(project)
    settings = tomllib.loads(files["pyproject.toml"])
    assert settings["project"]["requires-python"] == f">={answers['python_version']}"
    assert settings["tool"]["mypy"]["python_version"] == answers["python_version"]
    assert LICENSE_WORDS[answers["license"]] in files["LICENSE"]
    assert "Lightning Shards Demo contributors" in files["LICENSE"]
    assert settings["project"]["license"].endswith(answers["license"])
    assert settings["project"]["authors"] == [{"name": "Lightning Shards Demo contributors"}]

    desktop = files["configs/desktop.yaml"]
    assert answers["image_size"] in desktop and answers["task"] in desktop and "lightning-shards-demo" in desktop
    entity = answers["wandb_entity"]
    assert not entity or any(entity in text for name, text in files.items() if name.startswith("configs/"))

    indexes = settings["tool"].get("uv", {}).get("index", [])
    build = answers["torch_build"]
    assert [index["url"].rsplit("/", 1)[1] for index in indexes] == ([] if build == "default" else [build])
    if indexes:
        assert indexes[0]["explicit"] is True
    with_torch = {"torch", "torchvision"} if indexes else set()
    assert set(settings["tool"]["uv"]["sources"]) == {"lightning-shards", *with_torch}


def test_configs_are_short_and_say_what_each_setting_is(baked: tuple[dict[str, str], Path]) -> None:
    configs = {name: text.splitlines() for name, text in text_files(baked[1]).items() if name.startswith("configs/")}
    assert len(configs) >= 4
    for name, lines in configs.items():
        assert len(lines) < 40 and all(len(line) <= 120 for line in lines), name
        silent = [line for line in lines if re.match(r" *\w+: *[^ #]", line) and "  # " not in line]
        assert not silent, f"{name}: {silent}"


def test_options_not_asked_for_leave_nothing(baked: tuple[dict[str, str], Path]) -> None:
    answers, project = baked
    files = text_files(project)
    container, actions = answers["container_file"] == "true", answers["github_actions"] == "true"
    assert ("Dockerfile" in files, ".dockerignore" in files) == (container, container)
    assert (project / ".github").exists() == actions
    assert ("sample/targets.csv" in files) == (answers["task"] in ("multi_label", "regression"))
    composed = answers["task"] in ("segmentation", "detection")
    assert ("sample/compose.py" in files, "sample/classes.txt" in files) == (composed, composed)
    assert ("configs/probe.yaml" in files, "configs/scratch_long.yaml" in files) == (not composed, not composed)
    assert (project / "slurm").exists() == (answers["scaling"] == "slurm")
    if answers["scaling"] == "one_gpu":
        assert not (project / "configs" / "many_gpus.yaml").exists()
    readme = files["README.md"]
    assert ("Dockerfile" in readme, "sbatch" in readme, "torchrun" in readme) == (
        container,
        answers["scaling"] == "slurm",
        answers["scaling"] == "many_gpus",
    )


def test_container_file_is_clean(baked: tuple[dict[str, str], Path]) -> None:
    """To a linter: no container engine runs here."""
    answers, project = baked
    linter = Path(sys.executable).with_name("hadolint")
    if answers["container_file"] != "true":
        return
    if not linter.exists():
        pytest.skip("hadolint has no wheel for this machine")
    succeed([str(linter), "--failure-threshold", "style", "Dockerfile"], project)


def test_workflow_runs_the_steps_that_are_printed(default_bake: Path, tmp_path: Path) -> None:
    workflow = yaml.safe_load((default_bake / ".github/workflows/ci.yml").read_text())
    steps = [step["run"] for step in workflow["jobs"]["ci"]["steps"] if "run" in step]
    said = succeed(cookiecutter({}), tmp_path, env={"HOME": str(tmp_path)})
    assert re.findall(r"^    (make \w+)", said, flags=re.MULTILINE) == steps
    (folder,) = re.findall(r"^    cd (.+)", said, flags=re.MULTILINE)
    assert Path(folder).is_absolute() and (Path(folder) / "train.py").exists()
    assert "${{ github.ref }}" in (default_bake / ".github/workflows/ci.yml").read_text()


def test_lint_says_in_a_sentence_that_the_engine_was_edited(tmp_path: Path) -> None:
    """`make lint` begins with this; what an own test or tool leaves in engine/ is no edit."""
    project = bake(tmp_path / "bakes")
    check = [sys.executable, "engine/manifest.py"]
    assert '@"$(UV)" run python engine/manifest.py' in (project / "Makefile").read_text()
    (project / "engine/src/lightning_shards/__pycache__").mkdir()
    (project / "engine/src/lightning_shards/__pycache__/x.pyc").touch()
    assert succeed(check, project) == ""
    with (project / "engine/src/lightning_shards/errors.py").open("a") as file:
        file.write("# mine\n")
    (project / "engine/src/lightning_shards/mine.py").touch()
    done = run(check, project)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "engine/src/lightning_shards/errors.py and 1 more was changed" in done.stderr and "src/" in done.stderr
    succeed([*check, "write"], project)
    assert succeed(check, project) == ""


def test_make_alone_lists_the_verbs(default_bake: Path) -> None:
    said = succeed("make", default_bake)
    assert re.findall(r"make (\w+)", said)[:5] == ["help", "setup", "demo", "test", "lint"]


def test_makefile_without_python_is_one_sentence(default_bake: Path, tmp_path: Path) -> None:
    """Where neither uv nor Python is, make says what to install and leaves nothing."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "bash", "make", "awk", "rm"):
        found = succeed(f"command -v {name}", tmp_path).strip()
        (tools / name).symlink_to(found)
    for folder in (default_bake, PROJECT.parent):
        done = run(["make", "UV=.uv/none", ".uv/bin/uv"], folder, env={"PATH": str(tools)})
        if (folder / ".uv" / "bin" / "uv").exists():
            continue
        assert done.returncode != 0
        assert "python3 is missing: install Python 3.11 or newer." in done.stderr


def test_a_bake_in_build_never_loses_what_a_person_changed(tmp_path: Path) -> None:
    """`make demo`, `bake`, `lint` and `bench` begin with it. Environment, data and runs are kept; edits are refused."""
    place = tmp_path / "build" / "demo"
    bake_again = [sys.executable, str(PROJECT.parent / "tools" / "bake.py"), str(place)]
    home = {"HOME": str(tmp_path)}
    assert f"    cd {place}\n" in succeed(bake_again, tmp_path, env=home), "where it lies, not where it was made"
    for name in ("runs/first/report.html", "data/sample/dataset.json", ".venv/x", "uv.lock", ".mypy_cache/x"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("kept")
    succeed(bake_again, tmp_path, env=home)
    assert (place / "runs/first/report.html").read_text() == (place / "uv.lock").read_text() == "kept"
    for name, text in (("train.py", "mine"), ("src/mine.py", "mine"), ("README.md", None)):
        before = (place / name).read_text() if (place / name).exists() else None
        (place / name).write_text(text) if text else (place / name).unlink()
        done = run(bake_again, tmp_path, env=home)
        assert done.returncode == 1 and "that you changed" in done.stderr and name in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and (place / name).exists() == bool(text)
        (place / name).write_text(before) if before else (place / name).unlink()
    succeed(bake_again, tmp_path, env=home)
    assert [path.name for path in place.parent.iterdir() if path.is_dir()] == ["demo"]


KILLED = """
import os, runpy, shutil, sys
from pathlib import Path
left = int(sys.argv.pop(1))
def counted(real):
    def function(*arguments, **keywords):
        global left
        if "build" in str(arguments[0]):
            left -= 1
            if not left:
                os._exit(9)
        return real(*arguments, **keywords)
    return function
Path.rename, shutil.rmtree = counted(Path.rename), counted(shutil.rmtree)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_bake_that_is_killed_at_any_moment_loses_no_data(tmp_path: Path) -> None:
    place, home = tmp_path / "build" / "demo", {"HOME": str(tmp_path)}
    tool = [str(PROJECT.parent / "tools" / "bake.py"), str(place)]
    succeed([sys.executable, *tool], tmp_path, env=home)
    for name in ("runs/first/last.ckpt", "data/sample/dataset.json"):
        (place / name).parent.mkdir(parents=True)
        (place / name).write_text("kept")
    for moment in itertools.count(1):
        killed = run([sys.executable, "-c", KILLED, str(moment), *tool], tmp_path, env=home)
        succeed([sys.executable, *tool], tmp_path, env=home)
        assert (
            (place / "runs/first/last.ckpt").read_text() == (place / "data/sample/dataset.json").read_text() == "kept"
        )
        if killed.returncode == 0:
            break
    assert moment > 5
    assert [path.name for path in place.parent.iterdir() if path.is_dir()] == ["demo"]


def test_make_clean_leaves_what_a_person_made(default_bake: Path, tmp_path: Path) -> None:
    shutil.copy(PROJECT.parent / "Makefile", tmp_path)
    there = tmp_path / "build" / DEFAULT
    shutil.copytree(default_bake, there)
    mine = [there / name for name in ("runs/one/checkpoints/last.ckpt", "data/mine/dataset.json", "src/mine.py")]
    gone = [
        there / ".venv" / "x",
        there / ".ruff_cache" / "x",
        tmp_path / "build" / "bench" / "x",
        tmp_path / ".venv/x",
    ]
    for path in (*mine, *gone):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert f"build/{DEFAULT} stays" in succeed("make clean", tmp_path)
    assert all(path.exists() for path in mine) and not any(path.parent.exists() for path in gone)
    succeed("make clean", tmp_path)


@pytest.mark.parametrize("makefile", [PROJECT.parent / "Makefile", None], ids=["template", "project"])
def test_make_finds_uv_in_a_folder_with_a_space(makefile: Path | None, default_bake: Path, tmp_path: Path) -> None:
    """On the path, and as the copy that make itself has fetched; in a checkout whose own path has a space."""
    checkout, tools = tmp_path / "my checkout", tmp_path / "my tools"
    for program in (checkout / ".uv" / "bin" / "uv", tools / "uv"):
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\necho "$0 $*" >>"{tmp_path}/calls"\n')
        program.chmod(0o755)
    (checkout / "Makefile").write_bytes((makefile or default_bake / "Makefile").read_bytes())
    verb = "test" if makefile else "setup"
    for path, expected in (("/usr/bin:/bin", ".uv/bin/uv "), (f"{tools}:/usr/bin:/bin", f"{tools}/uv ")):
        (tmp_path / "calls").write_text("")
        succeed(["env", "-u", "UV", "make", verb], checkout, env={"PATH": path})  # `uv run` names itself in UV
        assert (tmp_path / "calls").read_text().startswith(expected)
