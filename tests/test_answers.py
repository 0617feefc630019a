"""Answers: bad ones are refused with one sentence before anything is written, odd but good ones survive."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from template import DEFAULT, ROOT, bake, cookiecutter, python_of, run

BAD = [
    ("project_name", "", "project_name is empty"),
    ("project_name", "two\nlines", "project_name has a line break"),
    ("project_name", "bell\a", "project_name has a line break or a control character"),
    ("project_name", "!!!", "project_slug '' cannot be"),
    ("description", "x" * 301, "description has 301 characters"),
    ("author", " ", "author is empty"),
    ("project_slug", "../x", "project_slug '../x' cannot be"),
    ("project_slug", "a/b", "project_slug 'a/b' cannot be"),
    ("project_slug", "../../deep/er", "project_slug '../../deep/er' cannot be"),
    ("project_slug", "..", "project_slug '..' cannot be"),
    ("project_slug", "two words", "project_slug 'two words' cannot be"),
    ("project_slug", "-x", "project_slug '-x' cannot be"),
    ("project_slug", "x" * 300, "project_slug has 300 characters"),
    ("project_slug", "Torch", "project_slug 'Torch' is the name of a package"),
    ("project_slug", "opencv_python.headless", "project_slug 'opencv_python.headless' cannot be"),
    ("project_slug", "opencv_python_headless", "is the name of a package"),
    ("project_slug", "lightning-shards", "is the name of a package"),
    ("package_name", "two-words", "package_name 'two-words' cannot be imported"),
    ("package_name", "2nd", "package_name '2nd' cannot be imported"),
    ("package_name", "données", "cannot be imported"),
    ("package_name", "a.b", "package_name 'a.b' cannot be imported"),
    ("package_name", "../x", "package_name '../x' cannot be imported"),
    ("package_name", "class", "package_name 'class' is a word of the Python language"),
    ("package_name", "match", "package_name 'match' is a word of the Python language"),
    ("package_name", "types", "package_name 'types' would hide"),
    ("package_name", "torch", "package_name 'torch' would hide"),
    ("package_name", "PIL", "package_name 'PIL' would hide"),
    ("package_name", "test", "package_name 'test' would hide"),
    ("package_name", "src", "package_name 'src' would hide"),
    ("package_name", "train", "package_name 'train' would hide"),
    ("package_name", "lightning_shards", "package_name 'lightning_shards' would hide"),
    ("package_name", "engine", "package_name 'engine' would hide"),
    ("package_name", "x" * 65, "package_name has 65 characters"),
    ("image_size", "big", "image_size 'big' is not a size in pixels"),
    ("image_size", "15", "image_size '15' is not"),
    ("image_size", "1025", "image_size '1025' is not"),
    ("image_size", "-224", "image_size '-224' is not"),
    ("image_size", "224.0", "image_size '224.0' is not"),
    ("wandb_project", "a/b", "wandb_project 'a/b' is not"),
    ("wandb_project", "", "wandb_project '' is not"),
    ("wandb_entity", "a team", "wandb_entity 'a team' is not"),
]
# Cookiecutter itself refuses these, before it runs any hook of ours; its last line says what there is.
BAD_CHOICES = [
    ("license", "GPL", "choices are ['MIT'"),
    ("python_version", "3.10", "choices are ['3.11'"),
    ("task", "pose", "choices are ['single_label'"),
    ("torch_build", "cu100", "choices are ['default'"),
    ("github_actions", "maybe", "could not be converted to a boolean"),
    ("project_name", "{{ nobody }}", "'nobody' is undefined"),
]


@pytest.fixture(scope="module")
def hook() -> Any:
    """The hook as a module: before Jinja, it is Python as it stands."""
    spec = importlib.util.spec_from_file_location("pre_gen_project", ROOT / "hooks" / "pre_gen_project.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder to bake in, three deep in an empty one, so that what is written beside it shows."""
    inside = tmp_path / "one" / "two" / "three"
    inside.mkdir(parents=True)
    return inside


@pytest.mark.parametrize(("name", "answer", "sentence"), BAD)
def test_bad_answer_is_refused_and_nothing_written(name: str, answer: str, sentence: str, room: Path) -> None:
    done = run(cookiecutter({name: answer}), room, env={"HOME": str(room.parents[2] / "home")})
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if re.match("(project|package|image|wandb|desc|author)", line)]
    assert len(said) == 1 and sentence in said[0] and "type" in said[0] and said[0].endswith("."), done.stderr
    everything = {str(path.relative_to(room.parents[2])) for path in room.parents[2].rglob("*")}
    assert {path for path in everything if not path.startswith("home")} == {"one", "one/two", "one/two/three"}


