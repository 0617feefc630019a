"""A chain of train.py: on one dataset, on a mixture of two or with balanced classes; on ranks forked or launched."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import yaml
from lightning_shards.train.datamodule import ShardDataModule

from . import proofs, starts
from .chains import SIGNALS, SIZES, Chain


class TrainerChain(Chain):
    """A run of train.py.

    Args:
        launcher: `fork`, `lightning` or `torchrun`.
    """

    door = "train.py"

    def __init__(self, context: Any, data: Path, folder: Path, seed: int, number: int, launcher: str = "fork") -> None:
        super().__init__(context, folder, seed, number)
        self.launcher = launcher
        self.run = folder / "runs" / "chain"
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
            "log": {"wandb": False, "report": number % 4 == 0},
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
        self.settings["data"]["repeats"] = pick([1, 1, 3])
        self.order = ShardDataModule(**self.settings["data"]).order
        (folder / "soak.yaml").write_text(yaml.safe_dump(self.settings))

    def _done(self) -> bool:
        return (self.run / "summary.json").exists() and proofs.summary(self.run)["status"] == "done"

    def _examine(self) -> None:
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
            ("decoded_bytes", (0, 1 << 30)[len(self.batches) % 2]),
        ):
            arguments += [f"--data.{name}", str(value)]
        self.story.append(f"{devices}x{share // accumulation}x{accumulation}")
        return arguments, devices

    def _signal(self) -> str:
        return self.random.choices(list(SIGNALS), [5, 2, 1])[0]

    def _begin(self, arguments: list[str], devices: int, moments: list[starts.Strike]) -> starts.Start:
        if self.launcher == "fork":
            return starts.Forked(self.context, self.folder, arguments, devices, moments)
        return starts.Launched(self.folder, arguments, devices, self.launcher == "torchrun")

    def _waits_for_a_step(self) -> bool:
        return self.launcher != "fork" and self.random.random() < 0.7  # else it may fall into the start

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

    def _saved(self) -> tuple[int, int]:
        return proofs.place(self.run)

    def _rows(self) -> int:
        return sum(len(proofs.read(path)) for path in (self.run / "ledger").glob("rank-*.jsonl"))

    def _check_end(self, statuses: list[int | None], struck: bool, number: int, timed: bool) -> None:
        """The exit statuses and the files."""
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
