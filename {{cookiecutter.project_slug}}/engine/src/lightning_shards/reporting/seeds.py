"""Runs that differ in their seed alone: the mean of what they reached, and how far chance moves it.

Two runs are of one group where both are done, their `config.yaml` and what a resume changed agree in everything but
`seed_everything` and settings that change nothing of a training (`log`, `trainer.enable_...`), and they were trained on
the same dataset (by its fingerprint) and judged by the same metric. Names, hardware and the code are not compared. Of
runs with the same seed the newest counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..errors import InputError
from ..runs.files import RunFiles, config_in, read
from ..runs.folder import RUNS, find
from ..runs.values import LONGEST_TEXT
from ..terminal import printable
from . import numbers
from .table import BESIDE, better, differences, printed, short_names

SEED = "seed_everything"
Row = dict[str, Any]


def group_of(run: RunFiles) -> str:
    """What the runs of a group have in common, as one text; empty for a run that is of none."""
    if run.status != "done" or not run.headline or SEED not in run.config:
        return ""
    dataset, changed = run.summary.get("dataset"), run.summary.get("changed_on_resume")
    fingerprint = dataset.get("fingerprint") if isinstance(dataset, dict) else None
    return repr((_settings(run.config), changed, fingerprint, run.headline[0]))


def _settings(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Those that the runs of a group have in common."""
    return sorted((name, repr(value)) for name, value in config.items() if name != SEED and not name.startswith(BESIDE))


def row_of(runs: Iterable[RunFiles]) -> Row:
    """What the runs of one group reached, as `runs --group --json` has it.

    `mean` and `deviation` are those of the sample, `interval` is the mean's at 95%, by Student's t; the last two are
    None for one run.
    """
    of_seed: dict[str, RunFiles] = {}
    for run in sorted(runs, key=lambda run: (str(run.began or ""), run.folder.name)):
        of_seed.pop(seed := repr(run.config[SEED]), None)
        of_seed[seed] = run  # the newest one stays
    counted = list(of_seed.values())
    found = [run.headline for run in counted if run.headline]
    values = [value for _, value in found]
    deviation, interval = spread(values)
    return {
        "group": counted[-1].folder.name,
        "runs": [run.folder.name for run in counted],
        "seeds": [run.config[SEED] for run in counted],
        "metric": {"name": found[0][0], "better": better(counted[0])},
        "values": values,
        "mean": statistics.fmean(values),
        "deviation": deviation,
        "interval": interval,
    }


def spread(values: Sequence[float]) -> tuple[float | None, list[float] | None]:
    """The sample standard deviation, and the 95% interval of the mean; None where one value, or an infinite one, has
    neither."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None, None
    deviation, mean = statistics.stdev(values), statistics.fmean(values)
    half = numbers.student(len(values) - 1) * deviation / math.sqrt(len(values))
    return deviation, [mean - half, mean + half]


def rows(name: str = "", sort: str = "when", folder: Path = RUNS) -> list[Row]:
    """One row a group, the newest or the best first; with `name`, of that run's group alone.

    Raises InputError for a run that is of no group, and for a column that groups have not.
    """
    if sort not in ("when", "metric"):
        raise InputError(f"--sort {sort} does not go with --group: groups are sorted by when or by metric")
    wanted = find(name).name if name else ""
    groups: dict[str, list[RunFiles]] = {}
    for run in (read(path, images=False) for path in sorted(folder.glob("*")) if path.is_dir()):
        key = group_of(run)
        if key:
            groups.setdefault(key, []).append(run)
        elif run.folder.name == wanted:
            raise InputError(f"{run.folder} is of no group: a run counts once it is done and has a test or validation")
    found = list(groups.values())
    differing = [n for n in differences([runs[0] for runs in found]) if n != SEED]
    table = []
    for runs in found:
        settings = {name: runs[0].config[name] for name in differing if name in runs[0].config}
        began = [run.began for run in runs if run.began]
        when = max(began).isoformat(timespec="seconds") if began else ""
        if not wanted or wanted in (run.folder.name for run in runs):
            table.append({**row_of(runs), "when": when, "settings": settings})
    table.sort(key=lambda row: row["when"], reverse=True)
    if sort == "metric":
        table.sort(key=lambda row: (row["metric"]["name"], _worse(row)))
    return table


def _worse(row: Row) -> float:
    return float(-row["mean"] if row["metric"]["better"] == "max" else row["mean"])


def of(run: RunFiles) -> Row | None:
    """The group of a run among those beside its folder; None where no other is of it."""
    key = group_of(run)
    if not key:
        return None
    here, wanted = run.folder.absolute(), _settings(run.config)
    beside = [path for path in here.parent.glob("*") if path != here and (path / "summary.json").is_file()]
    others = [read(path, images=False) for path in beside if _settings(config_in(path)) == wanted]
    row = row_of([run, *(other for other in others if group_of(other) == key)])
    return row if len(row["runs"]) > 1 else None


def text(row: Row) -> str:
    """The figures of a group, for a person."""
    name, count = row["metric"]["name"], len(row["runs"])
    said = f"{count} seed{'s' * (count > 1)}: mean {numbers.metric(name, row['mean'], 2)}"
    if row["interval"] is None:
        return said
    deviation = numbers.metric(name, row["deviation"], 2)
    return f"{said}, standard deviation {deviation}, 95% interval of the mean {_interval(row)}"


def _interval(row: Row) -> str:
    name, (low, high) = row["metric"]["name"], row["interval"]
    if numbers.is_share(name):
        low, high = max(0.0, low), min(1.0, high)
    return f"{numbers.metric(name, low, 2)} to {numbers.metric(name, high, 2)}"


def render(table: Sequence[Row]) -> str:
    """The rows as text, as wide as the terminal."""
    short = short_names(table)
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("newest run", "runs", "mean", "deviation", "95% interval of the mean", "settings"):
        shown.add_column(heading, justify="right" if heading == "runs" else "left", no_wrap=heading != "settings")
    for row in table:
        name = row["metric"]["name"]
        known = row["interval"] is not None
        shown.add_row(
            Text(printable(row["group"])),
            str(len(row["runs"])),
            f"{numbers.metric(name, row['mean'], 2)} {name}",
            numbers.metric(name, row["deviation"], 2) if known else numbers.NOT_KNOWN,
            _interval(row) if known else numbers.NOT_KNOWN,
            Text(" ".join(f"{short[one]}={value}" for one, value in row["settings"].items())[:LONGEST_TEXT]),
        )
    return printed(shown)
