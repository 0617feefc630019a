"""The engine's tests and the project's own, those first that use the device, a file in each process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from . import TEMPLATE, Figures, Setup, environment, last_lines

FIRST = ("waits", "augment", "train", "loading", "resume", "forecast", "training", "decoding_process", "cost", "report")
TRIAL = ("decoding_process",)
OUTCOME = re.compile(r"^(tests/\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
AT_ONCE = 8  # files at most


def figures(setup: Setup) -> Figures:
    files = {path.stem.removeprefix("test_"): path for path in sorted((TEMPLATE / "tests/engine").glob("test_*.py"))}
    files |= {f"project: {path.stem.removeprefix('test_')}": path for path in sorted(Path("tests").glob("test_*.py"))}
    names = sorted(files, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    if setup.quick:
        names = [name for name in names if name in TRIAL]
    at_once = max(1, min(AT_ONCE, len(os.sched_getaffinity(0)) // 2))
    with ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(one_file, files[name], setup): name for name in names}
        for done in as_completed(running):
            yield running[done], done.result()


def one_file(path: Path, setup: Setup) -> dict[str, Any]:
    """How the tests of a file went: their numbers, and the names of what failed."""
    if setup.left < 1:
        return {"left_out": "no time was left"}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(path)]
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    if path.is_relative_to(TEMPLATE / "tests"):
        options |= {"cwd": TEMPLATE, "env": os.environ | {"WANDB_MODE": "offline"}}
    else:
        options["env"] = environment()
    process = subprocess.Popen(command, text=True, errors="replace", **options)
    try:
        said, _ = process.communicate(timeout=max(1.0, setup.left))
        result: dict[str, Any] = {"status": process.returncode}
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # as Ctrl-C: pytest cleans up, and says how far it got
        try:
            said, _ = process.communicate(timeout=8)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
        result = {"stopped": "no time was left"}
    outcomes = dict(OUTCOME.findall(said))
    for kind in ("PASSED", "FAILED", "SKIPPED"):
        result[kind.lower()] = sum(outcome == kind for outcome in outcomes.values())
    result["errors"] = sum(outcome == "ERROR" for outcome in outcomes.values())
    failed = sorted(test for test, outcome in outcomes.items() if outcome in ("FAILED", "ERROR", "XPASS"))
    if failed or result.get("status", 0) not in (0, 5):
        result |= {"names": failed, "error": last_lines(said)}
    return result
