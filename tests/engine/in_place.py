"""The default project as the tests see it: no bake, but links to the template's own files.

`build/in_place/` has what a project has. The team's package is a link, under the name `team`, so what is edited there
is what runs; the few files with template syntax are rendered with the default answers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import jinja2

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "{{cookiecutter.project_slug}}"
PROJECT = ROOT / "build" / "in_place"
PACKAGE = "team"
_RENDERED = ("train.py", "sweep.yaml", "README.md", "configs/*.yaml", "slurm/*")
_LINKED = {"sample": "sample", "prices.yaml": "prices.yaml", "engine": "engine"}


def _answers() -> dict[str, Any]:
    """The default answers; of a list of choices the first, for the scaling the last, whose files are the most."""
    answers: dict[str, Any] = {}
    environment = jinja2.Environment(extensions=["cookiecutter.extensions.SlugifyExtension"])
    for name, default in json.loads((ROOT / "cookiecutter.json").read_text()).items():
        if not name.startswith("_"):
            text = default[0] if isinstance(default, list) else default
            answers[name] = (
                environment.from_string(text).render(cookiecutter=answers) if isinstance(text, str) else text
            )
    return {**answers, "package_name": PACKAGE, "scaling": "slurm"}


def prepare() -> Path:
    """Make the folder, or bring it up to date; returns it."""
    environment = jinja2.Environment(
        keep_trailing_newline=True, extensions=["cookiecutter.extensions.JsonifyExtension"]
    )
    answers = _answers()
    for source in (path for pattern in _RENDERED for path in TEMPLATE.glob(pattern)):
        text = environment.from_string(source.read_text()).render(cookiecutter=answers)
        place = PROJECT / source.relative_to(TEMPLATE)
        if not place.exists() or place.read_text() != text:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_name(f".{place.name}.{os.getpid()}")
            temporary.write_text(text)
            temporary.replace(place)
    for name, target in {**_LINKED, f"src/{PACKAGE}": "src/{{cookiecutter.package_name}}"}.items():
        place = PROJECT / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_symlink():
            temporary = place.with_name(f".{place.name}.{os.getpid()}")
            temporary.symlink_to(TEMPLATE / target)
            temporary.replace(place)
    folders = [str(PROJECT), str(PROJECT / "src")]
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, str(ROOT / "tests"), *_inherited(folders)])
    return PROJECT


def _inherited(folders: list[str]) -> list[str]:
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [folder for folder in before if folder and folder not in (*folders, str(ROOT / "tests"))]


prepare()
