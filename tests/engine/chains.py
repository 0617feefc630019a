"""A chain of the soak: a training that is struck again and again, goes on elsewhere each time, and is examined.

What is struck is a subclass's: `trainer_chain` has train.py, `plain_chain` a loop in plain PyTorch.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from lightning_shards.data import Boxes, ClassIndex, Image, Mask, Numbers

from . import PATIENCE, field_data, starts
from .conftest import write_dataset

SIZES = ([17, 30, 9, 40], [1, 33, 2, 50, 13, 8], [61], [5] * 14)
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}


def write_datasets(data: Path) -> None:
    """One for each of SIZES, by its number; `masks`, `boxes` and `weights` are what others have beside their images."""
    for number, sizes in enumerate(SIZES):
        write_dataset(data / str(number), sizes=sizes)
    beside: dict[str, Any] = {"mask": Mask(4), "boxes": Boxes(2), "weight": Numbers(1, ("weight.json",), None)}
    weights = {(number, "weight.json"): str([0.5, 1, 2.5][number % 3]).encode() for number in range(60)}
    for folder, (name, field) in zip(("masks", "boxes", "weights"), beside.items(), strict=True):
        about = {"image": Image(("png",)), "target": ClassIndex(3), name: field}
        field_data.write(data / folder, 60, weights, fields={name: one.describe() for name, one in about.items()})


class Chain:
    """One training, from its first start to its end.

    Args:
        context: the fork server.
        folder: the chain's own, in which the training is started.
        seed, number: which chain; they decide everything but the timing.
    """

    door: str  # what the training reads its samples through
    kind: str  # what is in them, and in which order
    longest = 3.0  # seconds until a strike at a random time

    def __init__(self, context: Any, folder: Path, seed: int, number: int) -> None:
        self.random = random.Random(f"{seed}/{number}")
        self.context, self.folder = context, folder
        self.kills: Counter[str] = Counter()
        self.story: list[str] = []
        self.wrong: list[str] = []
        self.lost = self.repeated = self.attempts = 0
        folder.mkdir(parents=True)

    def play(self) -> None:
        """Start, strike and go on until the training is done; then look at what it left."""
        strikes = self.random.randint(2, 6)
        while not self.wrong:
            self._start(struck=self.attempts < strikes)
            if self.wrong or self._done():
                break
            if self.attempts > strikes:
                self.wrong.append("not done after a start without a strike")
        if not self.wrong:
            self._examine()

    def _start(self, struck: bool) -> None:
        arguments, devices = self._arguments()
        number = SIGNALS[name := self._signal()]
        moments, after = self._moments(number, devices) if struck else [], None
        if struck and not moments:
            after = self.random.uniform(0.0, self.longest)
        before, rows = self._saved(), self._rows()
        start = self._begin(arguments, devices, moments)
        self.attempts += 1
        if after is not None:
            if self._waits_for_a_step():
                starts.wait(start, PATIENCE, lambda: self._rows() > rows)
            end = time.monotonic() + after
            starts.wait(start, PATIENCE, lambda: time.monotonic() > end)
            self.story.append(f"{name}@{after:.2f}s")
            start.send(number)
        statuses = starts.wait(start, PATIENCE)
        if struck:
            self.kills[name] += 1
        self.story.append(f"={','.join(map(str, statuses))}")
        if None in statuses:
            start.send(signal.SIGKILL)
            self.wrong.append("a start hangs")
            return
        self._check_end(statuses, struck, number, timed=after is not None)
        end = time.monotonic() + PATIENCE
        while start.left_behind() and time.monotonic() < end:
            time.sleep(0.02)
        if left := start.left_behind():
            self.wrong.append(f"left behind: {left}")
        self._check_begin(before, rows)

    # -- what a subclass has
    def _waits_for_a_step(self) -> bool:
        """Whether a strike at a random time falls behind the start."""
        return True

    def _arguments(self) -> tuple[list[str], int]:
        """Of the next start, and its devices."""
        raise NotImplementedError

    def _signal(self) -> str:
        """The name of the next strike's."""
        return "SIGKILL"

    def _moments(self, number: int, devices: int) -> list[starts.Strike]:
        """Strikes with the signal at chosen moments; none: at a random time."""
        raise NotImplementedError

    def _begin(self, arguments: list[str], devices: int, moments: list[starts.Strike]) -> starts.Start:
        raise NotImplementedError

    def _saved(self) -> tuple[int, int]:
        """Epoch and position at which the next start has to begin."""
        raise NotImplementedError

    def _rows(self) -> int:
        """What grows with each step that is noted."""
        raise NotImplementedError

    def _check_end(self, statuses: list[int | None], struck: bool, number: int, timed: bool) -> None:
        """How a start ended, and the files."""
        raise NotImplementedError

    def _check_begin(self, before: tuple[int, int], rows: int) -> None:
        """A start that made steps began where the last one was saved."""
        raise NotImplementedError

    def _done(self) -> bool:
        raise NotImplementedError

    def _examine(self) -> None:
        """Of a training that is done: `lost`, `repeated` and `wrong`."""
        raise NotImplementedError
