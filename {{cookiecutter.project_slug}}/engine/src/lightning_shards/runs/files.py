"""The files of a run, read so that what is missing or damaged is named, and ends nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ..yaml_text import parse_yaml
from .folder import began
from .metrics import Curves, curves, read_table
from .values import LONGEST_TEXT, flat, is_count, is_number, plain

HEADLINES = {"accuracy": max, "average_precision": max, "mean_absolute_error": min}  # what the tasks are judged by
_NUMBERS = ("images_seen", "steps", "epochs", "images_per_second", "data_wait_fraction", "seconds", "kwh", "cost")
_RULES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys((*_NUMBERS, "skipped"), is_number),
    **{name: lambda value: isinstance(value, str) for name in ("status", "precision", "hardware")},
    **{name: lambda value: isinstance(value, dict) for name in ("metrics", "resolved", "versions")},
    "devices": is_count,
}
_EXPECTED = [name for name in _RULES if name != "steps"]


@dataclass
class RunFiles:
    """What a run has left, as far as it can be read.

    Attributes:
        summary: of `summary.json`, only what has the type that it should have.
        config: of `config.yaml`, by dotted names.
        curves: of `metrics.csv`, (step, value) by name.
        evaluation: of the last pass over a split that `evaluation/` tells of; empty where there was none.
        skipped: one line for each sample that was skipped, with the `times` it was.
        missing: what is not there, in a sentence each.
    """

    folder: Path
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def began(self) -> datetime | None:
        """When the run began."""
        return began(self.folder)

    @property
    def status(self) -> str:
        """As the summary has it; `unfinished` where none was written, or where steps were logged since."""
        if "status" not in self.summary:
            return "unfinished"
        last = max((points[-1][0] for points in self.curves.values() if points), default=0)
        return "unfinished" if last > self.summary.get("steps", last) else str(self.summary["status"])

    @property
    def headline(self) -> tuple[str, float] | None:
        """What the run is judged by, such as ("test/accuracy", 0.9): of the test, else the best of the validations."""
        metrics = self.summary.get("metrics", {})
        names = [str(self.summary["monitor"])] if "monitor" in self.summary else []
        for name in [*names, *HEADLINES]:
            if f"test/{name}" in metrics:
                return f"test/{name}", metrics[f"test/{name}"]
            values = [value for _, value in self.curves.get(f"val/{name}", []) if not math.isnan(value)]
            if values:
                best = HEADLINES.get(name) or (min if self.summary.get("mode") == "min" else max)
                return f"val/{name}", best(values)
        return None


def read(folder: Path, images: bool = True) -> RunFiles:
    """What the run in `folder` has left; without `images` (and skipped samples), what the table of runs says."""
    run = RunFiles(folder)
    run.config = config_in(folder, run)
    run.summary = _checked_summary(run, _parsed(run, "summary.json", json.loads, "JSON"))
    run.curves = _curves(run)
    if images:
        run.evaluation = _evaluation(run)
        run.skipped = skipped_samples(folder)
    return run


def config_in(folder: Path, run: RunFiles | None = None) -> dict[str, Any]:
    """The settings in `config.yaml` by dotted names; empty, and for `run` named as missing, where it cannot be had."""
    return dict(flat(_parsed(run or RunFiles(folder), "config.yaml", parse_yaml, "YAML")))


def skipped_samples(folder: Path) -> list[dict[str, Any]]:
    """The samples that were skipped, on all ranks and in all attempts; lines that a kill has torn are left out."""
    passes: set[tuple[Any, ...]] = set()
    samples: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in sorted(folder.glob("skipped/rank-*.jsonl")):
        for line in _lines(path):
            try:
                row = plain(json.loads(line))
                place = row["shard"], row["key"]
                if (seen := (row["epoch"], *place)) in passes:
                    continue
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            passes.add(seen)
            samples.setdefault(place, {"error": ""} | row | {"times": 0})["times"] += 1
    return list(samples.values())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").split("\n")
    except OSError:
        return []


_WHY = {  # what it means that a file is not there
    "config.yaml": "the settings are not known",
    "summary.json": "the run goes on still, or was killed before it could sum up",
    "metrics.csv": "no step was logged",
    "evaluation/": "the run came to no validation, or is of an older version of this project",
}


def _parsed(run: RunFiles, name: str, parse: Any, language: str, longest: int = LONGEST_TEXT) -> dict[str, Any]:
    """A file of the run as a dictionary; empty, and named as missing, where it cannot be had."""
    try:
        content = plain(parse((run.folder / name).read_bytes()), longest)
    except FileNotFoundError:
        run.missing.append(f"{name} is not there: {_WHY[name]}")
    except OSError as error:
        run.missing.append(f"{name} cannot be read ({error.strerror})")
    except (ValueError, RecursionError):
        run.missing.append(f"{name} is damaged: it is no {language}")
    else:
        if isinstance(content, dict):
            return content
        run.missing.append(f"{name} is damaged: it has another form than it should")
    return {}


def _checked_summary(run: RunFiles, content: dict[str, Any]) -> dict[str, Any]:
    """Without values of a wrong type; keys that are not there are named."""
    wrong = [name for name, is_right in _RULES.items() if content.get(name) is not None and not is_right(content[name])]
    absent = [name for name in _EXPECTED if content and name not in content]
    if wrong:
        run.missing.append(f"summary.json is damaged at {', '.join(wrong)}")
    if absent:
        run.missing.append(f"summary.json does not say {', '.join(absent)}: it is of another version of this project")
    kept = {name: value for name, value in content.items() if name not in wrong and value is not None}
    metrics = kept.get("metrics", {})
    return kept | {"metrics": _metrics(metrics)}


def _metrics(found: Any) -> dict[str, float]:
    """By name; infinite ones and NaN are a training's own."""
    values = found.items() if isinstance(found, dict) else ()
    return {plain(name): value for name, value in values if isinstance(value, float) or is_number(value)}


