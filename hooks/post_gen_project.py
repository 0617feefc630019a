"""Take away what the answers did not ask for, and say what to do next.

Cookiecutter runs this in the finished project. It asks nothing, needs no network and leaves git alone; an
option is a file or folder that is there or is not: no code has holes cut into it. The steps printed are CI's.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


def unwanted(answers: dict[str, Any]) -> list[str]:
    """Files and folders of options that were not chosen, relative to the project."""
    paths = []
    if not answers["container_file"]:
        paths += ["Dockerfile", ".dockerignore"]
    if not answers["github_actions"]:
        paths += [".github"]
    composed = answers["task"] in ("segmentation", "detection")
    if composed or answers["task"] == "single_label":  # its sample is a folder for each class: no table needed
        paths += ["sample/targets.csv"]
    # Masks and boxes are made of the sample's images. Of single images, there are no features and no mixing then.
    paths += (
        ["configs/probe.yaml", "configs/scratch_long.yaml"] if composed else ["sample/compose.py", "sample/classes.txt"]
    )
    if answers["scaling"] == "one_gpu":
        paths += ["configs/many_gpus.yaml"]
    if answers["scaling"] != "slurm":
        paths += ["slurm"]
    return paths


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remember(answers: dict[str, Any], commit: str, source: str) -> None:
    """Write down which version of the template this is, as `cruft create` does, so that `make update` has a begin."""
    given = {name: answer for name, answer in answers.items() if not name.startswith("_")}
    state = {"template": source, "commit": commit, "checkout": None, "context": {"cookiecutter": given}}
    Path(".cruft.json").write_text(json.dumps({**state, "directory": None}, indent=2, ensure_ascii=False) + "\n")


def next_steps(name: str, folder: Path) -> str:
    """What to type now."""
    return f"""
{name} is ready. Next:

    cd {shlex.quote(str(folder))}
    make setup    # Python environment, pinned in uv.lock
    make lint     # format, lint, types
    make test     # the project's own tests
    make demo     # pack the sample images, train, test, report
"""


if __name__ == "__main__":
    given = json.loads(r"""{{ cookiecutter | tojson }}""")
    # A template in a working folder may hold what Python and its tools left there.
    caches = [path for pattern in ("__pycache__", ".*_cache") for path in Path().rglob(pattern)]
    for unwanted_path in [*(Path(name) for name in unwanted(given)), *caches]:
        remove(unwanted_path)
    subprocess.run([sys.executable, "-B", "engine/manifest.py", "write"], check=True)
    if commit := os.environ.get("TEMPLATE_COMMIT"):  # of `make new`
        remember(given, commit, os.environ["TEMPLATE_SOURCE"])
    print(next_steps(given["project_name"], Path(os.environ.get("BAKED_INTO") or Path.cwd())))
