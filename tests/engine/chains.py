"""One chain of the soak: a training that is struck again and again, goes on elsewhere each time, and is examined."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from lightning_shards.train.datamodule import ShardDataModule

from . import proofs, starts

SIZES = ([17, 30, 9, 40], [1, 33, 2, 50, 13, 8], [61], [5] * 14)
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
TIMEOUT = 120.0  # seconds for one start, which takes a few: longer is a hang
GRACE = 10.0  # seconds that other ranks may take to end after the one that was started


class Chain:
    """One run, from its first start to its end.

    Args:
        context: the fork server.
        data: folder with a dataset for each of SIZES.
        folder: the chain's own, in which train.py is started.
        seed, number: which chain; they decide everything but the timing.
        launcher: `fork`, `lightning` or `torchrun`.
    """

    def __init__(self, context: Any, data: Path, folder: Path, seed: int, number: int, launcher: str) -> None:
        self.random = random.Random(f"{seed}/{number}")
        self.context, self.folder, self.launcher = context, folder, launcher
        self.run = folder / "runs" / "chain"
        self.kills: Counter[str] = Counter()
        self.story: list[str] = []
        self.wrong: list[str] = []
        self.lost = self.repeated = self.attempts = 0
        self.batches: list[int] = []  # global, of the starts
        pick = self.random.choice
        which = self.random.randrange(len(SIZES))
        self.epochs, self.interval, self.batch = pick([1, 2, 3]), pick([0.3, 0.5, 1.0]), pick([6, 12, 24])
        if launcher != "fork":
            self.epochs *= 6  # those starts take seconds: let there be something to strike
        self.minutes = pick([0.00001, 0.0005, 0.002, 10.0])
        self.settings: dict[str, Any] = {
            "ledger": True,
            "save_every_minutes": self.minutes,
            "log": {"wandb": False},
            "data": {
                "path": str(data / str(which)),
                "global_batch_size": self.batch,
                "image_size": 8,
                "fraction": pick([1.0, 1.0, 0.7]),
                "window_samples": pick([1, 40, 1 << 20]),
            },
            "model": {"backbone": "small_cnn", "optimizer": "sgd", "learning_rate": 0.01},
            "trainer": {
                "max_epochs": self.epochs,
                "val_check_interval": self.interval,
                "log_every_n_steps": 2,
                "accelerator": "cpu",
                "enable_progress_bar": False,
            },
        }
        self.kind = pick(["plain", "mixture", "balance"])
        if self.kind == "mixture":
            other = (which + self.random.randrange(1, len(SIZES))) % len(SIZES)
            share = pick([0.3, 0.5, 0.9])
            self.settings["data"]["mixture"] = {str(data / str(which)): share, str(data / str(other)): 1 - share}
        elif self.kind == "balance":
            self.settings["data"]["balance"] = pick([0.5, 1.0, {"red": 2.5}])
        self.order = ShardDataModule(**self.settings["data"]).order

    def play(self) -> None:
        """Start, strike and go on until the run is done; then look at what it left."""
        self.folder.mkdir(parents=True)
        (self.folder / "soak.yaml").write_text(yaml.safe_dump(self.settings))
        strikes = self.random.randint(2, 6)
        while not self.wrong:
            self._start(struck=self.attempts < strikes)
            if self.run.joinpath("summary.json").exists() and proofs.summary(self.run)["status"] == "done":
                break
            if self.attempts > strikes:
                self.wrong.append("not done after a start without a strike")
        if not self.wrong:
            killed = any("KILL" in part for part in self.story)
            found = proofs.examine(self.run, self.order, self.epochs, self.interval, self.batches, killed)
            self.lost, self.repeated, self.wrong = found

    def _arguments(self) -> tuple[list[str], int]:
        """Of the next start: sometimes another global batch, any number of devices and accumulation that fits."""
        if self.attempts and self.random.random() < 0.25:
            self.batch = self.random.choice([6, 12, 24])
        self.batches.append(self.batch)
        devices = self.random.choice([d for d in (1, 1, 2, 3, 4) if self.batch % d == 0])
        share = self.batch // devices
        accumulation = self.random.choice([a for a in (1, 1, 2, 3, 4) if share % a == 0])
        going = (self.run / "config.yaml").exists()
        arguments = ["--resume", "chain"] if going else ["--config", "soak.yaml", "--run", "chain"]
        for name, value in (
            ("global_batch_size", self.batch),
            ("micro_batch_size", share // accumulation),
            ("workers", self.random.randint(1, 3)),
        ):
            arguments += [f"--data.{name}", str(value)]
        self.story.append(f"{devices}x{share // accumulation}x{accumulation}")
        return arguments, devices

    def _start(self, struck: bool) -> None:
        arguments, devices = self._arguments()
        number = SIGNALS[name := self.random.choices(list(SIGNALS), [5, 2, 1])[0]]
        moments, after = self._moments(number, devices) if struck else [], None
        if struck and not moments:
            after = self.random.uniform(0.0, 3.0)
        before, rows = proofs.place(self.run), self._rows()
        start: starts.Start
        if self.launcher == "fork":
            start = starts.Forked(self.context, self.folder, arguments, devices, moments)
        else:
            start = starts.Launched(self.folder, arguments, devices, self.launcher == "torchrun")
        self.attempts += 1
        if after is not None:
            if self.launcher != "fork" and self.random.random() < 0.7:  # from the first step on, not from the start
                starts.wait(start, TIMEOUT, lambda: self._rows() > rows)
            end = time.monotonic() + after
            starts.wait(start, TIMEOUT, lambda: time.monotonic() > end)
            self.story.append(f"{name}@{after:.2f}s")
            start.send(number)
        statuses = starts.wait(start, TIMEOUT)
        if struck:
            self.kills[name] += 1
        self.story.append(f"={','.join(map(str, statuses))}")
        self._check_end(start, statuses, struck, number, timed=after is not None)
        self._check_begin(before, rows)

    def _moments(self, number: int, devices: int) -> list[starts.Strike]:
        """Mostly a strike at a chosen moment; sometimes a second one behind it, while the first is being obeyed."""
        if self.launcher != "fork" or self.random.random() < 0.2:
            return []
        early = ("setup", "train", "metrics", "fsync", "rename", "best", "test")
        chosen = []
        for sent in [number, signal.SIGKILL][: 1 + (self.random.random() < 0.2)]:
            moment = self.random.choice([*starts.MOMENTS, "validation", "epoch", "step"])
            count = 1 if moment in ("setup", "train", "test") else self.random.randint(1, 9)
            rank = 0 if moment in early else self.random.randrange(devices)
            chosen.append(starts.Strike(moment, count, sent, rank))
            self.story.append(f"{signal.Signals(sent).name}@{moment}:{count}/{rank}")
        return chosen

    def _rows(self) -> int:
        return sum(len(proofs.read(path)) for path in (self.run / "ledger").glob("rank-*.jsonl"))

    def _check_end(
        self, start: starts.Start, statuses: list[int | None], struck: bool, number: int, timed: bool
    ) -> None:
        """The exit statuses, the files, and that nothing runs on."""
        if None in statuses:
            start.send(signal.SIGKILL)
            self.wrong.append("a start hangs")
            return
        told = proofs.summary(self.run)["status"] if (self.run / "summary.json").exists() else None
        good: set[int | None] = {0}
        if told == "stopped" and len(statuses) == 1 and self.launcher != "torchrun":
            good = {75}
        if (struck and number == signal.SIGKILL) or any(s == -signal.SIGKILL for s in statuses):
            good |= set(statuses) - {2}  # the others fail or are killed with it
        elif timed:
            good |= {-number, 130}  # before there was anything to save
            good |= {1, 143} if self.launcher == "torchrun" else set()
        if set(statuses) - good or (not struck and told != "done"):
            self.wrong.append(f"statuses {statuses}, summary {told}")
        end = time.monotonic() + GRACE
        while start.left_behind() and time.monotonic() < end:
            time.sleep(0.02)
        if left := start.left_behind():
            self.wrong.append(f"left behind: {left}")
        self.wrong += proofs.torn_files(self.run)

    def _check_begin(self, before: tuple[int, int], rows: int) -> None:
        """A resume begins where the last checkpoint stood."""
        if self._rows() == rows:
            return
        lines = [row for path in (self.run / "ledger").glob("rank-*.jsonl") for row in proofs.read(path)]
        attempt = max(row["attempt"] for row in lines)
        begin = min((row["epoch"], row["position"]) for row in lines if row["attempt"] == attempt)
        if begin != before:
            self.wrong.append(f"attempt {attempt} began at {begin}, the checkpoint stood at {before}")
