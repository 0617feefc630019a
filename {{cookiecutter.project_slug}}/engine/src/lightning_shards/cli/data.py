"""`pack`, `adopt`, `verify`: datasets."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError, RunError
from ..machine import cpus, raise_on_stop
from ..packing.options import add_field_option, add_pack_options, recipe
from ..terminal import in_bytes, say, several, show

STOPPED = 75


def add(commands: Any) -> None:
    """Add the parsers of these commands."""
    for add_one in (_add_pack, _add_adopt, _add_verify):
        add_one(commands)


def _add_pack(commands: Any) -> None:
    parser = commands.add_parser(
        "pack",
        help="make a dataset of tar shards from your images",
        description="Make a dataset of tar shards. SOURCE is a folder of class folders (with or without "
        "train/, val/ and test/ above them), or of images/ and masks/ with files of the same names, a zip of one, or a "
        "CSV or Parquet table of paths, targets and other fields.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("dest", type=Path, metavar="DEST", help="folder of the new dataset")
    add_pack_options(parser, "--images")
    add = parser.add_argument
    add("--limit", type=int, help="at most so many images a split, for a trial")
    add("--force", action="store_true", help="replace the dataset DEST once the new one is complete")
    _add_decoded(parser)
    add("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_pack)


def _pack(arguments: argparse.Namespace) -> int:
    from ..packing.pack import pack
    from ..packing.pool import Stopped
    from ..packing.report import progress_bar, render

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
        if arguments.decoded:
            report["decoded"] = _keep_decoded(report["dataset"])
    except (Stopped, KeyboardInterrupt) as stop:
        say(str(stop) or "stopped; run the same command again", sys.stderr)
        return STOPPED
    show(json.dumps(report) if arguments.json else render(report))
    _show_decoded(arguments, report)
    return 0


def _add_decoded(parser: argparse.ArgumentParser) -> None:
    what = "decode small images once now, and keep their pixels beside the tars, as the first epoch would"
    parser.add_argument("--decoded", action="store_true", help=what)


def _keep_decoded(root: str) -> dict[str, Any]:
    from ..data.remote import open_dataset
    from ..packing.decoded import keep_decoded
    from ..packing.report import progress_bar

    try:
        with progress_bar("decoding") as progress:
            return keep_decoded(open_dataset(root), progress)
    except KeyboardInterrupt:
        what = "what is not decoded yet, the first epoch of a training decodes"
        raise RunError(f"stopped; the dataset {root} is made, and {what}") from None


def _show_decoded(arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    if "decoded" in report and not arguments.json:
        from ..packing.decoded import render

        show(render(report["decoded"]))


def _add_adopt(commands: Any) -> None:
    parser = commands.add_parser(
        "adopt",
        aliases=["index"],  # what it was called before there was an engine
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
    add_field_option(parser.add_argument, "EXTENSION", "what else a sample holds, such as mask=seg.png")
    parser.add_argument("--workers", type=int, default=cpus(), help="shards at a time (%(default)s)")
    _add_decoded(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_adopt)


def _adopt(arguments: argparse.Namespace) -> int:
    raise_on_stop()
    try:
        report = _adopted(arguments)
    except KeyboardInterrupt:
        say("stopped; what was read is kept: run the same command again to go on", sys.stderr)
        return STOPPED
    if arguments.json:
        show(json.dumps(report))
        return 0
    from ..packing.report import described

    task = f"{report['task']}, {report['targets']} targets" if report["task"] else "no targets"
    show(f"{report['dataset']}: {task}{described(report['described'])}; members {', '.join(report['fields'])}")
    for split, counts in report["splits"].items():
        show(f"  {split:<6}{several(counts['samples'], 'sample'):>19} {several(counts['shards'], 'shard'):>13}")
    if report["lacking"]:
        examples = "; ".join(report["lacking_examples"])
        show(f"  {report['lacking']:,} samples lack something or are damaged, and will be skipped, such as {examples}")
    _show_decoded(arguments, report)
    return 0


def _adopted(arguments: argparse.Namespace) -> dict[str, Any]:
    from ..packing.adopt import adopt
    from ..packing.field_columns import parse_fields
    from ..packing.report import progress_bar
    from ..packing.spelling import read_names

    _at_least_one("--workers", arguments.workers)
    names = read_names(arguments.names) if arguments.names else None
    patterns = {split: getattr(arguments, split) for split in ("val", "test") if getattr(arguments, split)}
    with progress_bar("adopting", "shards") as progress:
        fields = parse_fields(arguments.field)
        report = adopt(arguments.source, arguments.dest, patterns, names, arguments.workers, progress, fields)
    if arguments.decoded:
        report["decoded"] = _keep_decoded(report["dataset"])
    return report


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="re-read a packed dataset and report every damage",
        description="Compare checksums, walk headers and decode every image and target of DATASET. Status 1: damage.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder or URL")
    parser.add_argument("--workers", type=int, default=cpus(), help="shards at a time (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> None:
    from ..packing.report import progress_bar
    from ..packing.verify import verify

    _at_least_one("--workers", arguments.workers)
    with progress_bar("verifying") as progress:
        report = verify(arguments.dataset, arguments.workers, progress)
    size = f"{several(report['samples'], 'sample')} in {several(report['shards'], 'shard')}"
    size += f", {in_bytes(report['bytes'])}"
    if arguments.json:
        show(json.dumps(report))
    else:
        for damage in report["damages"]:
            show(f"{damage['shard']} {damage['key'] or ''} {damage['offset'] or ''}: {damage['error']}")
        show(size)
    if report["damages"]:
        arrays = all(damage["shard"].endswith(".npy") for damage in report["damages"])
        way_out = "delete the arrays of decoded images named above" if arrays else "restore the shards or pack it again"
        raise RunError(f"{arguments.dataset} is damaged; {way_out}")


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} is {value}, it must be at least 1")
