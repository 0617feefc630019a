"""What a user has: a folder of class folders, a zip of one, or a table of paths and targets.

`list_source` goes through the source. The same images come in the same order from each kind of source:
folders and zips sorted by name, tables as their rows stand.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.file_names import is_image_file
from ..errors import InputError
from .image_files import below, check_root, list_zip, walk
from .source_table import Row, SourceTable, sort_classes, write_rows
from .spelling import SPLITS, check_classes, clean, split_of
from .tables import TABLES, Cell, is_table, read_cells

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk


@dataclass(frozen=True)
class TableColumns:
    """How to read a table: its columns, and the folder or zip of its paths (None: the table's folder)."""

    path: str = "path"
    targets: tuple[str, ...] = ()
    split: str | None = None
    images: Path | None = None


def _layout(root: Path, names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The one leading folder to leave out (`""` or `name/`), and the split of each folder below it, if all are one."""
    tree: dict[str, dict[str, bool]] = {}  # folder -> folders in it -> whether they have folders
    for top, *rest in (name.split("/")[:-1] for name in names if "/" in name):
        below = tree.setdefault(top, {})
        if rest:
            below[rest[0]] = below.get(rest[0], False) or len(rest) > 1
    lead, tops = "", {top: bool(below) for top, below in tree.items()}
    if len(tops) == 1 and all(tops.values()) and not split_of(next(iter(tops))):
        lead, tops = f"{next(iter(tops))}/", next(iter(tree.values()))
    splits = {top: split for top in sorted(tops) if (split := split_of(top))}
    if len(splits) > 1 and splits.keys() != tops.keys():
        raise InputError(f"{root} has split folders beside {min(tops.keys() - splits)!r}: keep one or the other")
    if not splits or splits.keys() != tops.keys():
        return lead, {}
    if twice := [top for top in splits if list(splits.values()).count(splits[top]) > 1]:
        raise InputError(f"{root} has the folders {', '.join(twice)} for one split: put their images into one folder")
    if not any(tops[top] for top, split in splits.items() if split == "train"):
        raise InputError(f"{root} has split folders, but no {lead}train/<class>/<image>: put images to train on there")
    return lead, splits


def _tree_rows(root: Path, files: list[tuple[str, int]] | None, about: dict[str, Any]) -> Iterator[Row]:
    """A folder (or a zip's `files`) of class folders, with or without split folders."""
    lead, splits = _layout(root, (name for name, _ in files or walk(root)))
    depth, seen, declared = bool(splits), set[str](), set[str]()
    about |= {"lead": lead, "ignored": 0, "ignored_example": ""}
    for name, stamp in files or walk(root):
        path = name.removeprefix(lead)
        parts = path.split("/")
        inside = len(parts) >= 2 + depth and name.startswith(lead)
        if inside:
            declared.add(parts[depth])
        if inside and not name.endswith("/") and is_image_file(name):
            seen.add(parts[depth])
            yield Row(path, SPLITS.index(splits[parts[0]]) if splits else -1, [clean(parts[depth])], stamp)
        elif not name.endswith("/"):
            about["ignored"] += 1
            about["ignored_example"] = about["ignored_example"] or ascii(name)[1:-1]
    if declared - seen:
        raise InputError(f"{root}: class folder {min(declared - seen)!r} has no image; fill it or remove it")


def _table_rows(table: Path, task: str, columns: TableColumns) -> Iterator[Row]:
    """A table with a path and one or more targets a row."""
    wanted = [columns.path, *([columns.split] if columns.split else []), *columns.targets]
    root, first = columns.images or table.parent, 1 + bool(columns.split)
    for number, cells in enumerate(read_cells(table, wanted), 1):
        where = f"{table}: row {number}"
        path, split = _one(where, cells[0]), -1
        if columns.split:
            named = _one(where, cells[1])
            if (found := split_of(named)) is None:
                raise InputError(f"{where} names an unknown split, {named[:80]!r}; there are {', '.join(SPLITS)}")
            split = SPLITS.index(found)
        yield Row(below(root, path, where), split, _cell_targets(where, task, cells[first:]))


def _one(where: str, cell: Cell) -> str:
    if isinstance(cell, list):
        raise InputError(f"{where} has a list where one value is needed; several labels need --task multi_label")
    return cell


def table_paths(table: Path, column: str, images: Path) -> Iterator[str]:
    """The paths in a column of a table, as they lie below `images`."""
    for row, (cell,) in enumerate(read_cells(table, [column]), 1):
        where = f"{table}: row {row}"
        yield below(images, _one(where, cell), where)


def _cell_targets(where: str, task: str, cells: tuple[Cell, ...]) -> list[Any]:
    if task == "multi_label":
        return sorted({clean(label) for label in _labels(where, cells[0])} - {""})
    texts = [_one(where, cell) for cell in cells]
    if task == "single_label":
        if not (name := clean(texts[0])):
            raise InputError(f"{where} has no class")
        if not name.isascii():
            check_classes(where, [name])
        return [name]
    try:
        numbers = [float(text) for text in texts]
        if all(map(math.isfinite, numbers)):
            return numbers
    except ValueError:
        pass
    raise InputError(f"{where} has {' and '.join(map(repr, texts))} where finite numbers are needed (as 0.5, not 0,5)")


def _labels(where: str, cell: Cell) -> list[str]:
    if isinstance(cell, list):
        return cell
    if not (cell.startswith("[") and cell.endswith("]")):
        return cell.split("|")
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(label, str | int) for label in found):
        raise InputError(f"{where} has the list {cell[:80]!r}: give labels joined by |, such as red|blue")
    return list(map(str, found))


def list_source(source: Path, task: str, columns: TableColumns, folder: Path) -> tuple[SourceTable, str]:
    """List `source` into the empty `folder`; returns the listing and its hash.

    Raises InputError for what cannot be packed.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist")
    about: dict[str, Any] = {"task": task, "root": str(source), "lead": "", "ignored": 0, "ignored_example": ""}
    numbers: dict[str, int] | None = None if task == "regression" else {}
    try:
        digest = write_rows(folder, _rows(source, task, columns, folder, about), numbers)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InputError(f"{source} cannot be read ({error.strerror}: {error.filename})") from None
    if not (folder / "splits").exists() or numbers == {}:
        expected = (
            "rows with targets" if is_table(source) else "images; expected <class>/<image> or <split>/<class>/<image>"
        )
        raise InputError(f"{source} has no {expected}")
    about["names"] = list(columns.targets) if numbers is None else sort_classes(folder, numbers)
    check_classes(str(source), about["names"])
    if task == "single_label" and len(about["names"]) < 2:
        raise InputError(f"{source} has one class only, {about['names'][0]!r}; two or more are needed")
    (folder / "about.json").write_text(json.dumps(about))
    if (folder / "members.npy").exists():
        digest += hashlib.sha256((folder / "members.npy").read_bytes()).hexdigest()
    return SourceTable(folder), digest


def _rows(source: Path, task: str, columns: TableColumns, folder: Path, about: dict[str, Any]) -> Iterator[Row]:
    """The rows of any kind of source; members of a zip are noted in `folder`."""
    suffix = source.suffix.lower()
    if is_table(source):
        images = columns.images or source.parent
        if not columns.targets or (task != "regression" and len(columns.targets) > 1):
            raise InputError(
                f"{source} is a table: name its target column (--target-columns; several for regression only)"
            )
        check_root(images)
        if images.is_file():
            np.save(folder / "members.npy", list_zip(images)[1])
        about["root"] = str(images)
        return _table_rows(source, task, columns)
    if task != "single_label":
        raise InputError(f"{source} gives one class an image; for {task} pack a table with --target-columns")
    if source.is_dir():
        return _tree_rows(source, None, about)
    if suffix == ".zip":
        names, members = list_zip(source)
        np.save(folder / "members.npy", members)
        return _tree_rows(source, [(name, 0) for name in names], about)
    hint = {".tar": "; describe tars with `adopt`", ".xlsx": "; save the sheet as CSV (UTF-8)"}.get(suffix, "")
    raise InputError(f"{source} is no folder, zip or table ({', '.join(TABLES)}){hint}")
