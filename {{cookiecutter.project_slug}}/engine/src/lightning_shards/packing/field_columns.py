"""`--field NAME=COLUMN[:KIND]`: what a sample holds beside its image and target, from flag to text in the listing."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..data.file_names import IMAGE_FIELDS
from ..data.number_text import to_number
from ..errors import InputError
from .image_files import below
from .options import KINDS
from .spelling import check_classes, clean, is_utf8, sort_names
from .tables import Cell, read_cells

LIKE_MASKS = ("mask", "seg")  # what an 8-bit PNG of this name is
FILES = ("image", "mask", "array", "bytes", "boxes", "boxes_xywh", "json")  # kinds whose cells are paths
INLINE = ("boxes", "boxes_xywh", "json")  # or JSON itself, of which the first letter says so
LOOKED_AT = 1000  # rows, to tell a column's kind
_TAKEN = ("image", "target", "ids", "seeds", "valid")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,23}")  # a tar's plain header has room for no longer one
_SUFFIX = re.compile(r"[a-z0-9]{1,8}")


@dataclass(frozen=True)
class FieldColumn:
    """A field and where it comes from: a table's column, or in `adopt` the members with this extension.

    `kind` is one of KINDS; empty where it was not given, and the source has to tell.
    """

    name: str
    column: str
    kind: str = ""


def parse_fields(flags: Sequence[str]) -> tuple[FieldColumn, ...]:
    """What the flags say. Raises InputError for what they cannot mean."""
    found: dict[str, FieldColumn] = {}
    for flag in flags:
        name, _, column = flag.partition("=")
        column, colon, kind = column.rpartition(":") if ":" in column else (column, "", "")
        if not _NAME.fullmatch(name) or not column:
            raise InputError(
                f"--field {flag[:200]}: write NAME=COLUMN or NAME=COLUMN:KIND; a name has up to 24 lower-case letters, "
                "digits and _"
            )
        if colon and kind not in KINDS:
            raise InputError(f"--field {flag[:200]}: there is no kind {kind[:80]!r}; there are {', '.join(KINDS)}")
        if name in _TAKEN:
            raise InputError(f"--field {flag[:200]}: the name {name!r} is taken, choose another")
        if name in found:
            raise InputError(f"--field: the field {name!r} is named twice")
        found[name] = FieldColumn(name, column, kind)
    return tuple(found.values())


def with_kinds(table: Path, columns: Sequence[FieldColumn]) -> tuple[FieldColumn, ...]:
    """The same columns, each with the kind that its first cells tell where none was given."""
    unknown = [column for column in columns if not column.kind]
    rows = list(islice(read_cells(table, [column.column for column in unknown]), LOOKED_AT)) if unknown else []
    kinds = {column: _tell(table, column, [row[n] for row in rows if row[n]]) for n, column in enumerate(unknown)}
    return tuple(FieldColumn(one.name, one.column, one.kind or kinds[one]) for one in columns)


def _tell(table: Path, column: FieldColumn, cells: Sequence[Cell]) -> str:
    where = f"{table}: the kind of column {column.column!r} cannot be told"
    if not cells:
        raise InputError(f"{where} where it is empty: write --field {column.name}={column.column}:KIND")
    if all(_numbers(cell) is not None for cell in cells):
        return "numbers"
    if any(isinstance(cell, list) for cell in cells):
        return "labels"
    endings = {str(cell).rpartition(".")[2].lower() for cell in cells}
    if endings <= {"npy"}:
        return "array"
    if endings <= {"json"}:
        return "json"
    if endings <= {"png"}:
        if column.name in LIKE_MASKS:
            return "mask"
        raise InputError(f"{where}, its files are PNG: write --field {column.name}={column.column}:mask or :image")
    return "image" if endings <= {*IMAGE_FIELDS} else "text"


def _numbers(cell: Cell) -> list[float] | None:
    """The finite numbers in a cell: one, a list, or a list as JSON; None for anything else."""
    try:
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            cell = json.loads(cell)
        found = [to_number(text) for text in (cell if isinstance(cell, list) else [cell])]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    return found if all(map(math.isfinite, found)) else None


def labels(where: str, cell: Cell) -> list[str]:
    """Several labels: joined by |, or a list, in Parquet or as JSON."""
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


def single(where: str, cell: Cell) -> str:
    """A cell that has one value."""
    if isinstance(cell, list):
        raise InputError(f"{where} has a list where one value is needed; several labels need --task multi_label")
    return cell


@dataclass
class ColumnReader:
    """Makes of one field's cells, row by row, the text that the listing keeps, and notes what all of them say.

    An empty cell, and an empty text in the listing, means that the sample lacks the field.
    """

    field: FieldColumn
    images: Path  # where its files lie
    missing: int = 0
    count: int = 0  # numbers of each sample
    classes: dict[str, None] = dataclasses.field(default_factory=dict)
    suffixes: set[str] = dataclasses.field(default_factory=set)

    def read(self, where: str, cell: Cell) -> str:
        kind = self.field.kind
        if kind == "labels":
            return self._labels(where, cell)
        if not cell or (isinstance(cell, str) and not cell.strip()):
            self.missing += 1
            return ""
        if kind == "numbers":
            return self._numbers(where, cell)
        text = single(where, cell)
        if kind == "class":
            text = clean(text)
            self.classes[text] = None
        elif kind == "text":
            self._check_text(where, text)
        elif kind not in INLINE or text.lstrip()[:1] not in "{[":
            text = below(self.images, text, where)
            self.suffixes.add(suffix_of(text))
        return text

    def _labels(self, where: str, cell: Cell) -> str:
        found = sorted({clean(label) for label in labels(where, cell)} - {""})
        self.classes |= dict.fromkeys(found)
        return json.dumps(found)

    def _numbers(self, where: str, cell: Cell) -> str:
        found = _numbers(cell)
        if found is None:
            raise InputError(
                f"{where} has {str(cell)[:80]!r} for {self.field.name}, where finite numbers are needed (as 0.5, not "
                f"0,5); for text write --field {self.field.name}={self.field.column}:text"
            )
        self.count = self.count or len(found)
        if len(found) != self.count:
            raise InputError(f"{where} has {len(found)} numbers for {self.field.name}, rows before it {self.count}")
        return json.dumps(found)

    def _check_text(self, where: str, text: str) -> None:
        if not is_utf8(text):
            raise InputError(f"{where} has a text for {self.field.name} that is no UTF-8: save it so")

    def about(self) -> dict[str, Any]:
        """For the listing. Raises InputError for classes that look alike."""
        names = sort_names(self.classes)
        check_classes(f"--field {self.field.name}", names)
        return describe_listed(self.field, names, not self.missing, sorted(self.suffixes))


def describe_listed(
    column: FieldColumn, classes: Sequence[str] = (), required: bool = True, suffixes: Sequence[str] = ()
) -> dict[str, Any]:
    """What the listing says of a field."""
    about: Mapping[str, Any] = {"classes": list(classes), "required": required, "suffixes": list(suffixes)}
    return {"name": column.name, "kind": column.kind, **about}


def suffix_of(path: str) -> str:
    """What a file's bytes are stored under, where they stay what they are."""
    suffix = path.rpartition("/")[2].rpartition(".")[2].lower()
    return suffix if _SUFFIX.fullmatch(suffix) else "bin"
