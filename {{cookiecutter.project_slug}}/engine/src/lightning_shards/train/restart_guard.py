"""`starts.jsonl`: from where each start of a run went on; a scheduler's starts in vain come to an end."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..files import append
from ..runs.checkpoints import state
from ..terminal import say
from .cluster import requeued
from .ledger import read

IN_VAIN = 3  # starts in a row without progress


def note_start(folder: Path, checkpoint: Path | None) -> None:
    """Write down that the run in `folder` starts from `checkpoint`.

    Raises RunError in a job that was requeued, if its last three starts came no further than to where they began. A
    person's start counts anew.
    """
    path = folder / "starts.jsonl"
    epoch, position = _place(checkpoint)
    in_vain = 0
    rows: list[dict[str, Any]] = []
    with suppress(OSError):  # there are none, or none that can be read
        rows = read(path)
    for row in reversed(rows):
        if [row.get("epoch"), row.get("position")] != [epoch, position]:
            break
        in_vain += 1
        if not row.get("requeued"):
            break
    if requeued() and in_vain >= IN_VAIN:
        raise RunError(
            f"{in_vain} starts in a row came no further than epoch {epoch}, image {position}, so the job is not"
            f" requeued again; the log says what ended them. Then go on with --resume {folder.name}"
        )
    row = {
        "at": datetime.now().isoformat(timespec="seconds"),
        "job": os.environ.get("SLURM_JOB_ID"),
        "requeued": requeued(),
        "epoch": epoch,
        "position": position,
    }
    try:
        append(path, (json.dumps(row) + "\n").encode())
    except OSError as error:  # the training itself may yet find room
        say(f"{path} could not be written ({error.strerror}): this start is not counted", sys.stderr)


def _place(checkpoint: Path | None) -> tuple[int, int]:
    """Epoch and position in it; the weights are not read."""
    if checkpoint is None:
        return 0, 0
    place = state(checkpoint)
    return place["epoch"], place["position"]
