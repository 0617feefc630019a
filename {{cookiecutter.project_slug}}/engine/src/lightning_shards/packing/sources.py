"""What a user has: a folder of class folders, a zip of one, or a table of paths and targets.

`list_source` goes through the source. The same images come in the same order from each kind of source:
folders and zips sorted by name, tables as their rows stand.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ..errors import InputError
from .source_table import BATCH, Row, SourceTable, index_zip, sort_classes, write_rows

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}


@dataclass(frozen=True)
class TableColumns:
    """How to read a table: its columns, and the folder or zip of its paths (None: the table's folder)."""

    path: str = "path"
    targets: tuple[str, ...] = ()
    split: str | None = None
    images: Path | None = None


def walk(folder: Path, prefix: str = "", above: tuple[Path, ...] = ()) -> Iterator[tuple[str, int]]:
    """Relative path and stamp of each file, sorted; an empty folder as `path/`. Links are followed."""
    if folder.resolve() in above:
        raise InputError(f"{folder} is a link to a folder above itself; remove it")
    entries = sorted((entry for entry in os.scandir(folder) if not entry.name.startswith(".")), key=lambda e: e.name)
    if not entries and prefix:
        yield prefix, 0
    for entry in entries:
        if entry.is_dir():
            yield from walk(folder / entry.name, f"{prefix}{entry.name}/", (*above, folder.resolve()))
        elif entry.is_file() or entry.is_symlink():  # a broken link is found when it is read; no pipes and sockets
            stat = entry.stat(follow_symlinks=entry.is_file())
            yield prefix + entry.name, stat.st_mtime_ns ^ stat.st_size


def _layout(root: Path, names: Iterable[str]) -> tuple[str, bool]:
    """The one leading folder to leave out (`""` or `name/`), and whether the folders below it are splits."""
    tree: dict[str, dict[str, bool]] = {}  # folder -> folders in it -> whether they have folders
    for top, *rest in (name.split("/")[:-1] for name in names if "/" in name):
        below = tree.setdefault(top, {})
        if rest:
            below[rest[0]] = below.get(rest[0], False) or len(rest) > 1
    lead, tops = "", {top: bool(below) for top, below in tree.items()}
    if len(tops) == 1 and all(tops.values()) and next(iter(tops)).lower() not in _SPLIT_NAMES:
        lead, tops = f"{next(iter(tops))}/", next(iter(tree.values()))
    splits = {top for top in tops if top.lower() in _SPLIT_NAMES}
    if len(splits) > 1 and splits != tops.keys():
        raise InputError(f"{root} has split folders beside {min(tops.keys() - splits)!r}: keep one or the other")
    has_splits = bool(splits) and splits == tops.keys()
    if has_splits and not any(tops[top] for top in splits if top.lower() == "train"):
        raise InputError(f"{root} has split folders, but no {lead}train/<class>/<image>: put images to train on there")
    return lead, has_splits


def _tree_rows(root: Path, files: list[tuple[str, int]] | None, about: dict[str, Any]) -> Iterator[Row]:
    """A folder (or a zip's `files`) of class folders, with or without split folders."""
    lead, has_splits = _layout(root, (name for name, _ in files or walk(root)))
    seen, declared = set[str](), set[str]()
    about |= {"lead": lead, "ignored": 0}
    for name, stamp in files or walk(root):
        path = name.removeprefix(lead)
        parts = path.split("/")
        if len(parts) < 2 + has_splits or not name.startswith(lead):
            about["ignored"] += not name.endswith("/")
        elif name.endswith("/"):
            declared.add(parts[has_splits])
        else:
            seen.add(parts[has_splits])
            yield Row(path, _SPLIT_NAMES[parts[0].lower()] if has_splits else -1, [parts[has_splits]], stamp)
    if declared - seen:
        raise InputError(f"{root}: class folder {min(declared - seen)!r} has no image; fill it or remove it")


def _batches(table: Path, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    """Stream the wanted columns of a CSV or Parquet file as strings."""
    strings = pa.schema([(name, pa.string()) for name in wanted])
    try:
        if table.suffix.lower() == ".parquet":
            file = pa.parquet.ParquetFile(table)
            present, batches = file.schema_arrow.names, file.iter_batches(BATCH)
        else:
            present = pa.csv.open_csv(table).schema.names
            types = pa.csv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string()))
            batches = pa.csv.open_csv(table, convert_options=types)
        if missing := [name for name in wanted if name not in present]:
            raise InputError(f"{table} has no column {missing[0]!r}; it has {', '.join(present)}")
        if twice := [name for name in wanted if present.count(name) > 1]:
            raise InputError(f"{table} has two columns {twice[0]!r}: rename one")
        for batch in batches:
            yield batch.select(wanted).cast(strings)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{table}: {str(error).splitlines()[0]}") from None


