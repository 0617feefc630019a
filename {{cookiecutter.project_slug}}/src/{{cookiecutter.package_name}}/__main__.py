"""The commands beside training: `python -m PACKAGE COMMAND`, or `python -m PACKAGE COMMAND --help`.

What a command needs is imported when it runs, so that help is there at once. Exit status: 0 done, 1 failed, 2
bad input (one sentence on stderr, nothing written), 75 stopped by a signal with finished work kept.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from .command import command
from .packing.options import add_recipe, recipe, size
from .shards.errors import InputError, RunError

STOPPED = 75


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _add_pack(commands: Any) -> None:
    parser = commands.add_parser(
        "pack",
        help="make a dataset of tar shards from your images",
        description="Make a dataset of tar shards. SOURCE is a folder of class folders (with or without "
        "train/, val/ and test/ above them), a zip of one, or a CSV or Parquet table of paths and targets.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("dest", type=Path, metavar="DEST", help="folder of the new dataset")
    add_recipe(parser, "--images")
    add = parser.add_argument
    add("--limit", type=int, help="at most so many images a split, for a trial")
    add("--force", action="store_true", help="replace the dataset DEST once the new one is complete")
    add("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_pack)


def _pack(arguments: argparse.Namespace) -> int:
    from .packing.pack import pack
    from .packing.pool import Stopped
    from .packing.report import progress_bar, render

    try:
        with progress_bar("packing") as progress:
            report = pack(
                arguments.source,
                arguments.dest,
                recipe(arguments, arguments.limit),
                arguments.workers,
                force=arguments.force,
                max_damaged_fraction=arguments.max_damaged_fraction,
                progress=progress,
            )
    except (Stopped, KeyboardInterrupt) as stop:
        print(str(stop) or "stopped; run the same command again", file=sys.stderr)
        return STOPPED
    print(json.dumps(report) if arguments.json else render(report))
    return 0


def _add_index(commands: Any) -> None:
    parser = commands.add_parser(
        "index",
        help="make a dataset of tar shards that others packed, without copying them",
        description="Read the tars of SOURCE once, from begin to end, and write dataset.json and an index beside them. "
        "Interrupted, the same command goes on.",
    )
    parser.add_argument("source", metavar="SOURCE", help="folder or URL of tars, or a pattern like x-{000..099}.tar")
    parser.add_argument("dest", type=Path, nargs="?", metavar="DEST", help="folder for dataset.json (default: SOURCE)")
    parser.add_argument(
        "--val", metavar="PATTERN", help="shards to validate on, such as '*-val-*' (default: by folder)"
    )
    parser.add_argument("--test", metavar="PATTERN", help="shards to test on")
    parser.add_argument("--names", type=Path, metavar="FILE", help="names of the classes, one a line")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="shards at a time (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_index)


def _index(arguments: argparse.Namespace) -> None:
    from .packing.adopt import adopt
    from .packing.report import progress_bar

    _at_least_one("--workers", arguments.workers)
    try:
        names = arguments.names.read_text().splitlines() if arguments.names else None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--names {arguments.names} cannot be read ({error})") from None
    patterns = {split: getattr(arguments, split) for split in ("val", "test") if getattr(arguments, split)}
    with progress_bar("indexing", "shards") as progress:
        report = adopt(arguments.source, arguments.dest, patterns, names, arguments.workers, progress)
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"{report['dataset']}: {report['task']}, {report['targets']} targets, fields {', '.join(report['fields'])}")
    for split, facts in report["splits"].items():
        print(f"  {split:<6}{facts['samples']:>11,} samples {facts['shards']:>6,} shards")
    if report["lacking"]:
        examples = "; ".join(report["lacking_examples"])
        print(f"  {report['lacking']:,} samples lack an image or a target and will be skipped, such as {examples}")


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} is {value}, it must be at least 1")


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure a run's best weights on a packed dataset",
        description="Measure the best weights of RUN (`last`: the newest) on the dataset it trained on, or on another.",
    )
    parser.add_argument("name", metavar="RUN")
    parser.add_argument("--data", metavar="DATASET", help="a packed dataset with the same targets (default: the run's)")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="(%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    from .reporting.folder import find
    from .training.evaluate import evaluate

    metrics = evaluate(find(arguments.name), arguments.data, arguments.split)
    print(json.dumps(metrics) if arguments.json else "\n".join(f"{k:<24} {v:.4g}" for k, v in metrics.items()))


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="make report.html of a run anew",
        description="Make report.html of RUN (`last`: the newest) anew from the files in its folder.",
    )
    parser.add_argument("name", metavar="RUN")
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> None:
    from .reporting.folder import find
    from .reporting.report import write

    print(write(find(arguments.name)))


def _add_runs(commands: Any) -> None:
    parser = commands.add_parser(
        "runs",
        help="a table of all runs",
        description="List the runs in runs/: how their settings differ, and what came of each.",
    )
    columns = "when, run, status, metric, images, time, speed, energy or cost"
    parser.add_argument("--sort", metavar="COLUMN", default="when", help=f"{columns}; the newest or best first")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.set_defaults(run=_runs)


def _runs(arguments: argparse.Namespace) -> None:
    from .reporting.table import render, rows

    table = rows(arguments.sort)
    if arguments.json:
        print(json.dumps(table))
    else:
        print(render(table) if table else "There are no runs yet: start one with `uv run train.py`.")


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="re-read a packed dataset and report every damage",
        description="Compare checksums, walk headers and decode every image and target of DATASET. Status 1: damage.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder or URL")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="shards at a time (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> None:
    from .packing.report import progress_bar
    from .verify import verify

    _at_least_one("--workers", arguments.workers)
    with progress_bar("verifying") as progress:
        report = verify(arguments.dataset, arguments.workers, progress)
    size = f"{report['samples']:,} samples in {report['shards']:,} shards, {report['bytes'] / 1e6:,.1f} MB"
    if arguments.json:
        print(json.dumps(report))
    else:
        for damage in report["damages"]:
            print(f"{damage['shard']} {damage['key'] or ''} {damage['offset'] or ''}: {damage['error']}")
        print(size)
    if report["damages"]:
        raise RunError(f"{arguments.dataset} is damaged; restore the shards or pack it again")


def _add_forecast(commands: Any) -> None:
    parser = commands.add_parser(
        "forecast",
        allow_abbrev=False,
        usage="%(prog)s [SOURCE] [--config FILE]... [any setting of train.py] [--images N] [--json] [--picture FILE]",
        help="measure this machine, and say what a training will take: hours, kWh, money",
        description="Measure disk, loader, model and both together on this machine, with the settings of train.py; say "
        "what limits them, what a training takes, and what other GPUs would do (prices.yaml). With SOURCE, which must "
        "come first, what it takes to pack it, too: a sample of it is packed, into a temporary folder.",
    )
    add = parser.add_argument
    add("--images", type=size, default=100_000_000, help="to forecast for, such as 1G (%(default)s)")
    add("--seconds", type=float, default=24.0, help="to measure, beside warming up (%(default)s)")
    add("--sample", type=int, default=2_000, help="images of each split of SOURCE to try (%(default)s)")
    add("--json", action="store_true", help="print the forecast as JSON")
    add("--picture", type=Path, metavar="FILE", help="write it as a picture, too: an SVG file")
    add_recipe(parser, "--image-root")
    parser.set_defaults(run=_forecast, settings=[])


def _forecast(arguments: argparse.Namespace) -> None:
    from .forecasting.forecast import forecast
    from .forecasting.picture import save
    from .forecasting.render import render
    from .forecasting.source import forecast_source

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # temporary folders are removed then, too
    settings, measure = arguments.settings, (arguments.images, arguments.seconds, _say)
    if settings and not settings[0].startswith("-"):
        damaged, source = arguments.max_damaged_fraction, Path(settings.pop(0))
        how = (recipe(arguments), arguments.workers, settings)
        report = forecast_source(source, *how, *measure, sample=arguments.sample, max_damaged_fraction=damaged)
    else:
        report = forecast(settings, *measure)
    if arguments.picture:
        save(report, arguments.picture)
    print(json.dumps(report) if arguments.json else render(report))


def _say(part: str) -> None:
    """What is being done, on a terminal's last line."""
    if sys.stderr.isatty():
        print(f"\r\033[Kmeasuring: {part}" if part else "\r\033[K", end="", file=sys.stderr, flush=True)


def main() -> int:
    """Run the command that the arguments name; returns the exit status."""
    with command():
        parser = _Parser(prog=f"python -m {__package__}", description="Commands beside training.")
        commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
        for add in (_add_pack, _add_index, _add_verify, _add_forecast, _add_evaluate, _add_report, _add_runs):
            add(commands)
        arguments, settings = parser.parse_known_args()
        if settings and "settings" not in arguments:
            commands.choices[sys.argv[1]].error(f"unrecognized arguments: {' '.join(settings)}")
        arguments.settings = settings
        return int(arguments.run(arguments) or 0)


if __name__ == "__main__":
    sys.exit(main())
