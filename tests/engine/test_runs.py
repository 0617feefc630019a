"""`runs`: the table of all runs, whatever state they are in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning_shards.reporting.table import COLUMNS
from team import __main__ as commands


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a real run, two that differ from it, an old one, one that is broken and one that is empty."""
    runs = tmp_path / "runs"
    for name, values, settings in (
        ("first", {}, {}),
        ("better", {"test/accuracy": 0.99, "kwh": 0.5, "cost": 0.2}, {"learning_rate": 0.01}),
        ("old", {"test/accuracy": 0.1}, {"learning_rate": 0.01}),
    ):
        shutil.copytree(trained / "runs/first", runs / name, ignore=shutil.ignore_patterns("wandb"))
        summary = json.loads((runs / name / "summary.json").read_text())
        accuracy = values.pop("test/accuracy", summary["metrics"]["test/accuracy"])
        summary |= {**values, "metrics": {"test/accuracy": accuracy}}
        if name == "old":
            summary = {key: summary[key] for key in ("status", "metrics", "seconds")} | {"status": "stopped"}
        (runs / name / "summary.json").write_text(json.dumps(summary))
        config = yaml.safe_load((runs / name / "config.yaml").read_text())
        config["model"] |= settings
        if name == "old":
            del config["data"]["flip"]
        (runs / name / "config.yaml").write_text(yaml.safe_dump(config))
    (runs / "broken").mkdir()
    (runs / "broken" / "config.yaml").write_text("model: [")
    (runs / "broken" / "summary.json").write_text('{"status"')
    (runs / "empty").mkdir()
    (runs / "notes.txt").write_text("a file is no run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m it", "runs", *arguments])
    try:
        return commands.main()
    except SystemExit as end:
        return int(end.code or 0)


def rows(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> list[dict[str, Any]]:
    assert runs(monkeypatch, "--json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_rows_hold_what_differs_and_what_came_of_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    table = {row["run"]: row for row in rows(monkeypatch, capsys)}
    assert set(table) == {"first", "better", "old", "broken", "empty"}
    summary = json.loads(Path("runs/first/summary.json").read_text())
    first = table["first"]
    assert first["metric"] == {"name": "test/accuracy", "value": summary["metrics"]["test/accuracy"], "better": "max"}
    assert (first["images_seen"], first["seconds"]) == (summary["images_seen"], summary["seconds"])
    assert first["when"] == summary["began"] and first["status"] == "done" and first["missing"] == []
    assert first["settings"] == {"model.learning_rate": 0.00003}, "only settings in which runs differ"
    assert table["old"]["settings"] == {"model.learning_rate": 0.01}, "a setting that it did not have yet is none"
    assert table["better"]["kwh"] == 0.5 and table["old"]["kwh"] is None
    assert "does not say" in table["old"]["missing"][0] and "images_seen" in table["old"]["missing"][0]
    assert any("no YAML" in sentence for sentence in table["broken"]["missing"])
    assert any("config.yaml is not there" in sentence for sentence in table["empty"]["missing"])


def test_every_column_sorts(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def order(column: str) -> list[str]:
        return [row["run"] for row in rows(monkeypatch, capsys, "--sort", column)]

    for column in COLUMNS:
        assert sorted(order(column)) == ["better", "broken", "empty", "first", "old"]
    assert order("metric")[:3] == ["better", "first", "old"]
    assert order("energy")[0] == order("cost")[0] == "better"
    assert order("run") == ["better", "broken", "empty", "first", "old"]
    assert order("when")[-1] == "empty", "what is not known stands last"
    for folder in ("better", "first", "old"):
        path = Path("runs", folder, "summary.json")
        value = {"better": 0.1, "first": 0.2, "old": 0.3}[folder]
        metrics = {"metrics": {"test/mean_absolute_error": value}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"monitor": "mean_absolute_error"} | metrics))
    assert order("metric")[:3] == ["better", "first", "old"], "of errors, the smallest is the best"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {"val/accuracy": 0.05}}))
    assert order("metric")[:3] == ["better", "first", "old"], "an accuracy is no error, however small"
    assert runs(monkeypatch, "--sort", "metric") == 0
    assert "sorted by test/mean_absolute_error; behind it the runs that have val/" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["60", "200", None])
def test_the_table_is_readable(
    columns: str | None, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A narrow terminal wraps its lines: no number is cut."""
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    assert runs(monkeypatch, "--sort", "metric") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == [*COLUMNS, "settings"]
    assert "better" in printed[1] and "99.0% test/accuracy" in printed[1] and "learning_rate=0.01" in printed[1]
    assert any(line.startswith("broken: config.yaml is damaged") for line in printed)
    assert "\x1b" not in "".join(printed) and max(map(len, printed[:6])) <= 200


def test_no_runs_and_no_column_are_one_sentence(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert runs(monkeypatch, "--sort", "colour") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "colour" in error and all(name in error for name in COLUMNS)
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    assert runs(monkeypatch) == 0
    assert capsys.readouterr().out == "There are no runs yet: start one with `uv run train.py`.\n"
    assert rows(monkeypatch, capsys) == []
    assert list(Path().iterdir()) == []


def test_it_needs_no_torch(project: Path) -> None:
    """So that the table is there at once."""
    code = "from lightning_shards.reporting import table; table.render(table.rows())"
    code = f"import sys; {code}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert done.stdout.strip() == "False", done.stderr
