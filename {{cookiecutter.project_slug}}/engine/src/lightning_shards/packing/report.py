"""What a person sees of `pack`: a progress bar and a report."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..data.number_text import to_number
from ..terminal import say, several
from .pool import Progress as Report

_QUIET_SECONDS = 30.0  # between lines where stderr is no terminal


@contextmanager
def progress_bar(what: str, unit: str = "images") -> Iterator[Report]:
    """A bar with rate and time left on stderr; a line now and then where that is no terminal."""
    started, last = time.monotonic(), [time.monotonic()]

    def rate(done: int) -> str:
        return f"{done / max(time.monotonic() - started, 1e-6):,.0f} {unit}/s"

    def line(done: int, total: int) -> None:
        if time.monotonic() - last[0] > _QUIET_SECONDS:
            last[0] = time.monotonic()
            message = f"{what}: {done:,} of {total:,} {unit}, {rate(done)}"
            say(message, sys.stderr)

    if not sys.stderr.isatty():
        yield line
        return
    rates = TextColumn("{task.fields[rate]}")
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), rates, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, rate="")
        yield lambda done, total: bar.update(task, completed=done, total=total, rate=rate(done))


def render(report: Mapping[str, Any]) -> str:
    """The report of `pack` as text."""
    task = (
        f"{report['task']}, {len(next(iter(report['targets'].values())))} targets" if report["task"] else "no targets"
    )
    lines = [f"{report['dataset']}: {task}{described(report['fields'])}"]
    for split, counts in report["splits"].items():
        taken = report["taken_from_train"].get(split)
        images, shards = several(counts["images"], "image"), several(counts["shards"], "shard")
        size = f"{images:>18} {shards:>13} {counts['bytes'] / 1e6:>10,.1f} MB"
        origin = f"  ({taken:.0%} of the images: {report['source']} has no {split} split)" if taken else ""
        lines.append(f"  {split:<6}{size}{origin}")
    lines += [*_targets(report), *_alike(report)]
    twins = report["duplicates"]
    if twins["across_splits"]:
        first = "; ".join(f"{a} = {b}" for a, b in twins["examples"][:2])
        lines.append(f"  duplicates: {twins['across_splits']:,} images lie in more than one split, such as {first}")
    if twins["within_a_split"]:
        lines.append(f"  duplicates: {twins['within_a_split']:,} images are copies of another one of their split")
    if report["damaged"]:
        lines.append(f"  damaged: {report['damaged']:,} files were left out, see {report['dataset']}/damaged.jsonl")
    if report["ignored"]:
        what = "files outside the class folders, or no images by name"
        lines.append(f"  ignored: {report['ignored']:,} {what}, such as {report['ignored_example']}")
    before = f"; {report['packed_before']:,} images were packed before" if report["packed_before"] else ""
    lines.append(f"  {report['seconds']:,.1f} s, {report['images_per_second']:,} images/s{before}")
    return "\n".join(lines)


def described(fields: Mapping[str, Mapping[str, Any]]) -> str:
    """Each field's name and kind, where a dataset says more than image and target."""
    named = ", ".join(f"{name} ({about['kind']})" for name, about in fields.items())
    return f", fields {named}" if fields else ""


def _alike(report: Mapping[str, Any]) -> list[str]:
    """Classes whose names differ in nothing that a person means: case, width of letters, `1` and `1.0`."""
    if report["task"] not in ("single_label", "multi_label"):
        return []
    named: dict[str, list[str]] = {}
    for name in report["targets"]["train"]:
        key = unicodedata.normalize("NFKC", name).casefold()
        with suppress(ValueError):
            key = repr(to_number(key))
        named.setdefault(key, []).append(name)
    alike = [names for names in named.values() if len(names) > 1]
    if not alike:
        return []
    more = f", and {len(alike) - 1:,} more such" if len(alike) > 1 else ""
    both = " and ".join(map(repr, alike[0]))
    return [f"  alike: {both} count as {len(alike[0])} classes{more}; if they are one, write them alike"]


def _targets(report: Mapping[str, Any]) -> list[str]:
    """Images of each class, or their spread if there are many; for regression the range of each number."""
    splits = report["targets"]
    if report["task"] == "regression":
        return [
            f"  {split:<6}{name}: {counts['min']:g} to {counts['max']:g}, mean {counts['mean']:g}"
            for split, part in splits.items()
            for name, counts in part.items()
        ]
    names = list(splits["train"])
    if not names:
        return []
    if len(names) > 20:
        counts = {split: sorted(part.values()) for split, part in splits.items()}
        return [
            f"  {split:<6}images a class: {c[0]:,} to {c[-1]:,}, median {c[len(c) // 2]:,}"
            for split, c in counts.items()
        ]
    width = max(map(len, names))
    head = f"  {'':<{width}}" + "".join(f"{split:>9}" for split in splits)
    return [head, *(f"  {n:<{width}}" + "".join(f"{part[n]:>9,}" for part in splits.values()) for n in names)]
