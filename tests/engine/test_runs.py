"""`runs`: the table of all runs, whatever state they are in."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning_shards.reporting import numbers
from lightning_shards.reporting.table import COLUMNS
from lightning_shards.runs.folder import find
from team import __main__ as commands

from . import PATIENCE


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


def test_the_last_run_is_the_one_that_began_last(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Whatever the times of files: a copy gives them anew, in any order."""
    starts = {"first": "2026-05-02T10:00:00", "better": "2026-05-03T10:00:00", "old": "2026-05-01T10:00:00"}
    again = {"at": "2026-05-09T10:00:00"}  # a resume is no begin
    for place, (name, at) in enumerate(starts.items()):
        lines = [json.dumps(row) + "\n" for row in ({"at": at}, again)]
        Path("runs", name, "starts.jsonl").write_text("".join(lines[: 1 if name == "better" else 2]))
        os.utime(Path("runs", name, "config.yaml"), (1e9 + place,) * 2)
        summary = Path("runs", name, "summary.json")
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"began": None}))
    os.utime("runs/broken/config.yaml", (1e9, 1e9))
    assert find("last").name == "better"
    assert [row["run"] for row in rows(monkeypatch, capsys, "--sort", "when")][:3] == ["better", "first", "old"]
    for damaged in ("", "[]", "{}", '{"at": 3}', '{"at": "soon"}', '{"at": "2026-05-09T10:00:00'):
        Path("runs/better/starts.jsonl").write_text(damaged)
        assert find("last").name == "first", "the time of config.yaml, where nothing else is known"
    Path("runs/old/starts.jsonl").write_text('{"at": "2026-06-01T10:00:00+00:00"}')
    assert find("last").name == "old"


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
    values = {"better": math.nan, "first": 0.2, "old": 0.1}
    for folder, value in values.items():
        path = Path("runs", folder, "summary.json")
        metrics = {"metrics": {"test/mean_absolute_error": value}}
        path.write_text(json.dumps(json.loads(path.read_text()) | metrics))
    assert order("metric")[:3] == ["old", "first", "better"], "what is no number stands behind those that are"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {"val/accuracy": 0.05}}))
    assert runs(monkeypatch, "--sort", "metric") == 0
    assert "sorted by test/mean_absolute_error; behind it the runs that have val/" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [None, "xterm-256color", "dumb"])
@pytest.mark.parametrize("columns", ["60", "200", None])
def test_the_table_is_readable(
    columns: str | None, terminal: str | None, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A narrow terminal wraps its lines: no number is cut. No terminal gets codes, nor what they are printed as."""
    if terminal:
        monkeypatch.setenv("TERM", terminal)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    assert runs(monkeypatch, "--sort", "metric") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == [*COLUMNS, "settings"]
    assert "better" in printed[1] and "99.0% test/accuracy" in printed[1] and "learning_rate=0.01" in printed[1]
    assert any(line.startswith("broken: config.yaml is damaged") for line in printed)
    assert not any(code in "".join(printed) for code in ("\x1b", "\\x1b", "…")) and max(map(len, printed[:6])) <= 200


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.strip() == "False", done.stderr


SCORES = {1: 0.90, 2: 0.92, 3: 0.91, 4: 0.95}  # accuracy by seed


@pytest.fixture
def seeds(project: Path) -> Path:
    """Beside the other runs: one more of each seed in SCORES with the settings of `first`, and some of no group."""
    for name, seed, score, changes in (
        *((f"seed-{seed}", seed, score, {}) for seed, score in SCORES.items()),
        ("seed-1-older", 1, 0.2, {}),
        ("stopped", 5, 0.2, {"status": "stopped"}),
        ("other-data", 6, 0.2, {"dataset": {"path": "colours", "fingerprint": "another"}}),
        ("changed", 7, 0.2, {"changed_on_resume": {"model.learning_rate": 1.0}}),
    ):
        shutil.copytree("runs/first", f"runs/{name}")
        file, config = Path(f"runs/{name}/summary.json"), Path(f"runs/{name}/config.yaml")
        file.write_text(json.dumps(json.loads(file.read_text()) | {"metrics": {"test/accuracy": score}} | changes))
        if name == "seed-1-older":
            Path(f"runs/{name}/starts.jsonl").write_text(json.dumps({"at": "2001-01-01T00:00:00"}))
        settings = yaml.safe_load(config.read_text()) | {"seed_everything": seed}
        settings["log"]["project"] = name
        config.write_text(yaml.safe_dump(settings))
    shutil.rmtree("runs/first")
    return project / "runs"


def test_runs_that_differ_in_their_seed_are_one_line(seeds: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    table = rows(monkeypatch, capsys, "--group")
    (group,) = (row for row in table if len(row["runs"]) > 1)
    assert sorted(group["seeds"]) == [1, 2, 3, 4] and "seed-1-older" not in group["runs"]
    assert sorted(group["values"]) == sorted(SCORES.values()) and group["metric"]["name"] == "test/accuracy"
    assert group["mean"] == pytest.approx(0.92) and group["deviation"] == pytest.approx(0.0216025, abs=1e-6)
    half = 3.182446 * 0.0216025 / 2  # Student's t at 3 degrees of freedom
    assert group["interval"] == pytest.approx([0.92 - half, 0.92 + half], abs=1e-4)
    alone = {row["runs"][0]: row for row in table if len(row["runs"]) == 1}
    assert set(alone) == {"better", "other-data", "changed"}
    assert alone["better"]["deviation"] is None and alone["better"]["interval"] is None
    assert alone["better"]["settings"] == {"model.learning_rate": 0.01}
    assert rows(monkeypatch, capsys, "--group", "seed-3") == [group]
    assert rows(monkeypatch, capsys, "--group", "--sort", "metric")[0]["runs"] == ["better"]
    assert runs(monkeypatch, "--group") == 0
    told = capsys.readouterr().out
    assert "92.00% test/accuracy" in told and "88.56% to 95.44%" in told and "learning_rate=0.01" in told
    monkeypatch.setattr(sys, "argv", ["python -m it", "report", "seed-2"])
    assert commands.main() == 0
    page = Path("runs/seed-2/report.html").read_text()
    assert "4 seeds: mean 92.00%, standard deviation 2.16%, 95% interval of the mean 88.56% to 95.44%" in page
    monkeypatch.setattr(sys, "argv", ["python -m it", "report", "other-data"])
    assert commands.main() == 0 and " seeds: mean" not in Path("runs/other-data/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--group", "stopped"], "is of no group"),
        (["--group", "nothing"], "there is no run 'nothing'"),
        (["--group", "--sort", "cost"], "--sort cost does not go with --group"),
    ],
)
def test_what_has_no_group_is_one_sentence(
    seeds: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: list[str], sentence: str
) -> None:
    capsys.readouterr()
    assert runs(monkeypatch, *arguments) == 2
    told = capsys.readouterr()
    assert sentence in told.err and len(told.err.strip().splitlines()) == 1 and not told.out


@pytest.mark.parametrize(
    ("freedom", "reach"),
    [(1, 12.7062), (2, 4.3027), (9, 2.2622), (20, 2.0860), (21, 2.0796), (30, 2.0423), (200, 1.9719)],
)
def test_students_t(freedom: int, reach: float) -> None:
    assert numbers.student(freedom) == pytest.approx(reach, abs=1e-3)
