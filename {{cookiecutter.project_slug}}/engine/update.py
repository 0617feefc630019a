"""`make update`: a later version of the template in this project. engine/ is replaced whole, your files are merged.

cruft merges: where you and the template changed the same lines, git's conflict markers say so. Nothing is committed:
`git diff HEAD` shows what came, `git reset --hard` takes it back. `make update TO=v1.2` takes that version.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import manifest

PROJECT = manifest.FOLDER.parent
STATE = PROJECT / ".cruft.json"


def fail(sentence: str) -> NoReturn:
    sys.exit(f"error: {sentence}")


def git(*arguments: str, where: Path = PROJECT) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True)
    except FileNotFoundError:
        fail("there is no git on this machine, by which an update merges: install it")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        fail(f"git {arguments[0]}: {lines[-1]}")
    return done.stdout


def check() -> dict[str, Any]:
    """What the project knows of its template; ends with a sentence where an update could lose something."""
    if not STATE.exists():
        fail("this project does not know its template (.cruft.json is missing): `uvx cruft link TEMPLATE` tells it")
    if git("status", "--porcelain").strip():
        fail("there are changes that are not committed: commit them first, so that an update can be taken back")
    try:
        state = dict(json.loads(STATE.read_text()))
    except ValueError:
        state = {}
    if not all(isinstance(state.get(name), str) for name in ("template", "commit")):
        fail(".cruft.json does not say which template this is: take it back from git, or `uvx cruft link TEMPLATE`")
    return state


def replace_engine(state: dict[str, Any]) -> None:
    """Put the template's engine, as it is in the version of `state`, into the place of this one."""
    with tempfile.TemporaryDirectory() as folder:
        git("clone", "--quiet", "--no-checkout", state["template"], folder)
        git("checkout", "--quiet", state["commit"], where=Path(folder))
        (source,) = (Path(folder) / (state.get("directory") or "")).glob("*cookiecutter.*/engine")
        shutil.rmtree(manifest.FOLDER)
        shutil.copytree(source, manifest.FOLDER)
    manifest.write()
    git("add", "--all", "engine")


def main() -> None:
    before, edited = check(), manifest.edited()
    wanted = ["--checkout", sys.argv[1]] if sys.argv[1:] and sys.argv[1] else []
    command = [sys.executable, "-m", "cruft", "update", "--skip-apply-ask", *wanted]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    state = json.loads(STATE.read_text())
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["cruft failed"]
        fail(f"the template cannot be read: {lines[-1]}")
    if state["commit"] == before["commit"]:
        print("nothing to do: this is the newest version of the template")
        return
    replace_engine(state)
    if edited:
        names = ", ".join(f"engine/{name}" for name in edited)
        print(f"your changes to {names} are not in the new engine; to see them: git diff HEAD -- engine")
    marked = git("diff", "--name-only", "--diff-filter=U").split()
    refused = [str(path.relative_to(PROJECT)) for path in PROJECT.rglob("*.rej") if ".venv" not in path.parts]
    if conflicts := sorted({*marked, *refused}):
        print(f"both you and the template changed {', '.join(conflicts)}: resolve the marked lines")
    print(f"updated to {state['commit'][:10]}; see `git diff HEAD`, then: make setup lint test, and commit")


if __name__ == "__main__":
    main()
