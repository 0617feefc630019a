"""The update path: a project made with cruft from an older template takes over what a newer one changed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from template import DEFAULT, ROOT, cookiecutter, litter, run, succeed

WHO = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
CRUFT = [sys.executable, "-m", "cruft"]
PROJECT_FOLDER = "{{cookiecutter.project_slug}}"


def commit(folder: Path, message: str) -> str:
    """Commit everything in a folder (a repository from now on); return the commit."""
    succeed(["git", "init", "--quiet", "--initial-branch", "main"], folder)
    succeed(["git", "add", "--all"], folder)
    succeed(["git", *WHO, "commit", "--quiet", "--message", message], folder)
    return succeed(["git", "rev-parse", "HEAD"], folder).strip()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A copy of the template, with a first commit."""
    copy = tmp_path / "template"
    shutil.copytree(ROOT, copy, ignore=litter)
    commit(copy, "Older")
    return copy


def test_update_brings_what_changed_and_keeps_what_is_mine(template: Path, tmp_path: Path) -> None:
    answers = {"author": """It's "us" & \\ café""", "task": "regression", "container_file": "true"}
    home = {"HOME": str(tmp_path)}
    succeed(
        [*CRUFT, "create", str(template), "--no-input", "--extra-context", json.dumps(answers)],
        tmp_path,
        env=home,
    )
    project = tmp_path / DEFAULT
    edit(project / "README.md", "## Map", "## Our own words\n\n## Map")
    (project / "notes.md").write_text("Mine.\n")
    commit(project, "Made with cruft, then edited")
    succeed([*CRUFT, "check"], project, env=home)

    edit(template / PROJECT_FOLDER / "Makefile", "## the tests", "## the tests, all of them")
    (template / PROJECT_FOLDER / "src" / "{{cookiecutter.package_name}}" / "newer.py").write_text("NEWER = True\n")
    newer = commit(template, "Newer")
    assert run([*CRUFT, "check"], project, env=home).returncode == 1

    said = succeed([*CRUFT, "update", "--skip-apply-ask"], project, env=home)
    assert "the tests, all of them" in (project / "Makefile").read_text(), said
    assert (project / "src" / "lightning_shards_demo" / "newer.py").read_text() == "NEWER = True\n"
    assert "## Our own words" in (project / "README.md").read_text()
    assert (project / "notes.md").read_text() == "Mine.\n"
    assert answers["author"] in (project / "LICENSE").read_text()
    assert (project / "Dockerfile").exists() and (project / "sample" / "targets.csv").exists()
    assert not list(project.rglob("*.rej")) and not list(project.rglob("*.orig"))
    assert json.loads((project / ".cruft.json").read_text())["commit"] == newer
    changed = succeed(["git", "status", "--short", "--untracked-files=all"], project).split("\n")
    assert sorted(line[3:] for line in changed if line) == [
        ".cruft.json",
        "Makefile",
        "src/lightning_shards_demo/newer.py",
    ]
    succeed([*CRUFT, "check"], project, env=home)


def make(template: Path, where: Path, **answers: str) -> Path:
    """A project as `make new` makes it of a template's newest commit, committed."""
    commit_of = succeed(["git", "rev-parse", "HEAD"], template).strip()
    environment = {"HOME": str(where), "TEMPLATE_COMMIT": commit_of, "TEMPLATE_SOURCE": str(template)}
    succeed(cookiecutter(answers, template), where, env=environment)
    project = where / DEFAULT
    commit(project, "Made")
    return project


