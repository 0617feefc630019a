"""A chain of a loop in plain PyTorch over `ShardLoader` or `ShardSamples`, on 1 to 3 ranks of gloo."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import torch

from . import plain, proofs, starts
from .chains import SIZES, Chain


class PlainChain(Chain):
    """A training by `plain.Training`.

    Args:
        door: `ShardLoader` or `ShardSamples`.
        kind: `plain`, `masks`, `boxes`, `mixture`, `balance` or `weights`.
    """

    longest = 0.3  # from its first step on a training takes a second
    timed = 0.2  # share of the strikes that fall at a random time

    def __init__(self, context: Any, data: Path, folder: Path, seed: int, number: int, door: str, kind: str) -> None:
        super().__init__(context, folder, seed, number)
        self.door, self.kind, self.state = door, kind, folder / plain.STATE
        self.ended = False  # a start has come to the training's end
        self.step = self.largest = 0  # samples of a step: of the newest start, and the most of all starts
        pick = self.random.choice
        self.epochs = pick([1, 2, 3])
        which = self.random.randrange(len(SIZES))
        path = str(data / (kind if kind in ("masks", "boxes", "weights") else str(which)))
        self.data: dict[str, Any] = {"path": path, "seed": number, "window_samples": pick([1, 40, 1 << 20])}
        self.data["fraction"] = pick([1.0, 1.0, 0.7])
        if kind == "mixture":
            other = str(data / str((which + self.random.randrange(1, len(SIZES))) % len(SIZES)))
            share = pick([0.3, 0.5, 0.9])
            self.data["mixture"] = {path: share, other: 1 - share}
        elif kind == "balance":
            self.data["balance"] = pick([0.5, 1.0, {"red": 2.5}])
        elif kind == "weights":
            self.data["balance"] = "weight"

    def _arguments(self) -> tuple[list[str], int]:
        """Any number of ranks, of rows on each, of batches a step and of workers."""
        pick = self.random.choice
        ranks, batch, accumulation = pick([1, 1, 2, 3]), pick([1, 2, 3, 4]), pick([1, 1, 2])
        workers = pick([0, 1, 2, 3]) if self.door == "ShardSamples" else pick([1, 2, 3])
        self.step = ranks * batch * accumulation
        self.largest = max(self.largest, self.step)
        self.story.append(f"{ranks}x{batch}x{accumulation}/{workers}")
        data = {**self.data, "batch_size": batch, "accumulation": accumulation}
        return [json.dumps({"door": self.door, "data": data, "epochs": self.epochs, "workers": workers})], ranks

    def _moments(self, number: int, devices: int) -> list[starts.Strike]:
        if self.random.random() < self.timed:
            return []
        moment = self.random.choice([*starts.PLAIN_MOMENTS, "forward", "step"])
        rank = 0 if moment in ("save", "fsync", "rename") else self.random.randrange(devices)
        strike = starts.Strike(moment, self.random.randint(1, 20), number, rank)
        self.story.append(f"SIGKILL@{moment}:{strike.count}/{rank}")
        return [strike]

    def _begin(self, arguments: list[str], devices: int, moments: list[starts.Strike]) -> starts.Start:
        return starts.Forked(self.context, self.folder, arguments, devices, moments, plain.main)

    def _load(self) -> dict[str, Any]:
        return torch.load(self.state, weights_only=True) if self.state.exists() else {"steps": []}

    def _saved(self) -> tuple[int, int]:
        place = self._load().get("place", {})
        return place.get("epoch", 0), place.get("position", 0)

    def _rows(self) -> int:
        return self.state.stat().st_mtime_ns if self.state.exists() else 0

    def _check_end(self, statuses: list[int | None], struck: bool, number: int, timed: bool) -> None:
        self.ended = set(statuses) == {0}
        if not self.ended and not (struck and -signal.SIGKILL in statuses):  # the others fail or are killed with it
            self.wrong.append(f"statuses {statuses}")

    def _check_begin(self, before: tuple[int, int], rows: int) -> None:
        steps = self._load()["steps"]
        own = [step for step in steps if steps and step["attempt"] == steps[-1]["attempt"]]
        if self._length() - before[1] < self.step:  # less than a step of this start waits for another epoch
            before = before[0] + 1, 0
        if self._rows() != rows and (begin := (own[0]["epoch"], own[0]["position"])) != before:
            self.wrong.append(f"a start began at {begin}, the state stood at {before}")

    def _length(self) -> int:
        """Of an epoch."""
        place = plain.open_source("ShardSamples", {**self.data, "batch_size": 1})._place
        assert place is not None
        return len(place.order)

    def _done(self) -> bool:
        return self.ended

    def _examine(self) -> None:
        """Each sample of each epoch once, in the order of positions, with the pixels of a training that was not cut."""
        one, steps = plain.open_source(self.door, {**self.data, "batch_size": 1}), self._load()["steps"]
        assert one._place is not None
        order = one._place.order
        made = [proofs.Step(s["epoch"], s["position"], tuple(s["ids"]), s["attempt"]) for s in steps]
        self.lost, self.repeated, self.wrong = proofs.check_ids(made, order, self.epochs, self.largest)
        seen: dict[int, list[tuple[int, int]]] = {}
        for step in steps:
            seen.setdefault(step["epoch"], []).extend(zip(step["ids"], step["marks"], strict=True))
        for epoch in range(self.epochs):
            rows = [(int(ids), int(marks)) for ids, marks, *_ in plain.batches(one, 0)]
            if seen.get(epoch) != rows[: len(seen.get(epoch, []))]:
                self.wrong.append(f"epoch {epoch}: other samples, another order or other pixels than uncut")