def _curves(run: RunFiles) -> Curves:
    """`metrics.csv` by column."""
    try:
        return curves(read_table(run.folder / "metrics.csv")[1])
    except FileNotFoundError:
        run.missing.append(f"metrics.csv is not there: {_WHY['metrics.csv']}")
    except OSError as error:
        run.missing.append(f"metrics.csv cannot be read ({error.strerror})")
    return {}


def _evaluation(run: RunFiles) -> dict[str, Any]:
    """The pass over a split after the most training; of two, that over the test split."""
    found = []
    for split in ("val", "test"):
        if (run.folder / "evaluation" / f"{split}.json").exists():
            evaluation = _parsed(
                run, f"evaluation/{split}.json", json.loads, "JSON", longest=1 << 20
            )  # pictures are texts
            if evaluation.get("format") == 1:
                found.append(evaluation)
            elif evaluation:
                run.missing.append(f"evaluation/{split}.json is of another version of this project: it is not shown")
    if not found and not (run.folder / "evaluation").exists():
        run.missing.append(f"evaluation/ is not there: {_WHY['evaluation/']}")

    def last(evaluation: dict[str, Any]) -> tuple[float, bool]:
        seen: Any = evaluation.get("images_seen")
        return float(seen) if is_number(seen) else 0.0, bool(evaluation.get("split") == "test")

    return max(found, key=last, default={})


def earlier_metrics(folder: Path) -> dict[str, float]:
    """The metrics that an earlier attempt summed up; empty where there is no summary."""
    return _metrics(_summed_up(folder, "metrics"))


def changed_on_resume(folder: Path) -> dict[str, Any]:
    """The settings, by dotted names, with which the last attempt went on that differ from those in `config.yaml`."""
    return _summed_up(folder, "changed_on_resume")


def _summed_up(folder: Path, name: str) -> dict[str, Any]:
    """A part of `summary.json`; empty where it cannot be had."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        found = json.loads((folder / "summary.json").read_bytes())[name]
        return found if isinstance(found, dict) else {}
    return {}
