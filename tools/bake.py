"""`make bake`: the default project in build/, made anew; a file there that a person changed is never lost.

What a bake wrote is remembered beside it, by checksums. Environment, lock, data and runs stay where they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from cookiecutter.main import cookiecutter

ROOT = Path(__file__).resolve().parent.parent
KEPT = (".venv", ".uv", "uv.lock", "data", "runs")
MADE = ("__pycache__", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".import_linter_cache")


def digests(folder: Path) -> dict[str, str]:
    """Checksums of a bake's files, by their paths in it; without what its tools make."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[0] not in KEPT and not {*MADE} & {*parts}:
            found["/".join(parts)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def changed(bake: Path, before: dict[str, str]) -> list[str]:
    """Files of a bake that a person has changed, added or removed since it was made."""
    now = digests(bake)
    return sorted(name for name in {*now, *before} if now.get(name) != before.get(name))


def settle(bake: Path, old: Path) -> None:
    """What stays goes from the old bake to its place, also where an earlier call was stopped before that."""
    if not old.exists():
        return
    if not bake.exists():
        old.rename(bake)
        return
    for name in KEPT:
        if os.path.lexists(old / name) and not os.path.lexists(bake / name):
            (old / name).rename(bake / name)
    shutil.rmtree(old)


def main(bake: Path) -> None:
    new = bake.with_name("new")
    record, old = (bake.with_name(bake.name + end) for end in (".files.json", ".old"))
    settle(bake, old)
    shutil.rmtree(new, ignore_errors=True)
    os.environ["BAKED_INTO"] = str(bake.resolve())  # what the hook that runs in `new` says to the person
    made = Path(cookiecutter(str(ROOT), no_input=True, default_config=True, output_dir=str(new)))
    written = digests(made)
    if bake.exists():
        before = json.loads(record.read_text()) if record.exists() else written
        if mine := changed(bake, before):
            shutil.rmtree(new)
            sys.exit(
                f"{bake} has {len(mine)} file{'s' * (len(mine) > 1)} that you changed, such as {mine[0]}: move the "
                f"folder away to keep it (mv {bake} ../my-project), or remove it, and run the command again"
            )
        bake.rename(old)
    record.write_text(json.dumps(written, indent=0))
    made.rename(bake)
    new.rmdir()
    settle(bake, old)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
