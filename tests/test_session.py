"""A person at the keyboard: the questions, typed answers and defaults, and Ctrl-C in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from template import PATIENCE, ROOT, environment, run


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start cookiecutter as a person would, with questions."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        (tmp_path / "bakes").mkdir()
        command = [sys.executable, "-m", "cookiecutter", "--default-config", str(ROOT)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command,
            cwd=tmp_path / "bakes",
            env=environment({"HOME": str(tmp_path)}),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_person_who_answers(session: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    """Typed answers count, empty ones take the default, and braces typed by a person are refused as well."""
    typed = ["Cat's \\ café", "", "", "", "", "2", "", "64", "3", "1", "", "", "2", "y", "n"]
    out, err = session().communicate("\n".join(typed) + "\n", timeout=PATIENCE)
    (project,) = (tmp_path / "bakes").iterdir()
    assert project.name == "cat-s-cafe", out + err
    assert "BSD 3-Clause" in (project / "LICENSE").read_text()
    assert (project / "Dockerfile").exists() and not (project / ".github").exists()
    assert "whl/cpu" in (project / "pyproject.toml").read_text()
    assert "Weights & Biases project" in out and "[15/15]" in out


def test_person_who_types_template_syntax(session: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    process = session()
    _, err = process.communicate("Cats {{ x }}\ncats\n" + "\n" * 13, timeout=PATIENCE)
    assert process.returncode == 1 and "project_name has" in err and "type it without" in err
    assert list((tmp_path / "bakes").iterdir()) == []


def test_interrupt_leaves_nothing(session: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    process = session()
    assert process.stdin and process.stdout
    process.stdin.write("My cats\n\n")
    process.stdin.flush()
    seen = ""
    while "[3/15]" not in seen:
        letter = process.stdout.read(1)
        assert letter, seen
        seen += letter
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert list((tmp_path / "bakes").iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("package_name=class", "package_name 'class' is a word"),
        ("license=GPL", "GPL provided for choice variable license"),
    ],
)
def test_make_new_says_what_is_wrong_in_one_sentence(answer: str, sentence: str, tmp_path: Path) -> None:
    answers = f"--no-input --default-config {answer}"
    done = run(["make", "new", f"OUT={tmp_path}", f"ANSWERS={answers}"], ROOT)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode == 2 and sentence in lines[0], done.stderr
    assert "Traceback" not in done.stderr + done.stdout and len(lines) == 1, done.stderr
    assert list(tmp_path.iterdir()) == []
