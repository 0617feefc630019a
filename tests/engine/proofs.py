"""What must hold of a run however often it was cut and on whatever it went on: read from the files it left."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_shards.data.order import Order
from lightning_shards.train.ledger import read

Place = tuple[int, int]  # epoch, position


@dataclass(frozen=True)
class Step:
    """An optimizer step that counts: its global batch, and which attempt made it."""

    epoch: int
    position: int
    ids: tuple[int, ...]
    attempt: int


def history(run: Path) -> list[Step]:
    """The steps that count, in their order: from where an attempt began, nothing of the earlier ones does."""
    groups: dict[tuple[int, Place], list[int]] = {}
    for path in sorted((run / "ledger").glob("rank-*.jsonl")):
        for row in read(path):
            groups.setdefault((row["attempt"], (row["epoch"], row["position"])), []).extend(row["ids"])
    begins: dict[int, Place] = {}
    for attempt, place in groups:
        begins[attempt] = min(begins.get(attempt, place), place)
    return sorted(
        (
            Step(*place, tuple(ids), attempt)
            for (attempt, place), ids in groups.items()
            if ids and not any(later > attempt and begin <= place for later, begin in begins.items())
        ),
        key=lambda step: (step.epoch, step.position),
    )


def repeated_steps(run: Path) -> int:
    """Optimizer steps that were made more than once, over all attempts: 0 where every end was a saved one."""
    rows = [row for path in (run / "ledger").glob("rank-0.jsonl") for row in read(path) if row["ids"]]
    return len(rows) - len({(row["epoch"], row["position"]) for row in rows})


def check_ids(
    steps: Sequence[Step], order: Order, epochs: int, largest: int | None = None
) -> tuple[int, int, list[str]]:
    """(samples lost, samples repeated, what is wrong) of a finished run.

    `largest`: of the global batches, where they were changed; an epoch may have ended before another one of it.
    """
    lost = repeated = 0
    wrong = []
    for epoch in range(epochs):
        own = [step for step in steps if step.epoch == epoch]
        batch = len(own[-1].ids) if own else 1
        end = own[-1].position + batch if own else 0
        counts = Counter(i for step in own for i in step.ids)
        expected = Counter(order.ids(epoch, 0, end).tolist())  # an order may promise a sample more than once
        repeated += (counts - expected).total()
        lost += (expected - counts).total()
        if len(order) - end >= (largest or batch):
            lost += len(order) - end
            wrong.append(f"epoch {epoch} ended at {end} of {len(order)} with global batches of {batch}")
        position = 0
        for step in own:
            if step.position != position:
                wrong.append(f"epoch {epoch}: a step at {step.position} in place of {position}")
            if sorted(step.ids) != sorted(order.ids(epoch, step.position, step.position + len(step.ids)).tolist()):
                wrong.append(f"epoch {epoch}: other samples at {step.position} (attempt {step.attempt})")
            position = step.position + len(step.ids)
    if {step.epoch for step in steps} != set(range(epochs)):
        wrong.append(f"epochs {sorted({step.epoch for step in steps})} of {epochs}")
    return lost, repeated, wrong


def validations(
    steps: Sequence[Step], samples: int, interval: float, last_batch: int | None = None
) -> tuple[list[int], set[int]]:
    """After which optimizer steps of the run a validation is due, and after which there may be one.

    They are counted from each epoch's end, in its global batches. Where those change, the steps before are counted as
    if they had been of the new size, and the step at the change may count in either way.
    """
    due, free = [], set()
    for number, step in enumerate(steps, 1):
        following = steps[number] if number < len(steps) else None
        sizes = len(step.ids), len(following.ids) if following else last_batch or len(step.ids)
        whole, left = samples // sizes[0], (samples - step.position - sizes[0]) // sizes[0]
        if sizes[0] != sizes[1] and (following is None or following.attempt != step.attempt):
            free.add(number)
        elif (whole - left) % max(1, int(whole * interval)) == 0:
            due.append(number)
    return due, free


def metric_rows(run: Path, column: str) -> list[int]:
    """The steps at which metrics.csv has a value of `column`, as often as it has."""
    with (run / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get(column)]


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def place(run: Path) -> Place:
    """Where the last checkpoint stands; the begin where there is none."""
    path = run / "checkpoints" / "last.ckpt"
    if not path.exists():
        return 0, 0
    state = torch.load(path, map_location="cpu", weights_only=True)["lightning_shards"]
    return state["epoch"], state["position"]


def best(run: Path) -> tuple[float | None, float | None]:
    """The best validation metric: as `last.ckpt` knows it, and that of the weights in `best.ckpt`."""
    found = []
    for name in ("last", "best"):
        path = run / "checkpoints" / f"{name}.ckpt"
        state = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
        found.append(state and state["callbacks"]["lightning_shards/checkpoints"]["best"])
    return found[0], found[1]


def torn_files(run: Path) -> list[str]:
    """Files in the run's folder that are not whole; temporary ones are not counted."""
    torn = []
    for path in (p for p in run.rglob("*") if p.is_file() and p.suffix != ".tmp"):
        try:
            if path.suffix == ".ckpt":
                torch.load(path, map_location="cpu", weights_only=True)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".yaml":
                assert isinstance(yaml.safe_load(path.read_text()), dict)
            elif path.suffix == ".csv":
                lines = path.read_text().splitlines()
                assert lines and {line.count(",") for line in lines} == {lines[0].count(",")}
        except Exception as error:
            torn.append(f"{path.name}: {type(error).__name__}: {error}")
    return torn


def examine(
    run: Path, order: Order, epochs: int, interval: float, batches: Sequence[int], killed: bool
) -> tuple[int, int, list[str]]:
    """(samples lost, samples repeated, what is wrong) of a finished run; `batches`: global, of its starts."""
    steps = history(run)
    lost, repeated, wrong = check_ids(steps, order, epochs, max(batches))
    told = summary(run)
    if (told["status"], told["images_seen"], told["epochs"]) != ("done", sum(len(s.ids) for s in steps), epochs):
        wrong.append(f"{told['status']}, images_seen {told['images_seen']}, epochs {told['epochs']}")
    due, free = validations(steps, len(order), interval, batches[-1])
    made = metric_rows(run, "val/loss")  # with the numbers that steps had before they were counted
    counted = Counter(step + 1 for step in made if step + 1 not in free)
    extra = set(counted) - set(due)  # a killed attempt with another global batch counted other steps
    if set(due) - set(counted) or (extra and len(set(batches)) == 1) or not (killed or counted == Counter(due)):
        wrong.append(f"validations after {sorted(counted.elements())}, due after {due}")
    if len(set(bests := best(run))) > 1:
        wrong.append(f"best metrics {bests}")
    if not killed and (again := repeated_steps(run)):
        wrong.append(f"{again} steps were done again without a kill")
    if litter := [p.name for p in run.rglob("*") if p.name.endswith(".tmp")]:
        wrong.append(f"temporary files are left: {litter}")
    return lost, repeated, wrong + torn_files(run)
