"""The update path: a project made with cruft from an older template takes over what a newer one changed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from template import DEFAULT, ROOT, litter, run, succeed

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
