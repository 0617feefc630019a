"""`make new`: asks the questions, or takes the answers that stand on the command line, and makes a project.

    python tools/new.py FOLDER [--no-input] [NAME=ANSWER]...

Cookiecutter does the work. What it leaves is said here: an answer to a question that there is not is refused, where it
would pass it over, and what it logs below the sentence that says why an answer is refused is not shown.
"""

from __future__ import annotations

import json
import logging
import sys
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
    try:
        cookiecutter([str(ROOT), "--output-dir", folder, *words])
    except (OSError, ValueError) as why:
        sys.exit(str(why))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
