"""Which samples were handed out: ids in files, one of each rank of each attempt, and how many of them count.

A training writes the ids of each batch at once, and now and then the loader's state with the length of every file.
Whoever is killed has handed out more than the last state says: those ids are void, for they will come again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lightning_shards.files import write_durably
from numpy.typing import NDArray

TARGETS = "targets.npy"  # beside the tars: of each sample, as the ledger's ids are checked by
ID = np.dtype(np.uint32)
CHUNK = 1 << 20


def name_of(attempt: int, rank: int) -> str:
    """Of its file."""
    return f"{attempt:03d}-{rank}.ids"


class Ledger:
    """The files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._state = folder, folder / "state.json"

    def saved(self) -> tuple[dict[str, Any] | None, dict[str, int]]:
        """The loader's state, None where there is none yet, and the ids of each file that count."""
        if not self._state.exists():
            return None, {}
        content = json.loads(self._state.read_bytes())
        return content["loader"], content["ids"]

    def save(self, state: dict[str, Any], ids: dict[str, int]) -> None:
        write_durably(self._state, json.dumps({"loader": state, "ids": ids}).encode())

    def written(self, names: list[str]) -> int:
        """Ids in these files, whether they count or not."""
        paths = (self.folder / name for name in names)
        return sum(path.stat().st_size for path in paths if path.exists()) // ID.itemsize

    def cut(self) -> int:
        """Cut the files down to what counts; how many ids were void."""
        _, ids = self.saved()
        void = 0
        for path in self.folder.glob("*.ids"):
            count = path.stat().st_size // ID.itemsize
            counts = ids.get(path.name, 0)
            void += count - counts
            with path.open("rb+") as file:
                file.truncate(counts * ID.itemsize)
        return void

    def times(self, samples: int) -> NDArray[np.uint8]:
        """How often each of so many samples was handed out, uint8 (samples,)."""
        found = np.zeros(samples, np.uint8)
        for ids in self._chunks():
            np.add.at(found, ids, 1)
        return found

    def _chunks(self) -> Iterator[NDArray[np.uint32]]:
        for path in sorted(self.folder.glob("*.ids")):
            with path.open("rb") as file:
                while len(ids := np.fromfile(file, ID, CHUNK)):
                    yield ids


def verdict(ledger: Ledger, samples: int, left: NDArray[np.int64]) -> dict[str, int]:
    """What the ledger says of an epoch whose order ends with the samples `left`, which wait for another epoch.

    `total` and `once` together leave no room for a count that went beyond a byte.
    """
    times, total = ledger.times(samples), ledger.written([path.name for path in ledger.folder.glob("*.ids")])
    never = np.flatnonzero(times == 0)
    return {
        "total": total,
        "once": int((times == 1).sum()),
        "more_than_once": int((times > 1).sum()),
        "never": len(never),
        "left_for_another_epoch": len(left),
        "lost": len(np.setdiff1d(never, left)),
    }
