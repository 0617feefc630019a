"""Predictions as rows of CSV or lines of JSON, in a file or on standard output."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..errors import InputError
from ..files import replacing, writing
from ..terminal import plain_lines, shown
from ..vision.boxes import SURE
from .predict import Prediction


def to_dict(
    of: Prediction, task: str, targets: list[str], every: bool, cutoffs: Sequence[float] | None = None
) -> dict[str, Any]:
    """A prediction as JSON; `every` gives the probability of each class, too, or the share that it has of a mask, or
    the score of its surest box.

    Args:
        cutoffs: from which probability on each label counts as there, (T,); None: 0.5.
    """
    if of.scores is None:
        return {"path": of.name, "error": of.error}
    if task == "regression":
        return {
            "path": of.name,
            "predicted": {name: float(f"{x:.6g}") for name, x in zip(targets, of.scores, strict=True)},
        }
    chosen = np.flatnonzero(of.scores >= (0.5 if cutoffs is None else np.asarray(cutoffs, np.float32)))
    scores = of.scores.astype(np.float64).round(6)
    every_score = {"scores": dict(zip(targets, scores.tolist(), strict=True))} if every else {}
    if task == "multi_label":
        return {"path": of.name, "predicted": [targets[number] for number in chosen], **every_score}
    if task == "segmentation":
        there = [number for number in of.scores.argsort(kind="stable")[::-1].tolist() if of.scores[number] > 0]
        return {"path": of.name, "predicted": [targets[number] for number in there], **every_score}
    if of.boxes is not None:
        sure = of.boxes[of.boxes[:, 4] >= SURE].astype(np.float64)
        return {
            "path": of.name,
            "predicted": [targets[int(number)] for number in sure[:, 5]],
            "score": sure[:, 4].round(6).tolist(),
            "boxes": sure[:, :4].round(2).tolist(),
            **every_score,
        }
    best = int(of.scores.argmax())
    return {"path": of.name, "predicted": targets[best], "score": float(scores[best]), **every_score}


def writer(
    out: TextIO, task: str, targets: list[str], every: bool, as_json: bool, masks: bool = False
) -> Callable[[dict[str, Any]], object]:
    """A function that writes what `to_dict` gives: a row of CSV, labels joined by `|`, or a line of JSON.

    With `masks`, a row has the path of its mask, too.
    """
    if as_json:
        return lambda row: out.write(json.dumps(row) + "\n")
    of_each = [("predicted", name) for name in targets] if task == "regression" else [("predicted",)]
    fields: list[tuple[str, ...]] = [
        ("path",),
        *of_each,
        *[("score",)] * (task in ("single_label", "detection")),
        *[("boxes",)] * (task == "detection"),
        *[("mask",)] * masks,
        ("error",),
    ]
    fields += [("scores", name) for name in targets if every]
    table = csv.writer(out, lineterminator="\n")
    header = iter([[":".join(field) for field in fields]])  # written with the first row

    def row(values: dict[str, Any]) -> None:
        table.writerows(header)
        cells: dict[tuple[str, ...], Any] = {}
        for key, value in values.items():
            if isinstance(value, dict):
                cells |= {(key, name): number for name, number in value.items()}
            else:
                cells[key,] = "|".join(map(_in_a_cell, value)) if isinstance(value, list) else value
        table.writerow(cells.get(field, "") for field in fields)

    return row


def _in_a_cell(value: Any) -> str:
    """One of several values that share a cell: text, a number, or the four edges of a box."""
    return " ".join(f"{edge:g}" for edge in value) if isinstance(value, list) else str(value)


@contextmanager
def opened(path: Path | None, alone: bool = True) -> Iterator[TextIO]:
    """The file to write, which is there when all was written; None: standard output, as far as somebody reads it.

    Args:
        alone: nothing else is written meanwhile, so that the command ends where nobody reads on.
    """
    if path:  # names that are not UTF-8 come out as they are
        with (
            writing(path),
            replacing(path) as new,
            new.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            yield _Out(file, partial(writing, path))
        return
    claims = partial(shown, not alone)
    if sys.stdout.isatty():
        yield _Out(sys.stdout, claims, plain_lines)
    else:
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
        yield _Out(sys.stdout, claims)


class _Out(io.StringIO):
    """Says itself that it could not be written: other files are open in the same block.

    Args:
        stream: where text goes.
        claims: a context that takes an OSError for one of the stream.
        spelled: what is written of a text.
    """

    def __init__(
        self,
        stream: TextIO,
        claims: Callable[[], AbstractContextManager[None]],
        spelled: Callable[[str], str] = str,
    ) -> None:
        super().__init__()
        self._stream, self._claims, self._spelled = stream, claims, spelled

    def write(self, text: str) -> int:
        with self._claims():
            self._stream.write(self._spelled(text))
        return len(text)

    def flush(self) -> None:
        with self._claims():
            self._stream.flush()


def check_new(path: Path, force: bool, sources: Sequence[Path] = ()) -> None:
    """Raise InputError for a file that cannot be written, or would replace one of `sources`, or any without `force`."""
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} into")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"the folder {path.parent} cannot be written")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file: choose another name")
    if path.resolve() in [source.resolve() for source in sources]:
        raise InputError(f"{path} is what is read: choose another name")
    if path.exists() and not force:
        raise InputError(f"{path} exists: choose another name, or replace it by --force")
