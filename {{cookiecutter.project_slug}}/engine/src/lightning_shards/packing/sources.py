"""What a user has: a folder of class folders, of images and masks, or of images and annotations; a zip of one; or a
table of paths and targets.

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

from ..data.dataset import TARGET_FIELDS
from ..errors import InputError
from ..files import save_array
from .field_columns import ColumnReader, FieldColumn, with_kinds
from .folder_rows import folder_rows
from .image_files import ImageFiles, check_root, list_zip
from .source_table import Row, SourceTable, sort_classes, write_rows
from .spelling import check_classes
from .table_rows import TableColumns, table_rows
from .tables import TABLES, is_table
from .target_classes import name_classes

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk


def list_source(
    source: Path,
    task: str | None,
    columns: TableColumns,
    folder: Path,
    names: Sequence[str] = (),
    coco: Sequence[Path] = (),
) -> tuple[SourceTable, str]:
    """List `source` into the empty `folder`; returns the listing and its hash.

    Args:
        names: of the classes of masks and boxes.
        coco: files of annotations beside a folder or zip of images.

    Raises InputError for what cannot be packed.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist")
    about: dict[str, Any] = {"task": task, "root": str(source), "lead": "", "ignored": 0, "ignored_example": ""}
    if coco and is_table(source):
        raise InputError(f"{source} is a table, whose boxes are a column: --coco is for folders of images")
    try:
        if is_table(source):
            digest = _list_table(source, columns, folder, about)
        else:
            digest = _list_folder(source, columns, folder, about, coco)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InputError(f"{source} cannot be read ({error.strerror}: {error.filename})") from None
    if about["task"] in TARGET_FIELDS:
        name_classes(about, names)
    elif names:
        raise InputError(f"--names is for the classes of masks and boxes: those of {source} have names, or are neither")
    check_classes(str(source), about["names"])
    if about["task"] == "single_label" and len(about["names"]) < 2:
        raise InputError(f"{source} has one class only, {about['names'][0]!r}; two or more are needed")
    (folder / "about.json").write_text(json.dumps(about))
    if (folder / "members.npy").exists():
        digest += hashlib.sha256((folder / "members.npy").read_bytes()).hexdigest()
    return SourceTable(folder), digest


def _list_table(table: Path, columns: TableColumns, folder: Path, about: dict[str, Any]) -> str:
    images, task = columns.images or table.parent, about["task"]
    if task in TARGET_FIELDS:
        columns = _with_target(table, columns, task)
    elif not columns.targets and columns.fields and task is None:
        task = ""  # the fields are all that there is
    elif not columns.targets or (task != "regression" and len(columns.targets) > 1):
        raise InputError(f"{table} is a table: name its target column (--target-columns; several for regression only)")
    task = "single_label" if task is None else task
    check_root(images)
    if images.is_file():
        save_array(folder / "members.npy", list_zip(images)[1])
    readers = [ColumnReader(column, images) for column in with_kinds(table, columns.fields)]
    about |= {"root": str(images), "task": task}
    rows = table_rows(table, "" if task in TARGET_FIELDS else task, columns, readers)
    digest, names = _write(table, rows, folder, task, "rows with targets")
    about["names"] = list(columns.targets) if names is None else names
    about["fields"] = [reader.about() for reader in readers]
    if task == "segmentation" and readers[0].missing:
        raise InputError(f"{table} has {readers[0].missing} rows without a mask: add them, or take the rows away")
    if task == "detection" and readers[0].missing:
        none = json.dumps({"boxes": [], "labels": []})
        raise InputError(f"{table} has {readers[0].missing} rows without boxes: an image of nothing has {none}")
    return digest


def _with_target(table: Path, columns: TableColumns, task: str) -> TableColumns:
    """The same columns, with the target as a field."""
    name = TARGET_FIELDS[task]
    plural = "boxes" if name == "boxes" else "masks"
    if len(columns.targets) != 1:
        raise InputError(f"{table} is a table: name its column of {plural} (--target-columns)")
    if any(column.name == name for column in columns.fields):
        raise InputError(f"{table}: --target-columns names the {plural} already, give --field another name than {name}")
    return replace(columns, targets=(), fields=(FieldColumn(name, columns.targets[0], name), *columns.fields))


def _list_folder(source: Path, columns: TableColumns, folder: Path, about: dict[str, Any], coco: Sequence[Path]) -> str:
    wanted = about["task"] = "detection" if coco and about["task"] is None else about["task"]
    if wanted not in (None, "single_label", *TARGET_FIELDS):
        raise InputError(f"{source} gives one class an image; for {wanted} pack a table with --target-columns")
    if coco and wanted != "detection":
        raise InputError(f"--coco is for boxes: leave it out for {wanted}")
    if columns.fields:
        raise InputError(f"{source} is no table: --field names a table's column; masks lie in masks/ beside images/")
    if columns != TableColumns():
        raise InputError(f"{source} is no table: leave out the options of tables, its folders say all")
    files = members = None
    if not source.is_dir():
        if source.suffix.lower() != ".zip":
            hint = {".tar": "; describe tars with `adopt`", ".xlsx": "; save the sheet as CSV (UTF-8)"}
            what = hint.get(source.suffix.lower(), "")
            raise InputError(f"{source} is no folder, zip or table ({', '.join(TABLES)}){what}")
        names, members = list_zip(source)
        save_array(folder / "members.npy", members)
        files = [(name, 0) for name in names]
    about |= {"fields": [], "names": []}
    rows = folder_rows(source, files, ImageFiles(source, members), coco, about)
    if about["task"] != wanted == "segmentation":
        raise InputError(f"{source} has no folders images/ and masks/ alone, with files of the same names in both")
    if about["task"] != wanted == "single_label":
        raise InputError(f"{source} has masks, so it is for segmentation: leave out --task {wanted}")
    expected = "images; expected <class>/<image>, <split>/<class>/<image>, or images/ and masks/"
    digest, classes = _write(source, rows, folder, about["task"], expected)
    about["names"] = classes or about["names"]
    return digest


def _write(source: Path, rows: Iterator[Row], folder: Path, task: str, expected: str) -> tuple[str, list[str] | None]:
    """Write the columns; returns their hash, and the names of the classes where the task has any."""
    numbers: dict[str, int] | None = {} if task in ("single_label", "multi_label") else None
    digest = write_rows(folder, rows, numbers)
    if not (folder / "splits").exists() or numbers == {}:
        raise InputError(f"{source} has no {expected}")
    return digest, None if numbers is None else sort_classes(folder, numbers)
