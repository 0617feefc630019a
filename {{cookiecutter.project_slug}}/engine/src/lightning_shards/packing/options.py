"""The command line flags that say how images are packed: for `pack`, and for `forecast` of what is not packed yet."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.dataset import TASKS
from ..errors import InputError
from ..machine import cpus

if TYPE_CHECKING:
    from .pack import PackOptions

KINDS = (
    "numbers", "text", "class", "labels", "image", "mask", "boxes", "boxes_xywh", "array", "json", "bytes",
)  # fmt: skip


def size(text: str) -> int:
    """Bytes, or any other number, with K, M or G for thousands, millions and billions."""
    factor = {"K": 10**3, "M": 10**6, "G": 10**9}.get(text[-1:].upper())
    with suppress(OverflowError):  # infinity
        return round(float(text[:-1]) * factor) if factor else int(text)
    raise ValueError("it has no end")


def add_field_option(add: Callable[..., Any], origin: str, what: str) -> None:
    """Add `--field`, of which there may be several."""
    add(
        "--field",
        action="append",
        default=[],
        metavar=f"NAME={origin}[:KIND]",
        help=f"{what}; KIND, where it cannot be told: {', '.join(KINDS)}",
    )


def add_pack_options(parser: argparse.ArgumentParser, *root: str) -> None:
    """Add the flags of `recipe`; `root` are those that name the folder of a table's images."""
    add = parser.add_argument_group("images").add_argument
    add(
        "--short-side",
        type=int,
        default=256,
        help="make larger images so small, as JPEG; smaller ones keep their bytes (%(default)s)",
    )
    add("--copy", action="store_true", help="keep every file's bytes as they are")
    add("--quality", type=int, default=95, help="JPEG quality of images that are encoded anew (%(default)s)")
    add(
        "--max-damaged-fraction",
        type=float,
        default=0.01,
        help="stop above this share of damaged files (%(default)s)",
    )
    add = parser.add_argument_group("splits").add_argument
    add("--val", type=float, default=0.1, help="share to validate on, if SOURCE has no val split (%(default)s)")
    add("--test", type=float, default=0.1, help="share to test on, if SOURCE has no test split (%(default)s)")
    add("--seed", type=int, default=0, help="of splits and order (%(default)s)")
    add = parser.add_argument_group("masks and boxes").add_argument
    add("--names", type=Path, metavar="FILE", help="names of the classes 0, 1, 2 ..., one a line")
    add(
        "--coco",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="annotations with boxes of SOURCE's images, in COCO's form; one for each split (default: those in SOURCE)",
    )
    add = parser.add_argument_group("tables").add_argument
    add("--task", choices=TASKS, help=f"what the targets are (as SOURCE says, or {TASKS[0]})")
    add("--path-column", help="column of the images' paths (path)")
    add(
        "--target-columns",
        default="",
        help="the class; or labels joined by |; or numbers: COLUMN,COLUMN; or masks; or boxes",
    )
    add("--split-column", help="column that says train, val or test")
    add_field_option(add, "COLUMN", "what else a sample holds, from a column")
    add(*root, type=Path, metavar="ROOT", dest="root", help="folder or zip of the paths (default: the table's folder)")
    add = parser.add_argument_group("writing").add_argument
    add(
        "--shard-bytes",
        type=size,
        default=256_000_000,
        help="size of a shard, about, such as 100M or 1G; smaller where train would have less than 8 (256M)",
    )
    add("--workers", type=int, default=cpus(), help="processes (%(default)s)")


def recipe(arguments: argparse.Namespace, limit: int | None = None) -> PackOptions:
    """What the flags say. Raises InputError where one leaves another nothing to decide."""
    from .field_columns import parse_fields
    from .pack import PackOptions
    from .spelling import read_names
    from .table_rows import TableColumns

    for option in ("--short-side", "--quality") if arguments.copy else ():
        if option in arguments.typed:
            raise InputError(f"--copy keeps every byte, so {option} decides nothing: leave out one of them")
    targets = tuple(name.strip() for name in arguments.target_columns.split(",") if name.strip())
    return PackOptions(
        task=arguments.task,
        names=tuple(read_names(arguments.names)) if arguments.names else (),
        coco=tuple(arguments.coco),
        columns=TableColumns(
            arguments.path_column, targets, arguments.split_column, arguments.root, parse_fields(arguments.field)
        ),
        short_side=None if arguments.copy else arguments.short_side,
        quality=arguments.quality,
        val=arguments.val,
        test=arguments.test,
        shard_bytes=arguments.shard_bytes,
        limit=limit,
        seed=arguments.seed,
    )
