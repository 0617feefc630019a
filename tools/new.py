"""`make new`: asks the questions, or takes the answers that stand on the command line, and makes a project.

    python tools/new.py FOLDER [--no-input] [NAME=ANSWER]...

Cookiecutter does the work. What it leaves is said here: an answer to a question that there is not is refused, where it
would pass it over, and what it logs below the sentence that says why an answer is refused is not shown.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from cookiecutter.cli import main as cookiecutter

ROOT = Path(__file__).resolve().parent.parent


def unknown(words: Sequence[str], questions: Sequence[str]) -> str | None:
    """A sentence about the first answer whose question does not exist."""
    for word in words:
        name, given, _ = word.partition("=")
        if given and not name.startswith("-") and name not in questions:
            near = get_close_matches(name, questions, n=1)
            return f"there is no question {name!r}: " + (f"is {near[0]} meant?" if near else ", ".join(questions))
    return None


def main(folder: str, words: Sequence[str]) -> None:
    questions = [name for name in json.loads((ROOT / "cookiecutter.json").read_text()) if not name.startswith("_")]
    if sentence := unknown(words, questions):
        sys.exit(sentence)
    logging.disable()
    before = entries(folder)
    try:
        cookiecutter([str(ROOT), "--output-dir", folder, *words])
    except OSError as why:
        sys.exit(unwritten(folder, before, why))
    except ValueError as why:
        sys.exit(str(why))


def entries(folder: str) -> set[Path]:
    try:
        return set(Path(folder).resolve().iterdir())
    except OSError:
        return set()


def unwritten(folder: str, before: set[Path], error: OSError) -> str:
    """A sentence about a project that the disk does not take, of which nothing is left."""
    why = error.strerror
    if isinstance(error, shutil.Error):  # one for each file
        why = re.sub(r"^\[Errno \d+\] |: '.*", "", str(error.args[0][0][2]))
    if not why:
        return str(error)  # cookiecutter's own sentence
    for frame, _ in traceback.walk_tb(error.__traceback__):  # cookiecutter knows where it writes, and does not say it
        place = frame.f_locals.get("project_dir")
        if frame.f_code.co_name == "generate_files" and place and Path(place).resolve() in entries(folder) - before:
            shutil.rmtree(place, ignore_errors=True)
    left = ", ".join(sorted(map(str, entries(folder) - before)))
    end = f": remove what is half written, {left}" if left else ""
    return f"the project cannot be written to {folder} ({why}){end}"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
