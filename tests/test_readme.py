"""What the READMEs tell people to type works. A fenced block after `<!-- run -->` is run as it stands."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from template import DEFAULT, PROJECT, ROOT, bake, litter, succeed

DOCS = PROJECT / "engine" / "docs"
BLOCK = re.compile(r"^<!-- run -->\n+```bash\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def blocks(readme: Path) -> list[str]:
    return BLOCK.findall(readme.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template as a person has it after `git clone`, in a folder with a space in its name."""
    copy = tmp_path_factory.mktemp("clone") / "lightning shards"
    shutil.copytree(ROOT, copy, ignore=litter)
    return copy


@pytest.mark.project
def test_demo_of_the_template(clone: Path) -> None:
    """The one command of the README's first screen, and what it leaves; but for a shorter training."""
    sample = clone / PROJECT.name / "configs" / "sample.yaml"
    assert sample.read_text().count("max_epochs: 8") == 1
    sample.write_text(sample.read_text().replace("max_epochs: 8", "max_epochs: 1"))
    commands = blocks(clone / "README.md")
    assert commands and commands[0].startswith("make demo")
    said = succeed(commands[0], clone)
    print(said[-3000:])
    (summary,) = (clone / "build" / DEFAULT / "runs").glob("*/summary.json")
    figures = json.loads(summary.read_text())
    assert figures["status"] == "done"
    report = summary.with_name("report.html")
    named = next(line for line in reversed(said.splitlines()) if line.startswith("  report "))
    assert clone / "build" / DEFAULT / named.split()[1] == report and "</html>" in report.read_text()
    assert figures["skipped"] == 0 and figures["images_seen"] == 8000


def test_other_commands_of_the_template(clone: Path) -> None:
    """The rest: a project of one's own, by answers on the command line."""
    others = blocks(clone / "README.md")[1:]
    assert others
    for command in others:
        succeed(command, clone)
    assert 'license = "Apache-2.0"' in (clone.parent / "cat-pictures" / "pyproject.toml").read_text()


def test_slurm_commands_of_the_docs() -> None:
    """They are those of the project's README, which its tests hand to a real Slurm."""
    readme = (PROJECT / "README.md").read_text()
    commands = re.findall(r"^sbatch .*$", (DOCS / "scaling.md").read_text(), flags=re.MULTILINE)
    assert len(commands) == 3 and all(command in readme for command in commands)


@pytest.mark.project
def test_scaling_commands_of_the_docs(project: Path, warm_python_of_project: str, tmp_path: Path) -> None:
    """As they stand, but for a shorter training, in an environment that is there."""
    uv = tmp_path / "uv"
    shorter = "--trainer.max_epochs 1 --data.fraction 0.1 --log.wandb false --log.report false"
    uv.write_text(f'#!/bin/sh\nshift\nexec "{warm_python_of_project}" "$@" {shorter}\n')
    uv.chmod(0o755)
    commands = blocks(DOCS / "scaling.md")
    assert len(commands) == 2
    for command in commands:
        said = succeed(f'PATH="{tmp_path}:$PATH"\n{command}', project)
        assert "test/accuracy" in said and ("2 x " in said) == ("devices 2" in command)


def test_torchrun_command_of_the_docs() -> None:
    """It is the one of the project's README, with the options with which its tests start several hosts."""
    docs, readme = (DOCS / "scaling.md").read_text(), (PROJECT / "README.md").read_text()
    command = re.findall(r"uv run torchrun .*?--config configs/desktop.yaml", docs, flags=re.DOTALL)[0]
    options = re.findall(r"--[a-z-]+(?= )", command.partition(" -- ")[0])
    starts = (ROOT / "tests" / "engine" / "starts.py").read_text()
    assert len(options) >= 6 and all(name in readme and f'"{name[2:]}"' in starts for name in options), options


def pages(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.md") if not {".venv", "build"} & set(path.relative_to(folder).parts)]


def broken_links(page: Path, inside: Path) -> list[str]:
    """The links of a page to files that are not there, or that lie outside a folder."""
    prose = re.sub(r"^```.*?^```|`[^`\n]+`(?!\])", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", prose)
    found = [(page.parent / target).resolve() for target in targets]
    return [str(path) for path in found if not path.exists() or not path.is_relative_to(inside.resolve())]


def test_links_of_the_template() -> None:
    """Every file that README, docs/ or the engine names by a link is there; of the engine, also where it lies alone."""
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *pages(ROOT / "docs")]:
        assert broken_links(page, ROOT) == [], page
    for page in pages(PROJECT / "engine"):
        assert broken_links(page, PROJECT / "engine") == [], page


def test_links_of_a_project(default_bake: Path) -> None:
    for page in pages(default_bake):
        assert broken_links(page, default_bake) == [], page


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression", "segmentation", "detection"])
def test_map_of_a_project(task: str, tmp_path: Path) -> None:
    """Every file and folder in the map of a project's README is there."""
    project = bake(tmp_path / "bakes", task=task, scaling="slurm")
    (tree,) = re.findall(r"## Map\n\n```\n(.*?)```", (project / "README.md").read_text(), flags=re.DOTALL)
    folder = project
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = project
        assert (folder / name).exists(), name
        if not line.startswith(" ") and name.endswith("/"):
            folder = project / name
