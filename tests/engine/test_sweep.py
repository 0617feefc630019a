"""`sweep.yaml` with the real `wandb agent`; on loopback, a server that gives it the trials as W&B's does."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from team.objectives import OBJECTIVES
from wandb.sdk.launch.sweeps.utils import load_sweep_config

from . import PATIENCE
from .conftest import write_dataset
from .in_place import PROJECT

TRIAL = {"model.learning_rate": 0.003, "model.weight_decay": 0.05, "data.crop_scale": "[0.5, 1.0]"}


class Sweeps(http.server.BaseHTTPRequestHandler):
    """Answers what `wandb agent` asks: the sweep, who it is, and what to do next."""

    config: ClassVar[str] = ""
    given: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = json.dumps({"data": self._answer(asked["query"], asked.get("variables") or {})}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "SweepWithRuns" in query:
            return {"project": {"sweep": {"id": "s", "name": "s", "config": self.config, "runs": {"edges": []}}}}
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "a"}}}
        if "agentHeartbeat" in query:
            busy = any(json.loads(given["runState"]).values())
            return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps([] if busy else [self._next()])}}
        return {"viewer": {"id": "v", "entity": "team", "username": "team", "flags": "{}", "teams": {"edges": []}}}

    def _next(self) -> dict[str, Any]:
        if self.given:
            return {"type": "exit"}
        self.given.append("trial")
        arguments = {name: {"value": value} for name, value in TRIAL.items()}
        return {"type": "run", "run_id": "trial", "program": "train.py", "args": arguments}

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    Sweeps.config, Sweeps.given = (PROJECT / "sweep.yaml").read_text(), []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sweeps) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_an_agent_runs_a_trial(tmp_path: Path, server: str) -> None:
    """It is a run of its own, with the id that W&B gave it and the settings it was to try."""
    for name in ("configs", "prices.yaml", "train.py", "src"):
        (tmp_path / name).symlink_to(PROJECT / name)
    write_dataset(tmp_path / "data/sample", sizes=(80, 80, 80, 80), held_out=20)
    uv = tmp_path / "bin/uv"  # in the environment of these tests, not in a new one
    uv.parent.mkdir()
    uv.write_text(f'#!/bin/sh\nshift\nexec "{sys.executable}" "$@"\n')
    uv.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{uv.parent}:{os.environ['PATH']}",
        "WANDB_BASE_URL": server,
        "WANDB_API_KEY": "0123456789" * 4,
        "WANDB_MODE": "offline",
        "WANDB_AGENT_DISABLE_FLAPPING": "true",
    }
    command = [sys.executable, "-m", "wandb", "agent", "team/project/s"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and Sweeps.given == ["trial"], done.stdout[-2000:] + done.stderr[-4000:]
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "wandb-id.txt").read_text().strip() == "trial"
    settings, told = yaml.safe_load((run / "config.yaml").read_text()), json.loads((run / "summary.json").read_text())
    for name, value in TRIAL.items():
        room, _, setting = name.partition(".")
        assert settings[room][setting] == (json.loads(value) if isinstance(value, str) else value)
    assert settings["data"]["fraction"] == 0.25 and settings["patience"] == 3 and told["status"] == "done"
    assert yaml.safe_load(Sweeps.config)["metric"]["name"] in told["metrics"], "what the sweep looks at is measured"


def test_wandb_takes_the_file_and_it_looks_at_what_picks_the_best_weights() -> None:
    config = load_sweep_config(str(PROJECT / "sweep.yaml"))
    assert config is not None and {"program", "method", "metric", "parameters", "early_terminate"} <= set(config)
    goals = {one.monitor: {"max": "maximize", "min": "minimize"}[one.mode] for one in OBJECTIVES.values()}
    assert goals[config["metric"]["name"]] == config["metric"]["goal"]
