"""For a team's own tests: a dataset that is made in a moment, and the proof that a training survives a kill.

    data = tiny_dataset(tmp_path / "data")
    run = kill_and_resume(PROJECT, tmp_path, {"data": {"path": str(data)}, ...})   # trained once, killed in the middle
    assert run.lost == run.repeated == 0

Trainings are processes of their own, started as a person starts them.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import yaml
from numpy.typing import NDArray

from .data.dataset import Dataset, Shard
from .data.tar_index import ShardIndex
from .runs.files import read as read_run
from .train.ledger import read as read_ledger

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
NAMES = ("red", "green", "blue")
GRAY = (120, 120, 120)


def tiny_dataset(
    root: Path, task: str = "single_label", sizes: Sequence[int] = (50, 30, 40), held_out: int = 30
) -> Path:
    """Write a dataset of noisy pictures, each of one of three colours, which are what is predicted; returns `root`.

    Args:
        task: `single_label`, `multi_label`, `regression`, `segmentation`: left and right differ in colour then, or
            `detection`: the colour is a rectangle on gray.
        sizes: samples of each shard to train on.
        held_out: samples to validate on, and as many to test on.
    """
    splits: dict[str, list[Shard]] = {}
    for split, counts in (("train", sizes), ("val", [held_out]), ("test", [held_out])):
        (root / split).mkdir(parents=True)
        first = 0
        for number, count in enumerate(counts):
            tar = root / split / f"{number:06d}.tar"
            _write_shard(tar, range(first, first + count), task)
            ShardIndex.build(tar).save(tar.with_name(tar.name + ".index"))
            checksum = hashlib.sha256(tar.read_bytes()).hexdigest()
            splits.setdefault(split, []).append(Shard(f"{split}/{tar.name}", count, tar.stat().st_size, checksum))
            first += count
    Dataset(root, task, ["shade"] if task == "regression" else list(NAMES), splits).save()
    return root


def _write_shard(tar: Path, numbers: Sequence[int], task: str) -> None:
    with tarfile.open(tar, "w") as archive:
        for number in numbers:
            classes = np.full((32, 32), number % 3, np.uint8)
            if task == "segmentation":
                classes[:, 16:] = number // 3 % 3
            box = _box(number)
            if task == "detection":
                classes[:] = len(NAMES)
                classes[box[1] : box[3], box[0] : box[2]] = number % 3
            noise = np.random.default_rng(number).integers(-30, 30, (32, 32, 3))
            pixels = np.clip(np.array([*COLOURS, GRAY])[classes] + noise, 0, 255).astype(np.uint8)
            image = cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()
            for extension, content in {"png": image, **_target(task, number % 3, classes, box)}.items():
                member = tarfile.TarInfo(f"{number:08d}.{extension}")
                member.size = len(content)
                archive.addfile(member, BytesIO(content))


def _box(number: int) -> list[int]:
    """Left, top, right and bottom of a sample's rectangle."""
    left, top, width, height = np.random.default_rng(number).integers((0, 0, 10, 10), (12, 12, 20, 20)).tolist()
    return [left, top, left + width, top + height]


def _target(task: str, number: int, classes: NDArray[np.uint8], box: list[int]) -> dict[str, bytes]:
    """The member that says what is predicted."""
    if task == "detection":
        return {"boxes.json": json.dumps({"boxes": [box], "labels": [number]}).encode()}
    if task == "segmentation":
        return {"mask.png": cv2.imencode(".png", classes)[1].tobytes()}
    if task == "single_label":
        return {"cls": f"{number}".encode()}
    labels = {"labels": [number]} if task == "multi_label" else {"targets": [number / 2]}
    return {"json": json.dumps(labels).encode()}


class KillAt(L.Callback):
    """Kills a training, as a power cut would, after so many micro-batches; one that was resumed is left alone."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left == 0 and trainer.ckpt_path is None:
            os.kill(os.getpid(), signal.SIGKILL)


def train(project: Path, folder: Path, *arguments: str, status: int = 0) -> str:
    """Run the project's train.py in `folder`, where `runs/` will be; returns what it printed.

    Raises AssertionError, with its last words, if it ends with another status.
    """
    environment = {**os.environ, "WANDB_MODE": "disabled", "NO_COLOR": "1"}
    command = [sys.executable, str(project / "train.py"), *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode == status, f"train.py {' '.join(arguments)} ended with {done.returncode}:\n{said[-4000:]}"
    return said


@dataclass(frozen=True)
class Proof:
    """What a training that was killed and resumed left behind."""

    run: Path
    lost: int  # samples that no step of an epoch saw, though it was long enough for another global batch
    repeated: int  # samples that an epoch's steps saw more than once
    summary: Mapping[str, Any]
    curves: Mapping[str, Sequence[float]]  # metrics by name, such as `val/loss`, in the order of the steps


def kill_and_resume(project: Path, folder: Path, settings: Mapping[str, Any], kill_after: int = 7) -> Proof:
    """Train with `settings`, kill it after `kill_after` micro-batches, resume it to its end, and read its ledger."""
    (folder / "killed.yaml").write_text(yaml.safe_dump(dict(settings)))
    callback = [f"--trainer.callbacks+={__name__}.KillAt", "--trainer.callbacks.batches", str(kill_after)]
    often = ["--ledger", "true", "--save_every_minutes", "0.00001"]
    train(project, folder, "--config", "killed.yaml", "--run", "killed", *often, *callback, status=-signal.SIGKILL)
    run = folder / "runs" / "killed"
    assert not (run / "summary.json").exists() or _summary(run)["status"] != "done", "it was over before the kill"
    train(project, folder, "--resume", "killed")
    lost, repeated = _count(run, Dataset.open(settings["data"]["path"]).samples("train"))
    curves = {name: [value for _, value in points] for name, points in read_run(run).curves.items()}
    return Proof(run, lost, repeated, _summary(run), curves)


def _summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def _count(run: Path, samples: int) -> tuple[int, int]:
    """(lost, repeated) samples of all epochs: from where an attempt began, the steps of earlier ones are void."""
    rows = [row for path in sorted((run / "ledger").glob("rank-*.jsonl")) for row in read_ledger(path)]
    begins = {row["attempt"]: (row["epoch"], row["position"]) for row in rows if not row["ids"]}
    seen: dict[int, Counter[int]] = {}
    batch = 1
    for row in rows:
        place = row["epoch"], row["position"]
        if any(later > row["attempt"] and begin <= place for later, begin in begins.items()):
            continue
        seen.setdefault(row["epoch"], Counter()).update(row["ids"])
        batch = max(batch, len(row["ids"]))
    lost = sum(max(0, samples // batch * batch - len(ids)) for ids in seen.values())
    return lost, sum(ids.total() - len(ids) for ids in seen.values())