def _table_rows(table: Path, task: str, columns: TableColumns) -> Iterator[Row]:
    """A table with a path and one or more targets a row."""
    wanted = [columns.path, *([columns.split] if columns.split else []), *columns.targets]
    row, root = 0, columns.images or table.parent
    for batch in _batches(table, wanted):
        for path, *cells in zip(*(column.fill_null("").to_pylist() for column in batch.columns), strict=True):
            row += 1
            path = _below(root, path, f"{table}: row {row}")
            split = _SPLIT_NAMES.get(cells.pop(0).lower()) if columns.split else -1
            if split is None:
                raise InputError(f"{table}: row {row} names an unknown split; there are {', '.join(_SPLIT_NAMES)}")
            yield Row(path, split, _cell_targets(f"{table}: row {row}", task, cells))


def table_paths(table: Path, column: str, images: Path) -> Iterator[str]:
    """The paths in a column of a CSV or Parquet file, as they lie below `images`."""
    rows = itertools.chain.from_iterable(
        batch.column(0).fill_null("").to_pylist() for batch in _batches(table, [column])
    )
    return (_below(images, path, f"{table}: row {row}") for row, path in enumerate(rows, 1))


def check_root(images: Path) -> None:
    """Raise InputError where the paths of a table can lie below no such place."""
    if not images.is_dir() and not (images.is_file() and images.suffix.lower() == ".zip"):
        raise InputError(f"--images {images} is no folder and no zip")


def _below(root: Path, path: str, where: str) -> str:
    path = path.removeprefix(str(root).rstrip("/") + "/")  # absolute paths are common, and fine below the root
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise InputError(f"{where} has the path {path!r}; paths must lie below {root}/ (or below --images)")
    return path


def _cell_targets(where: str, task: str, cells: list[str]) -> list[Any]:
    if task == "multi_label":
        return sorted({label.strip() for label in cells[0].split("|")} - {""})
    if task == "single_label" and not cells[0]:
        raise InputError(f"{where} has no class")
    try:
        if task == "single_label" or all(math.isfinite(float(cell)) for cell in cells):
            return cells if task == "single_label" else [float(cell) for cell in cells]
    except ValueError:
        pass
    raise InputError(f"{where} has {' and '.join(map(repr, cells))} where finite numbers are needed")


def list_source(source: Path, task: str, columns: TableColumns, folder: Path) -> tuple[SourceTable, str]:
    """List `source` into the empty `folder`; returns the listing and its hash.

    Raises InputError for what cannot be packed.
    """
    about: dict[str, Any] = {"task": task, "root": str(source), "lead": "", "ignored": 0}
    suffix = source.suffix.lower()
    if not source.exists():
        raise InputError(f"{source} does not exist")
    if suffix in (".csv", ".parquet"):
        images = columns.images or source.parent
        if not columns.targets or (task != "regression" and len(columns.targets) > 1):
            raise InputError(
                f"{source} is a table: name its target column (--target-columns; several for regression only)"
            )
        check_root(images)
        if images.is_file():
            index_zip(images, folder)
        about["root"], rows = str(images), _table_rows(source, task, columns)
    elif task != "single_label":
        raise InputError(
            f"{source} gives one class an image; for {task} pack a CSV or Parquet table with --target-columns"
        )
    elif source.is_dir():
        rows = _tree_rows(source, None, about)
    elif suffix == ".zip":
        names = [
            name
            for name in index_zip(source, folder)
            if not any(p[:1] == "." or p == "__MACOSX" for p in name.split("/"))
        ]
        rows = _tree_rows(source, [(name, 0) for name in sorted(names, key=lambda name: name.split("/"))], about)
    else:
        raise InputError(
            f"{source} is no folder, zip, CSV or Parquet file"
            + ("; describe tars with `index`" if suffix == ".tar" else "")
        )
    numbers: dict[str, int] | None = None if task == "regression" else {}
    digest = write_rows(folder, rows, numbers)
    if not (folder / "splits").exists() or numbers == {}:
        expected = (
            "rows with targets"
            if about["root"] != str(source)
            else "images; expected <class>/<image> or <split>/<class>/<image>"
        )
        raise InputError(f"{source} has no {expected}")
    about["names"] = list(columns.targets) if numbers is None else sort_classes(folder, numbers)
    if strange := [name for name in about["names"] if not name.isprintable()]:
        raise InputError(f"{source} has the class {strange[0]!r}: rename it, so that it can be printed")
    if task == "single_label" and len(about["names"]) < 2:
        raise InputError(f"{source} has one class only, {about['names'][0]!r}; two or more are needed")
    (folder / "about.json").write_text(json.dumps(about))
    if (folder / "members.npy").exists():
        digest += hashlib.sha256((folder / "members.npy").read_bytes()).hexdigest()
    return SourceTable(folder), digest
