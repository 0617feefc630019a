"""`metrics.csv`: one row a step, one column a metric."""

from __future__ import annotations

import csv
import io
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ..files import append, write_durably
from ..runs.metrics import read_table
from ..terminal import say


class MetricsFile(Logger):
    """A resumed run appends to the file; a new metric adds a column. Rows wait in memory while it cannot be written."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []  # not yet written
        self._warned = False

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings are in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step if step is not None else 0, **metrics}
        if self._rows and self._rows[-1]["step"] == row["step"]:
            self._rows[-1] |= row
        else:
            self._rows.append(row)

    @rank_zero_only
    def save(self) -> None:
        """Append what is new; rewrite the file where there are new columns."""
        try:
            self._write()
        except OSError as error:
            if not self._warned:
                say(f"{self.path} could not be written ({error.strerror}): the training goes on without", sys.stderr)
            self._warned = True

    def _write(self) -> None:
        if not self._rows:
            return
        before: list[dict[str, Any]] = []
        torn = False
        if not self._columns and self.path.exists():
            self._columns, torn = read_table(self.path)[0], not self.path.read_bytes().endswith(b"\n")
        new = dict.fromkeys(name for row in self._rows for name in row if name not in self._columns)
        if new or torn:
            if self._columns:
                before = read_table(self.path)[1]
            columns = [*self._columns, *new]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self.path, _lines([dict(zip(columns, columns, strict=True)), *before, *self._rows], columns))
            self._columns = columns
        else:
            append(self.path, _lines(self._rows, self._columns))
        self._rows = []

    def finalize(self, status: str) -> None:
        self.save()


def _lines(rows: Iterable[dict[str, Any]], columns: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([row.get(name, "") for name in columns] for row in rows)
    return text.getvalue().encode(errors="backslashreplace")
