"""What a user has: a folder of class folders or of images and masks, a zip of one, or a table of paths and targets.

`list_source` goes through the source. The same images come in the same order from each kind of source:
folders and zips sorted by name, tables as their rows stand.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .field_columns import ColumnReader, FieldColumn, with_kinds
from .folder_rows import folder_rows
from .image_files import check_root, list_zip
from .pixel_classes import name_classes
from .source_table import Row, SourceTable, sort_classes, write_rows
from .spelling import check_classes
from .table_rows import TableColumns, table_rows
from .tables import TABLES, is_table

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk


def list_source(
    source: Path, task: str, columns: TableColumns, folder: Path, names: Sequence[str] = ()
) -> tuple[SourceTable, str]:
    """List `source` into the empty `folder`; returns the listing and its hash. `names` are those of masks' classes.

    Raises InputError for what cannot be packed.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist")
    about: dict[str, Any] = {"task": task, "root": str(source), "lead": "", "ignored": 0, "ignored_example": ""}
    try:
        digest = (_list_table if is_table(source) else _list_folder)(source, columns, folder, about)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InputError(f"{source} cannot be read ({error.strerror}: {error.filename})") from None
    if about["task"] == "segmentation":
        name_classes(about, names)
    elif names:
        raise InputError(f"--names is for the classes of masks: those of {source} have names, or are no masks")
    check_classes(str(source), about["names"])
    if about["task"] == "single_label" and len(about["names"]) < 2:
        raise InputError(f"{source} has one class only, {about['names'][0]!r}; two or more are needed")
    (folder / "about.json").write_text(json.dumps(about))
    if (folder / "members.npy").exists():
        digest += hashlib.sha256((folder / "members.npy").read_bytes()).hexdigest()
    return SourceTable(folder), digest


def _list_table(table: Path, columns: TableColumns, folder: Path, about: dict[str, Any]) -> str:
    images, task = columns.images or table.parent, about["task"]
    if task == "segmentation":
        columns = _with_masks(table, columns)
    elif not columns.targets and columns.fields and task == "single_label":
        task = ""  # the fields are all that there is
    elif not columns.targets or (task != "regression" and len(columns.targets) > 1):
        raise InputError(f"{table} is a table: name its target column (--target-columns; several for regression only)")
    check_root(images)
    if images.is_file():
        np.save(folder / "members.npy", list_zip(images)[1])
    readers = [ColumnReader(column, images) for column in with_kinds(table, columns.fields)]
    about |= {"root": str(images), "task": task}
    rows = table_rows(table, "" if task == "segmentation" else task, columns, readers)
    digest, names = _write(table, rows, folder, task, "rows with targets")
    about["names"] = list(columns.targets) if names is None else names
    about["fields"] = [reader.about() for reader in readers]
    if task == "segmentation" and readers[0].missing:
        raise InputError(f"{table} has {readers[0].missing} rows without a mask: add them, or take the rows away")
    return digest


def _with_masks(table: Path, columns: TableColumns) -> TableColumns:
    """The same columns, with the target as the field `mask`."""
    if len(columns.targets) != 1:
        raise InputError(f"{table} is a table: name its column of masks (--target-columns)")
    if any(column.name == "mask" for column in columns.fields):
        raise InputError(f"{table}: --target-columns names the masks already, give --field another name than mask")
    return replace(columns, targets=(), fields=(FieldColumn("mask", columns.targets[0], "mask"), *columns.fields))


def _list_folder(source: Path, columns: TableColumns, folder: Path, about: dict[str, Any]) -> str:
    if about["task"] not in ("single_label", "segmentation"):
        raise InputError(f"{source} gives one class an image; for {about['task']} pack a table with --target-columns")
    if columns.fields:
        raise InputError(f"{source} is no table: --field names a table's column; masks lie in masks/ beside images/")
    if columns != TableColumns():
        raise InputError(f"{source} is no table: leave out the options of tables, its folders say all")
    files = None
    if not source.is_dir():
        if source.suffix.lower() != ".zip":
            hint = {".tar": "; describe tars with `adopt`", ".xlsx": "; save the sheet as CSV (UTF-8)"}
            what = hint.get(source.suffix.lower(), "")
            raise InputError(f"{source} is no folder, zip or table ({', '.join(TABLES)}){what}")
        names, members = list_zip(source)
        np.save(folder / "members.npy", members)
        files = [(name, 0) for name in names]
    about["fields"] = []
    wanted, rows = about["task"], folder_rows(source, files, about)
    if about["task"] != wanted == "segmentation":
        raise InputError(f"{source} has no folders images/ and masks/ alone, with files of the same names in both")
    expected = "images; expected <class>/<image>, <split>/<class>/<image>, or images/ and masks/"
    digest, classes = _write(source, rows, folder, about["task"], expected)
    about["names"] = classes or []
    return digest


def _write(source: Path, rows: Iterator[Row], folder: Path, task: str, expected: str) -> tuple[str, list[str] | None]:
    """Write the columns; returns their hash, and the names of the classes where the task has any."""
    numbers: dict[str, int] | None = {} if task in ("single_label", "multi_label") else None
    digest = write_rows(folder, rows, numbers)
    if not (folder / "splits").exists() or numbers == {}:
        raise InputError(f"{source} has no {expected}")
    return digest, None if numbers is None else sort_classes(folder, numbers)