def update(project: Path, *arguments: str) -> tuple[int, str]:
    """What `make update` ends with and says; cruft comes from this environment, not from a download."""
    uv = project.parent / "uv"
    uv.write_text(f'#!/bin/sh\nwhile [ "$1" != python ]; do shift; done\nshift\nexec {sys.executable} "$@"\n')
    uv.chmod(0o755)
    environment = {"HOME": str(project.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = run(["make", "update", f"UV={uv}", *arguments], project, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_make_update_replaces_the_engine_and_merges_the_rest(template: Path, tmp_path: Path) -> None:
    """Between two versions behind the split, with a team's edits in its own files and, against advice, in engine/."""
    project = make(template, tmp_path)
    package, engine = project / "src" / "lightning_shards_demo", project / "engine" / "src" / "lightning_shards"
    edit(package / "model.py", "class ImageModel(", "MINE = True\n\n\nclass ImageModel(")
    edit(engine / "errors.py", "class InputError", "# my change\n\n\nclass InputError")
    edit(engine / "files.py", "from __future__", "# mine too\nfrom __future__")
    (engine / "added.py").write_text("MINE = 1\n")
    (engine / "png_helper.py").write_text("MINE = 1\n")
    commit(project, "Edited")

    source = template / PROJECT_FOLDER
    newer = source / "engine" / "src" / "lightning_shards"
    edit(newer / "errors.py", "class InputError", "# their change\n\n\nclass InputError")
    (newer / "data" / "newest.py").write_text("NEW = True\n")
    (newer / "testing.py").unlink()
    edit(source / "train.py", '"""Train on', '"""Newer: train on')
    theirs = commit(template, "Newer")

    status, said = update(project)
    assert status == 0, said
    made = {path.relative_to(project / "engine") for path in (project / "engine").rglob("*") if path.is_file()}
    given = {path.relative_to(source / "engine") for path in (source / "engine").rglob("*") if path.is_file()}
    assert {str(path) for path in made ^ given} == {"MANIFEST"}, said
    for path in given:
        assert (project / "engine" / path).read_bytes() == (source / "engine" / path).read_bytes(), path
    assert "errors.py" in said and "added.py" in said and "git diff HEAD -- engine" in said
    assert succeed([sys.executable, "engine/manifest.py"], project) == ""
    assert "MINE = True" in (package / "model.py").read_text() and "Newer: train" in (project / "train.py").read_text()
    assert json.loads((project / ".cruft.json").read_text())["commit"] == theirs
    assert not list(project.rglob("*.rej"))
    commit(project, "Updated")
    assert update(project) == (0, "nothing to do: this is the newest version of the template\n")


def test_make_update_marks_what_both_changed(template: Path, tmp_path: Path) -> None:
    project = make(template, tmp_path)
    edit(project / "train.py", '"""Train on', '"""Ours: train on')
    commit(project, "Edited")
    edit(template / PROJECT_FOLDER / "train.py", '"""Train on', '"""Theirs: train on')
    commit(template, "Newer")
    status, said = update(project)
    assert status == 0 and "both you and the template changed train.py" in said, said
    text = (project / "train.py").read_text()
    assert "<<<<<<<" in text and "Ours: train" in text and "Theirs: train" in text


def test_make_update_refuses_what_it_could_lose(template: Path, tmp_path: Path) -> None:
    """In one sentence, and nothing is changed: uncommitted work, a template that is gone, none that is known."""
    project = make(template, tmp_path)
    (project / "notes.md").write_text("Not committed.\n")
    status, said = update(project)
    assert status and "not committed" in said and "Traceback" not in said
    commit(project, "Notes")
    template.rename(tmp_path / "elsewhere")
    status, said = update(project)
    assert status and "the template cannot be read" in said and "Traceback" not in said, said
    (project / ".cruft.json").write_text('{"template": 3')
    commit(project, "Damaged")
    status, said = update(project)
    assert status and ".cruft.json does not say which template" in said and "Traceback" not in said, said
    (project / ".cruft.json").unlink()
    commit(project, "Forgotten")
    status, said = update(project)
    assert status and ".cruft.json is missing" in said
    assert succeed(["git", "status", "--porcelain"], project) == ""
    (project / ".cruft.json").write_text('{"template": "a", "commit": "b"}')
    without = run([sys.executable, "engine/update.py"], project, env={"PATH": str(tmp_path)})
    assert without.returncode and "there is no git" in without.stderr and "Traceback" not in without.stderr
    shutil.rmtree(project / ".git")
    outside = run([sys.executable, "engine/update.py"], project)
    assert outside.returncode and "not a git repository" in outside.stderr and "Traceback" not in outside.stderr


def test_make_new_remembers_its_template_and_takes_a_home(tmp_path: Path) -> None:
    """OUT may begin with ~ in quotes, where no shell expands it."""
    cache = succeed(["uv", "cache", "dir"], ROOT).strip()
    environment = {"HOME": str(tmp_path), "UV_CACHE_DIR": cache}
    succeed(["make", "new", "OUT=~/projects", "ANSWERS=--no-input --default-config"], ROOT, env=environment)
    project = tmp_path / "projects" / DEFAULT
    assert not (ROOT / "~").exists()
    if (ROOT / ".git").exists():  # where the template was copied without it, there is no version to remember
        state = json.loads((project / ".cruft.json").read_text())
        assert state["commit"] == succeed(["git", "rev-parse", "HEAD"], ROOT).strip()
        assert state["context"]["cookiecutter"]["project_slug"] == DEFAULT