@pytest.mark.parametrize(("name", "answer", "sentence"), BAD_CHOICES)
def test_bad_choice_is_refused_and_nothing_written(name: str, answer: str, sentence: str, room: Path) -> None:
    done = run(cookiecutter({name: answer}), room, env={"HOME": str(room.parents[2] / "home")})
    assert done.returncode == 1
    assert sentence in done.stdout + done.stderr
    assert list(room.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tsk=multi_label"], "there is no question 'tsk': is task meant?"),
        (["colour=red"], "there is no question 'colour': project_name, "),
        (["task=pose"], "pose provided for choice variable task, but the choices are"),
        (["image_size=5"], "image_size '5' is not a size in pixels"),
        ([], "Unable to create directory"),
    ],
)
def test_make_new_says_in_a_sentence_what_it_does_not_take(words: list[str], sentence: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    if not words:
        folder.write_text("a file")
    done = run([sys.executable, str(ROOT / "tools" / "new.py"), str(folder), "--no-input", *words], tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(sentence) and "Traceback" not in done.stderr, done.stderr
    assert folder.read_text() == "a file" if not words else not list(folder.glob("*"))


@pytest.mark.parametrize("blocks", [4, 64])  # of 1 kB, the most that a file may have
def test_make_new_on_a_full_disk_is_a_sentence_and_leaves_nothing(blocks: int, tmp_path: Path) -> None:
    (tmp_path / "out" / "other").mkdir(parents=True)
    script = f'ulimit -f {blocks}; exec "$0" "$1" out --no-input'
    done = run(["bash", "-c", script, sys.executable, str(ROOT / "tools" / "new.py")], tmp_path)
    assert done.returncode == 1 and [path.name for path in (tmp_path / "out").iterdir()] == ["other"]
    assert done.stderr == "the project cannot be written to out (File too large)\n"


def answers_with(**given: Any) -> dict[str, Any]:
    """Answers as the hook gets them."""
    good: dict[str, Any] = {
        "project_name": "A",
        "project_slug": "a",
        "package_name": "a",
        "description": "A.",
    }
    good |= {
        "author": "A",
        "license": "MIT",
        "python_version": "3.11",
        "image_size": "224",
        "task": "single_label",
    }
    good |= {"scaling": "one_gpu", "wandb_project": "a", "wandb_entity": "", "torch_build": "default"}
    return good | given


def test_hook_knows_every_choice(hook: Any) -> None:
    questions = json.loads((ROOT / "cookiecutter.json").read_text())
    offered = {name: tuple(default) for name, default in questions.items() if isinstance(default, list)}
    assert {name: value for name, value in offered.items() if not name.startswith("_")} == hook.CHOICES
    assert list(hook.problems(answers_with())) == []
    for name in hook.CHOICES:
        assert len(list(hook.problems(answers_with(**{name: "other"})))) == 1
    for mark in hook.MARKS:
        assert len(list(hook.problems(answers_with(author=f"A {mark} b")))) == 1


@pytest.mark.project
def test_no_module_of_a_dependency_can_be_hidden(hook: Any, project: Path) -> None:
    """Whatever module a dependency of a real project brings is refused as the name of a package."""
    code = (
        "import importlib.metadata as m, json, re\n"
        "needed, asked = set(), ['{DEFAULT}', 'lightning-shards']\n"
        "for name in asked:\n"
        "    needed |= {re.split('[^A-Za-z0-9_.-]', line)[0].lower() for line in m.requires(name)}\n"
        "found = m.packages_distributions().items()\n"
        "print(json.dumps([name for name, by in found if needed & {one.lower() for one in by}]))\n"
    ).replace("{DEFAULT}", DEFAULT)
    modules = json.loads(run([python_of(project), "-c", code], project).stdout)
    assert {"torch", "cv2", "webdataset", "pynvml"} <= set(modules)
    named = {name.lower() for name in modules if name.isidentifier() and not name.startswith("_")}
    assert named - hook.taken_names() == set()


NASTY = [
    """It's "quoted", 100% <b>&amp; \\n \\ C:\\temp $HOME `id` ${x} #!""",
    "Données d'été 画像 🖼️ — ﷽ \u00a0ñ",
    '\'\'\'triple""" r""" \\',
    "[x](y) | *bold* _under_ # : { } - ? , @",
]


@pytest.mark.parametrize("text", NASTY)
def test_free_text_survives(text: str, tmp_path: Path) -> None:
    project = bake(tmp_path / "bakes", project_name=text, project_slug="x", description=text, author=text)
    settings = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert settings["description"] == text
    assert settings["authors"] == [{"name": text}]
    readme = (project / "README.md").read_text(encoding="utf-8")
    assert f"# {text}\n\n{text}\n" in readme
    assert f"Copyright (c) {text}\n" in (project / "LICENSE").read_text(encoding="utf-8")
    for path in [*project.rglob("*.yaml"), *project.rglob("*.yml")]:
        yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in project.rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")
