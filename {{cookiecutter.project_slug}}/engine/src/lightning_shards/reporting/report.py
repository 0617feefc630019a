"""`report.html`: what a run was and what came of it, as one file that asks no network for anything.

It is made from the files in the run's folder, at the end of every run and again by `report RUN`. Of the runs beside it,
those that differ in their seed alone give the mean and its interval.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..files import write_durably
from ..runs.files import RunFiles, read
from ..runs.values import is_number
from ..terminal import plain_lines, printable
from . import charts, findings, numbers, reliability, result

_STATUS = {  # what a status means for whoever opens the report
    "done": "The run came to its end.",
    "stopped": "A signal stopped the run, and everything is saved.",
    "budget": "The run came to the end of its budget, and everything is saved; with a larger one it goes on.",
    "failed": "The run failed.",
    "unfinished": "The run goes on still, or was killed.",
}
_SKIPPED_SHOWN = 50
_CALIBRATION = ("calibration_error", "calibration_error_unscaled", "temperature")  # has a section of its own
_BESIDE_ACCURACY = ("balanced_accuracy", "f1", "auroc", "average_precision")
_NOT_CHARTED = ("skipped", "learning_rate", "knn_accuracy", *_CALIBRATION)
_MOST_CHARTS = 50  # a metric more is in metrics.csv


def write(folder: Path) -> Path:
    """Make the report of the run in `folder` from its files; there is the old one or the new one, never half of one."""
    path = folder / "report.html"
    write_durably(path, plain_lines(render(read(folder))).encode())
    return path


def render(run: RunFiles) -> str:
    """The page. Text from files is escaped; delimiters other than Jinja's own keep cookiecutter away from them."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        block_start_string="[%",
        block_end_string="%]",
        variable_start_string="[[",
        variable_end_string="]]",
        comment_start_string="[#",
        comment_end_string="#]",
    )
    found, calibration = findings.of(run), reliability.of(run)  # before `missing` is read: they may add to it
    splits, metrics = result.metrics(run)
    return environment.get_template("report.html").render(
        run=run,
        name=printable(run.folder.name),
        status=run.status,
        status_text=_STATUS.get(run.status, ""),
        resume=f"uv run train.py --resume {shlex.quote(run.folder.name)}"
        if run.status in ("stopped", "budget", "unfinished")
        else "",
        subtitle=_subtitle(run),
        headline=result.headline(run),
        splits=splits,
        metrics=metrics,
        neighbours=result.neighbours(run),
        tiles=_tiles(run),
        learning=_learning(run),
        speed=_speed(run),
        found=found,
        calibration=calibration,
        skipped=run.skipped[:_SKIPPED_SHOWN],
        repeat=_repeat(run),
        brief=_brief(run),
        conditions=_conditions(run),
        settings=sorted(run.config.items()),
    )


def _subtitle(run: RunFiles) -> str:
    when, model = run.began, run.config.get("model.backbone") or run.summary.get("model")
    parts = [model, run.config.get("data.path"), f"{when:%d %B %Y, %H:%M}" if when else None]
    return " · ".join(str(part) for part in parts if part)


def _tiles(run: RunFiles) -> list[dict[str, str]]:
    summary = run.summary
    expected = summary["expected"].get("seconds") if isinstance(summary.get("expected"), dict) else None
    expected = expected if is_number(expected) else None
    rate, wait, epochs = (summary.get(name) for name in ("images_per_second", "data_wait_fraction", "epochs"))
    tiles = [
        ("Images seen", numbers.count(summary.get("images_seen")), f"{epochs:g} whole epochs" if epochs else ""),
        (
            "Time",
            numbers.duration(summary.get("seconds")),
            f"{numbers.duration(expected)} expected" if expected else "",
        ),
        ("Images per second", numbers.count(rate), "while training"),
        ("Waiting for data", "-" if wait is None else f"{wait:.1%}", "of the training time"),
        ("Energy", numbers.energy(summary.get("kwh")), str(summary.get("energy_source") or "")),
        ("Cost", numbers.money(summary.get("cost"), summary.get("currency")), ""),
        (
            "Skipped samples",
            numbers.count(summary.get("skipped")),
            "could not be decoded" if summary.get("skipped") else "",
        ),
    ]
    return [
        {"label": label, "value": value, "note": "not measured" if value == numbers.NOT_KNOWN else note}
        for label, value, note in tiles
    ]


