"""CSV, TSV and Parquet as people have them: the cells of the columns that are asked for, and nothing of the others."""

from __future__ import annotations

import csv
import datetime
import decimal
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet

from ..data.file_names import is_system_file
from ..errors import InputError
from .spelling import clean

TABLES = (".csv", ".tsv", ".parquet")
BATCH = 16_384  # rows held as Python objects at a time
MOST_CELL = 1 << 26  # characters
_DELIMITERS = ",;\t|"
_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_NO_TEXT = {
    b"PK\x03\x04": "an Excel file or a zip",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"\x1f\x8b": "compressed by gzip",
    b"PAR1": "a Parquet file",
}
Cell = str | list[str]


def is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES


def read_cells(table: Path, wanted: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    """The cells of the columns `wanted`, row by row: text as it stands, `""` for none; in Parquet lists of text, too.

    Of a folder, as other programs write Parquet, the parts follow each other by name. Raises InputError, which names
    the row, for what cannot be read.
    """
    if table.is_dir():
        for part in sorted(table.glob("**/*.parquet")):
            if not is_system_file(part.relative_to(table).as_posix()):
                yield from read_cells(part, wanted)
        return
    try:
        yield from (_parquet_rows if table.suffix.lower() == ".parquet" else _csv_rows)(table, wanted)
    except UnicodeError as error:
        raise InputError(f"{table} is not in the encoding that it begins with ({error}): save it as UTF-8") from None
    except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{table} cannot be read ({str(error).splitlines()[0][:300]})") from None


def _check_columns(table: Path, wanted: Sequence[str], present: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in present]:
        shown = ", ".join(present[:50])
        raise InputError(f"{table} has no column {missing[0]!r}; it has {shown[:1000]}")
    if twice := [name for name in wanted if present.count(name) > 1]:
        raise InputError(f"{table} has two columns {twice[0]!r}: rename one")


def _encoding(table: Path) -> str:
    """By the byte order mark, or by where zeros lie; UTF-8 otherwise."""
    with table.open("rb") as file:
        head = file.read(4096)
    for start, what in _NO_TEXT.items():
        if head.startswith(start):
            raise InputError(f"{table} is {what} and no text: save the sheet as CSV (UTF-8), or unpack it")
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if head[first::2].count(0) > len(head) // 8:
            return encoding
    return "utf-8-sig"


def _lines(table: Path, file: TextIO) -> Iterator[str]:
    while line := file.readline(MOST_CELL):
        if len(line) == MOST_CELL:
            raise InputError(f"{table} has a line of more than {MOST_CELL:,} characters: it is no table")
        yield line


def _reader(table: Path, file: TextIO, delimiter: str) -> tuple[list[str], Any]:
    """The names of the columns, and a reader of what follows them."""
    if not file.readline(100).strip("\ufeff \r\n").lower().startswith("sep="):  # a line of Excel's
        file.seek(0)
    rows = csv.reader(_lines(table, file), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        return [clean(name) for name in next(filter(any, rows), [])], rows  # lines that are empty do not matter
    except csv.Error:
        return [], rows


def _csv_rows(table: Path, wanted: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    """Bytes that are no UTF-8 stay what they are: in paths they are right, and other columns do not matter."""
    csv.field_size_limit(MOST_CELL)
    with table.open(encoding=_encoding(table), errors="surrogateescape", newline="") as file:

        def columns(delimiter: str) -> tuple[int, int]:
            file.seek(0)
            names = _reader(table, file, delimiter)[0]
            return sum(name in names for name in wanted), len(names)

        delimiter = max(_DELIMITERS, key=columns)
        file.seek(0)
        names, rows = _reader(table, file, delimiter)
        _check_columns(table, wanted, names)
        places, number = [names.index(name) for name in wanted], 0
        pick = itemgetter(*places) if len(places) > 1 else lambda row: (row[places[0]],)
        try:
            for row in rows:
                if len(row) != len(names):
                    if not any(row):  # an empty line
                        continue
                    row = _fitted(table, number + 1, row, len(names))
                elif not any(row):
                    continue
                number += 1
                yield pick(row)
        except csv.Error as error:
            why = "a cell is larger than 64 MB, or a quote is left open" if "limit" in str(error) else str(error)
            raise InputError(f"{table}: row {number + 1} cannot be read ({why}): mind its quotes") from None


def _fitted(table: Path, number: int, row: list[str], columns: int) -> list[str]:
    """A row of another length: blanks at its end do not count."""
    if any(row[columns:]):
        raise InputError(
            f"{table}: row {number} has {len(row)} cells, the first line {columns}: put cells that hold a separator "
            "in double quotes"
        )
    return [*row[:columns], *[""] * (columns - len(row))]


def _parquet_rows(table: Path, wanted: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    with pa.parquet.ParquetFile(table) as file:
        _check_columns(table, wanted, file.schema_arrow.names)
        for batch in file.iter_batches(BATCH, columns=list(dict.fromkeys(wanted))):
            yield from zip(*(_texts(table, name, batch.column(name)) for name in wanted), strict=True)


def _texts(table: Path, name: str, column: Any) -> list[Cell]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [[_text(table, name, value) for value in cell or ()] for cell in column.to_pylist()]
    if pa.types.is_nested(kind):
        raise InputError(f"{table}: column {name!r} holds {str(kind)[:80]}; text, numbers or lists of them are read")
    if pa.types.is_floating(kind):  # as pandas writes a cell of numbers that is missing
        column = pa.array(column.to_numpy(zero_copy_only=False), kind, from_pandas=True)
    return column.cast(pa.string()).fill_null("").to_pylist()  # type: ignore[no-any-return]


def _text(table: Path, name: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str | int | float | decimal.Decimal | datetime.date):
        raise InputError(f"{table}: column {name!r} holds lists of {type(value).__name__}; text or numbers are read")
    return str(value)
