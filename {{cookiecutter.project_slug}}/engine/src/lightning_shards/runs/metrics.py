"""`metrics.csv` read so that no line, column or cell of it ends anything, or takes long."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from .values import plain

LONGEST_LINE = 1 << 20  # characters
MOST_CURVES = 1_000
LARGEST_STEP = 1 << 53
LARGEST_VALUE = 1e300  # sums and axes of larger ones are infinite

Curves = dict[str, list[tuple[int, float]]]


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """(columns, rows) of whole lines; a last one that was torn, and lines without measure, are left out.

    Raises OSError.
    """
    text = path.read_text(errors="replace").replace("\0", "").replace("\r", "")
    lines = [line for line in text[: text.rfind("\n") + 1].split("\n") if line and len(line) <= LONGEST_LINE]
    columns = [plain(name) for name in _cells(lines[0])] if lines else []
    return columns, [dict(zip(columns, _cells(line), strict=False)) for line in lines[1:]]


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), []) if '"' in line else line.split(",")
    except csv.Error:  # a cell without measure
        return []


def curves(rows: list[dict[str, str]]) -> Curves:
    """(step, value) by column; where steps were done again after a kill, the later attempt holds."""
    found: Curves = {}
    for row in rows:
        if (step := _step(row)) is None:
            continue
        for name, cell in row.items():
            if not name or name == "step" or not cell:
                continue
            if name not in found and len(found) >= MOST_CURVES:
                continue
            points = found.setdefault(name, [])
            while points and points[-1][0] >= step:
                points.pop()
            if (value := _number(cell)) is not None:
                points.append((step, value))
    return found


def _step(row: Mapping[str, str]) -> int | None:
    value = _number(row.get("step", ""))
    return int(value) if value is not None and 0 <= value < LARGEST_STEP else None


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return None if abs(value) > LARGEST_VALUE and value not in (float("inf"), float("-inf")) else value