def _learning(run: RunFiles) -> list[str]:
    """Charts of loss, metrics and learning rate."""
    curves, metrics = run.curves, run.summary.get("metrics", {})
    last = max((points[-1][0] for points in curves.values() if points), default=0)
    charted = [name[4:] for name in curves if name.startswith("val/")]
    if "accuracy" in charted:  # which says the same in another way, unless it is what the run is judged by
        judged = str(run.summary.get("monitor") or "").removeprefix("val/")
        charted = [name for name in charted if name == judged or name not in _BESIDE_ACCURACY]
    names = ["loss", *(name for name in charted if name not in ("loss", *_NOT_CHARTED))]
    drawn = []
    for name in names[:_MOST_CHARTS]:
        lines = {split: curves[f"{split}/{name}"] for split in ("train", "val") if curves.get(f"{split}/{name}")}
        test = metrics.get(f"test/{name}")
        text = "" if test is None else f"test {numbers.metric(name, test)}"
        if lines:
            title, share = numbers.title(name), name in numbers.SHARES
            drawn.append(
                charts.lines(numbers.heading(title), lines, share, (text, last, test) if test is not None else None)
            )
    if curves.get("train/learning_rate"):
        drawn.append(charts.lines("Learning rate", {"": curves["train/learning_rate"]}))
    known = {
        f"{split}/{name}" for name in (*names, *_NOT_CHARTED, *_BESIDE_ACCURACY) for split in ("train", "val", "test")
    }
    for name in curves:  # what a model logs by names of its own
        if curves[name] and name not in {*known, "epoch"} and not name.startswith(("speed/", "cost/", "test/")):
            drawn.append(charts.lines(name.replace("_", " "), {"": curves[name]}, name in numbers.SHARES))
            if len(drawn) >= _MOST_CHARTS:
                break
    return drawn


def _speed(run: RunFiles) -> list[str]:
    """Charts of everything that was logged of speed. Energy and money grow by the step: their sums say it all."""
    drawn = []
    for name, points in list(run.curves.items())[:_MOST_CHARTS]:
        kind, _, short = name.partition("/")
        if kind == "speed" and points:
            title = {"data_wait_fraction": "Share of time waiting for data"}.get(short, short.replace("_", " "))
            drawn.append(charts.lines(numbers.heading(title), {"": points}, short in numbers.SHARES))
    return drawn


def _repeat(run: RunFiles) -> list[str]:
    """The commands that do the same again."""
    git, changed = run.summary.get("git"), run.summary.get("changed_on_resume")
    lines = []
    if isinstance(git, dict) and git.get("commit"):
        note = "   # and files that were changed, but not committed" if git.get("changed") else ""
        lines.append(f"git checkout {git['commit']}{note}")
    command = ["uv", "run", "train.py", "--config", str(run.folder / "config.yaml")]
    for name, value in (changed if isinstance(changed, dict) else {}).items():
        command += [f"--{name}", "null" if value is None else str(value)]
    return [*lines, shlex.join(command)]


def _brief(run: RunFiles) -> str:
    """Hardware, the versions that matter most, and the commit, on one line."""
    summary, git = run.summary, run.summary.get("git")
    versions = [
        f"{name} {summary['versions'][name]}" for name in ("torch", "lightning") if name in summary.get("versions", {})
    ]
    commit = f"commit {str(git.get('commit'))[:10]}" if isinstance(git, dict) else ""
    hardware = f"{summary.get('devices', 1)} x {summary['hardware']}" if "hardware" in summary else ""
    return " · ".join(part for part in (hardware, *versions, commit) if part)


def _conditions(run: RunFiles) -> list[tuple[str, str]]:
    """What the result depends on, beside the settings."""
    summary, resolved = run.summary, run.summary.get("resolved", {})
    dataset, git = summary.get("dataset"), summary.get("git")
    rows = [
        ("hardware", f"{summary.get('devices', 1)} x {summary['hardware']}" if "hardware" in summary else ""),
        ("precision", str(summary.get("precision", ""))),
        *((name.replace("_", " "), _plain(value)) for name, value in resolved.items() if name != "precision"),
        *((name, str(value)) for name, value in summary.get("versions", {}).items()),
    ]
    if isinstance(dataset, dict):
        rows += [(f"dataset {name}".replace("_", " "), _plain(value)) for name, value in dataset.items()]
    if not isinstance(git, dict):
        rows.append(("git commit", "none: the project is not kept by git" if summary else ""))
    return [(name, value) for name, value in rows if value]


def _plain(value: object) -> str:
    """Yes and no for booleans, thousands set apart."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
