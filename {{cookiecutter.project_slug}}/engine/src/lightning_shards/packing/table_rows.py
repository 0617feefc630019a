"""The rows of a table of paths and targets, whatever its format."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..data.number_text import to_number
from ..errors import InputError
from .field_columns import ColumnReader, FieldColumn, labels, single
from .image_files import are_plain, below
from .source_table import Row
from .spelling import SPLITS, check_classes, clean, split_of
from .tables import Cell, read_cells

PATHS = "path"  # the column of paths, where none is named
CHUNK = 1024  # rows whose paths are looked at together
MOST_KNOWN = 1 << 16  # cells whose classes are kept: the same text comes again and again


@dataclass(frozen=True)
class TableColumns:
    """How to read a table: its columns (None: PATHS), and the folder or zip of its paths (None: the table's folder)."""

    path: str | None = None
    targets: tuple[str, ...] = ()
    split: str | None = None
    images: Path | None = None
    fields: tuple[FieldColumn, ...] = ()


def table_rows(table: Path, task: str, columns: TableColumns, readers: Sequence[ColumnReader]) -> Iterator[Row]:
    """A path, no target or one or more, and the fields of `readers` a row."""
    root, row, first, number = columns.images or table.parent, f"{table}: row ", 1 + bool(columns.split), 0
    wanted = [columns.path or PATHS, *([columns.split] if columns.split else []), *columns.targets]
    none: list[str] = []
    last, known, classes = len(wanted), dict[Cell, list[Any]](), task in ("single_label", "multi_label")
    rows = read_cells(table, [*wanted, *(reader.field.column for reader in readers)])
    while chunk := list(islice(rows, CHUNK)):
        plain = are_plain([cells[0] for cells in chunk])
        for cells in chunk:
            number += 1
            path, split, fields = cells[0], -1, none
            if not plain:
                path = below(root, single(f"{row}{number}", path), f"{row}{number}")
            if columns.split:
                split = _split(f"{row}{number}", cells[1])
            try:
                target = known[cells[first]]
            except (KeyError, IndexError, TypeError):  # a list cannot be a key
                target = _targets(f"{row}{number}", task, cells[first:last])
                if classes and isinstance(cells[first], str) and len(known) < MOST_KNOWN:
                    known[cells[first]] = target
            if readers:
                pairs = zip(readers, cells[last:], strict=True)
                fields = [reader.read(f"{row}{number}", cell) for reader, cell in pairs]
            yield Row(path, split, target, 0, fields)  # type: ignore[arg-type]


def _split(where: str, cell: Cell) -> int:
    named = single(where, cell)
    if (found := split_of(named)) is None:
        raise InputError(f"{where} names an unknown split, {named[:80]!r}; there are {', '.join(SPLITS)}")
    return SPLITS.index(found)


def table_paths(table: Path, column: str, images: Path) -> Iterator[str]:
    """The paths in a column of a table, as they lie below `images`."""
    for row, (cell,) in enumerate(read_cells(table, [column]), 1):
        where = f"{table}: row {row}"
        yield below(images, single(where, cell), where)


def _targets(where: str, task: str, cells: tuple[Cell, ...]) -> list[Any]:
    if not task:
        return []
    if task == "multi_label":
        return sorted({clean(label) for label in labels(where, cells[0])} - {""})
    texts = [single(where, cell) for cell in cells]
    if task == "single_label":
        if not (name := clean(texts[0])):
            raise InputError(f"{where} has no class")
        if not name.isascii():
            check_classes(where, [name])
        return [name]
    try:
        numbers = [to_number(text) for text in texts]
        if all(map(math.isfinite, numbers)):
            return numbers
    except ValueError:
        pass
    raise InputError(f"{where} has {' and '.join(map(repr, texts))} where finite numbers are needed (as 0.5, not 0,5)")
