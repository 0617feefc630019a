"""`forecast`, `evaluate`, `report`, `runs`: before a training and after it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .. import machine
from ..cost.usage import check_amounts
from ..entry import importing
from ..errors import InputError
from ..packing.options import add_pack_options, recipe, size
from ..terminal import printable, show


def add(commands: Any, with_model: bool) -> None:
    """Add the parsers of these commands; without a model those that need none."""
    for add_one in (*((_add_forecast, _add_evaluate) if with_model else ()), _add_report, _add_runs):
        add_one(commands)


def _add_forecast(commands: Any) -> None:
    parser = commands.add_parser(
        "forecast",
        usage="%(prog)s [SOURCE] [--config FILE]... [any setting of train.py] [--images N] [--json] [--picture FILE]",
        help="measure this machine, and say what a training will take: hours, kWh, money",
        description="Measure disk, loader, model and both together on this machine, with the settings of train.py; say "
        "what limits them, what a training takes, and what other GPUs would do (prices.yaml). With SOURCE, which must "
        "come first, what it takes to pack it, too: a sample of it is packed, into a temporary folder.",
    )
    add = parser.add_argument
    add("--images", type=size, default=100_000_000, help="to forecast for, such as 1G (%(default)s)")
    add("--seconds", type=float, default=24.0, help="to measure, beside warming up (%(default)s)")
    add("--json", action="store_true", help="print the forecast as JSON")
    add("--picture", type=Path, metavar="FILE", help="write it as a picture, too: an SVG file")
    always = len(parser._actions)
    add("--sample", type=int, default=2_000, help="images of each split of SOURCE to try (%(default)s)")
    add_pack_options(parser, "--image-root")
    parser.set_defaults(run=_forecast, settings=[], of_source=parser._actions[always:])


def _forecast(arguments: argparse.Namespace) -> None:
    with importing():
        from ..forecasting.forecast import forecast
        from ..forecasting.pack_forecast import forecast_source
        from ..forecasting.picture import save
        from ..forecasting.render import render

    machine.raise_on_stop()  # temporary folders are removed then, too
    settings, measure = arguments.settings, (arguments.images, arguments.seconds, _say)
    check_amounts(arguments.images, arguments.seconds)
    if settings and not settings[0].startswith("-"):
        damaged, source = arguments.max_damaged_fraction, Path(settings.pop(0))
        if any(one.partition("=")[0] == "--data.path" for one in settings):
            raise InputError(f"the forecast is for {source}, which is not packed yet: leave out --data.path")
        how = (recipe(arguments), arguments.workers, settings)
        report = forecast_source(
            arguments.model(),
            source,
            *how,
            *measure,
            sample=arguments.sample,
            max_damaged_fraction=damaged,
            datamodule_class=arguments.datamodule(),
        )
    else:
        for flag in arguments.of_source:
            if arguments.typed & {*flag.option_strings}:
                raise InputError(f"{flag.option_strings[0]} says how to pack: name the SOURCE first, or leave it out")
        report = forecast(arguments.model(), settings, *measure, datamodule_class=arguments.datamodule())
    if arguments.picture:
        save(report, arguments.picture)
    show(json.dumps(report) if arguments.json else render(report))


def _say(part: str) -> None:
    """What is being done, on a terminal's last line."""
    if sys.stderr.isatty():
        print(f"\r\033[Kmeasuring: {part}" if part else "\r\033[K", end="", file=sys.stderr, flush=True)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure a run's best weights on a packed dataset",
        description="Measure the best weights of RUN (`last`: the newest) on the dataset it trained on, or on another.",
    )
    parser.add_argument("name", metavar="RUN")
    parser.add_argument("--data", metavar="DATASET", help="a packed dataset with the same targets (default: the run's)")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="(%(default)s)")
    parser.add_argument("--flip", action="store_true", help="average over each image and its mirror image")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    from ..runs.folder import find

    with importing():
        from ..train.evaluate import evaluate

    bar = sys.stdout.isatty() and not arguments.json
    which = find(arguments.name), arguments.data, arguments.split
    metrics: dict[str, float] = {"views": 2} if arguments.flip else {}
    metrics |= evaluate(arguments.model(), *which, bar, arguments.datamodule(), arguments.flip)
    width = max(24, *map(len, metrics))
    show(json.dumps(metrics) if arguments.json else "\n".join(f"{k:<{width}} {v:.4g}" for k, v in metrics.items()))


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="make report.html of a run anew",
        description="Make report.html of RUN (`last`: the newest) anew from the files in its folder.",
    )
    parser.add_argument("name", metavar="RUN")
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> None:
    from ..reporting.report import write
    from ..runs.folder import find

    show(printable(write(find(arguments.name))))


def _add_runs(commands: Any) -> None:
    parser = commands.add_parser(
        "runs",
        help="a table of all runs",
        description="List the runs in runs/: how their settings differ, and what came of each.",
    )
    columns = "when, run, status, metric, images, time, speed, energy or cost"
    parser.add_argument("--sort", metavar="COLUMN", default="when", help=f"{columns}; the newest or best first")
    parser.add_argument(
        "--group",
        nargs="?",
        const="",
        metavar="RUN",
        help="one line for all runs that differ in their seed alone: mean, deviation, interval; with RUN, for its like",
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.set_defaults(run=_runs)


def _runs(arguments: argparse.Namespace) -> None:
    from ..reporting import seeds
    from ..reporting.table import render, rows, sorted_by

    if arguments.group is not None:
        groups = seeds.rows(arguments.group, arguments.sort)
        nothing = "There are no runs yet that are done: start one with `uv run train.py`."
        show(json.dumps(groups) if arguments.json else seeds.render(groups) if groups else nothing)
        return
    table = rows(arguments.sort)
    if arguments.json:
        show(json.dumps(table))
    else:
        show(render(table) if table else "There are no runs yet: start one with `uv run train.py`.")
        if arguments.sort == "metric" and (note := sorted_by(table)):
            show(f"\n{note}")
