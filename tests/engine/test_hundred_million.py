"""What `make hundred-million` counts by: a training that is cut and gone on with has each id once, and whatever is lost
or handed out twice is found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import write_dataset

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NONE = np.empty(0, np.int64)


def test_what_was_cut_is_gone_on_with_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from hundred_parts.ledger import ID, Ledger, verdict
    from hundred_parts.training import train

    data, ledger = write_dataset(tmp_path / "d", sizes=(24,) * 4, held_out=0), Ledger(tmp_path / "ledger")
    ledger.folder.mkdir()
    np.save(data / "targets.npy", (np.arange(96) % 3).astype(np.uint8).reshape(4, 24))
    task: dict[str, Any] = {"data": str(data), "ledger": str(ledger.folder), "rank": 0, "world": 1, "each": 24}
    task |= {"crop": 16, "save_every": 16, "decoded_bytes": 1 << 30}
    write, written = os.write, list[bytes]()

    def killed(file: int, content: bytes) -> int:
        if len(content) == 8 * ID.itemsize:
            written.append(content)
        if len(written) == 6:
            raise KeyboardInterrupt
        return write(file, content)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "write", killed)
        train({**task, "attempt": 0, "batch": 8, "workers": 2})
    assert ledger.cut() == 8, "five batches were written, and the state says four"
    train({**task, "attempt": 1, "batch": 5, "workers": 1})
    assert ledger.cut() == 0 and ledger.saved()[1] == {"000-0.ids": 32, "001-0.ids": 60}
    found = verdict(ledger, 96, NONE)
    assert found["once"] == 92 and found["lost"] == 4 and found["more_than_once"] == 0, "of the last step, not named"
    ids = np.fromfile(ledger.folder / "000-0.ids", ID)
    left = np.flatnonzero(ledger.times(96) == 0)
    assert verdict(ledger, 96, left)["lost"] == 0
    ids[3] = ids[2]
    ids.tofile(ledger.folder / "000-0.ids")
    found = verdict(ledger, 96, left)
    assert (found["once"], found["more_than_once"], found["lost"], found["total"]) == (90, 1, 1, 92)


def test_a_batch_that_is_not_what_the_tars_hold_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from hundred_parts.training import train

    data = write_dataset(tmp_path / "d", sizes=(24,) * 4, held_out=0)
    np.save(data / "targets.npy", (np.arange(96) % 3 != 1).astype(np.uint8).reshape(4, 24))
    task = {"data": str(data), "ledger": str(tmp_path), "rank": 0, "world": 1, "each": 24, "attempt": 0, "batch": 8}
    with pytest.raises(AssertionError, match="not what the tars hold"):
        train({**task, "workers": 1, "crop": 16, "save_every": 16, "decoded_bytes": 0})
