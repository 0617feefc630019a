"""The table of all runs: what each was, how its settings differ from the others', and what came of it."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import InputError
from ..runs.files import HEADLINES, RunFiles, read
from ..runs.folder import RUNS
from ..runs.values import LONGEST_TEXT
from ..terminal import printable
from . import numbers

NARROWEST = 132  # characters a line: a terminal that has fewer wraps it, where a narrower table would cut numbers off
BESIDE = ("log.", "trainer.enable_")  # settings that change nothing of a training
# Columns that the table can be sorted by: the value of a row, and whether a large one comes first.
COLUMNS: dict[str, tuple[Callable[[dict[str, Any]], Any], bool]] = {
    "when": (lambda row: row["when"], True),
    "run": (lambda row: row["run"], False),
    "status": (lambda row: row["status"], False),
    "metric": (lambda row: row["metric"] and row["metric"]["value"], True),  # or the smallest, where that is best
    "images": (lambda row: row["images_seen"], True),
    "time": (lambda row: row["seconds"], True),
    "speed": (lambda row: row["images_per_second"], True),
    "energy": (lambda row: row["kwh"], True),
    "cost": (lambda row: row["cost"], True),
}


def rows(sort: str = "when", folder: Path = RUNS) -> list[dict[str, Any]]:
    """One row for each folder in `folder`, sorted; what a run does not have is None, and stands last.

    Raises InputError for a column that is none of COLUMNS.
    """
    if sort not in COLUMNS:
        raise InputError(f"--sort {sort} is no column: {', '.join(COLUMNS)} are")
    runs = [read(path, images=False) for path in sorted(folder.glob("*")) if path.is_dir()]
    differing = differences(runs)
    table = [_row(run, differing) for run in runs]
    if sort == "metric":
        return _by_metric(table)
    value, largest_first = COLUMNS[sort]
    known = sorted((row for row in table if value(row) is not None), key=value, reverse=largest_first)
    return known + [row for row in table if value(row) is None]


def _by_metric(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of one metric after those of another, the most first; the best of each first."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table:
        if row["metric"]:
            groups.setdefault((row["metric"]["name"], row["metric"]["better"]), []).append(row)
    found = []
    for (_, better), group in sorted(groups.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        sign = -1 if better == "max" else 1
        found += sorted(group, key=lambda row: (math.isnan(value := row["metric"]["value"]), sign * value))
    return found + [row for row in table if not row["metric"]]


def sorted_by(table: list[dict[str, Any]]) -> str:
    """What `--sort metric` has sorted; empty where all runs have the same metric."""
    names = list(dict.fromkeys(row["metric"]["name"] for row in table if row["metric"]))
    return f"sorted by {names[0]}; behind it the runs that have {', '.join(names[1:])} only" if len(names) > 1 else ""


def differences(runs: list[RunFiles]) -> list[str]:
    """The settings that two of the runs have with different values; one that only newer versions know is none."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.config.items():
            values.setdefault(name, set()).add(repr(value))
    return [name for name, found in values.items() if len(found) > 1 and not name.startswith(BESIDE)]


def better(run: RunFiles) -> str:
    """Whether `max` or `min` of what the run is judged by is best."""
    best = HEADLINES.get(run.headline[0].rpartition("/")[2]) if run.headline else None
    return "min" if best is min or run.summary.get("mode") == "min" else "max"


def _row(run: RunFiles, differing: list[str]) -> dict[str, Any]:
    when, headline, summary = run.began, run.headline, run.summary
    metric = None
    if headline:
        metric = {"name": headline[0], "value": headline[1], "better": better(run)}
    figures = ("images_seen", "seconds", "kwh", "cost", "currency", "images_per_second", "data_wait_fraction")
    return {
        "run": run.folder.name,
        "when": when.isoformat(timespec="seconds") if when else None,
        "status": run.status,
        "error": summary.get("error"),
        "metric": metric,
        **{name: summary.get(name) for name in figures},
        "settings": {name: run.config[name] for name in differing if name in run.config},
        "missing": run.missing,
    }


def render(table: list[dict[str, Any]]) -> str:
    """The rows as text, as wide as the terminal; settings by their last name where that tells them apart."""
    short = short_names(table)
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for heading in (*COLUMNS, "settings"):
        numeric = heading in ("images", "time", "speed", "energy", "cost")
        shown.add_column(heading, justify="right" if numeric else "left", no_wrap=heading != "settings")
    for row in table:
        metric = row["metric"]
        shown.add_row(
            (row["when"] or numbers.NOT_KNOWN)[:16].replace("T", " "),
            Text(printable(row["run"])),
            Text(row["status"]),
            Text(
                f"{numbers.metric(metric['name'], metric['value'])} {metric['name']}" if metric else numbers.NOT_KNOWN
            ),
            numbers.count(row["images_seen"]),
            numbers.duration(row["seconds"]),
            numbers.rate(row["images_per_second"]),
            numbers.energy(row["kwh"]),
            numbers.money(row["cost"], row["currency"]),
            Text(" ".join(f"{short[name]}={value}" for name, value in row["settings"].items())[:LONGEST_TEXT]),
        )
    notes = [f"{printable(row['run'])}: {'; '.join(row['missing'])}" for row in table if row["missing"]]
    return "\n".join([printed(shown), *(["", *notes] if notes else [])])


def short_names(table: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The last part of each setting's name, where that tells them apart."""
    names = list(dict.fromkeys(name for row in table for name in row["settings"]))
    last = [name.rpartition(".")[2] for name in names]
    return {name: end if last.count(end) == 1 else name for name, end in zip(names, last, strict=True)}


def printed(table: Table) -> str:
    """The table as text, as wide as the terminal."""
    console = Console(highlight=False, force_terminal=False)  # plain text: `show` lets no codes through
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    console.width = max(console.width, NARROWEST) if known else 200
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").splitlines())
