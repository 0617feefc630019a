"""A training loop in plain PyTorch, on any ranks, that saves itself after each step: what `chains` strikes.

Its batches come from `ShardLoader`, or from `ShardSamples` through webdataset's stages and a DataLoader. What it saves
holds, beside the weights and the place, the steps that led to them: so a kill takes back both alike, and what is saved
at the end says which samples the weights were made of.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
import webdataset as wds
from lightning_shards.data import ShardLoader, ShardSamples
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

STATE = Path("state.pt")
SIDE = 8
Row = tuple[int, int, np.ndarray, int]  # of ShardSamples: id, mark, pixels, target


def open_source(door: str, data: dict[str, Any], workers: int = 1) -> ShardLoader | ShardSamples:
    return ShardLoader(**data, crop=SIDE, workers=workers) if door == "ShardLoader" else ShardSamples(**data)


def batches(source: ShardLoader | ShardSamples, workers: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(ids, marks, images, targets) of the rest of an epoch; a mark is a checksum of all that a sample's fields are."""
    if isinstance(source, ShardLoader):
        for batch in source:
            marks = torch.zeros(len(batch), dtype=torch.int64)
            for name in ("image", "mask"):
                if name in batch.fields:
                    values = batch[name].flatten(1).long()
                    marks = marks * 1_000_003 + (values * (torch.arange(values.shape[1]) % 251 + 1)).sum(1)
            for row, one in enumerate(batch.fields.get("boxes", [])):
                marks[row] = marks[row] * 1_000_003 + zlib.crc32(one["boxes"].numpy().tobytes())
            yield batch.ids, marks, batch["image"].flatten(1).float() / 255, batch["target"]
        return
    stages = wds.map(Opened(source)), wds.batched(source.batch_size, partial=True)
    method = "fork" if workers else None  # in a forked process the default is another
    pipeline = wds.DataPipeline(source, *stages)
    loader = DataLoader(pipeline, batch_size=None, num_workers=workers, multiprocessing_context=method)
    for ids, marks, pixels, targets in source.counted(loader):
        ids, marks, targets = (torch.as_tensor(values, dtype=torch.int64) for values in (ids, marks, targets))
        yield ids, marks, torch.as_tensor(pixels).flatten(1).float() / 255, targets


class Opened:
    """One of webdataset's samples as a row."""

    def __init__(self, source: ShardSamples) -> None:
        self.parts = [(str(part.root), part.samples("train")) for part, _ in source.dataset.parts("train")]

    def __call__(self, sample: dict[str, Any]) -> Row:
        number, roots = int(sample["__key__"]), [root for root, _ in self.parts]
        part = next((n for n, root in enumerate(roots) if sample["__url__"].startswith(f"{root}/")), 0)
        number += sum(count for _, count in self.parts[:part])
        mark = zlib.crc32(b"".join(sample[name] for name in sorted(sample) if not name.startswith("__")))
        pixels = cv2.imdecode(np.frombuffer(sample["png"], np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        return number, mark, cv2.resize(pixels, (SIDE, SIDE)), int(sample["cls"])


class Training:
    """One start, which goes on where the state stands, if there is one."""

    def __init__(self, door: str, data: dict[str, Any], epochs: int, workers: int) -> None:
        self.source, self.epochs, self.workers = open_source(door, data, workers), epochs, workers
        self.accumulation = data["accumulation"]
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3 * SIDE**2, 3)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9)
        self.steps: list[dict[str, Any]] = []
        self.attempt = 0
        if STATE.exists():
            saved = torch.load(STATE, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.source.load_state_dict(saved["place"])
            self.steps, self.attempt = saved["steps"], saved["attempt"] + 1
        self.parallel = DistributedDataParallel(self.model) if dist.is_initialized() else self.model

    @property
    def place(self) -> tuple[int, int]:
        return self.source.epoch, self.source.position

    def run(self) -> None:
        while self.source.epoch < self.epochs:
            place, rows = self.place, []
            for number, (ids, marks, inputs, targets) in enumerate(batches(self.source, self.workers), 1):
                self.forward(inputs, targets)
                rows.append(gathered(torch.stack([ids, marks])))
                if number % self.accumulation == 0:
                    self.step(place, torch.cat(rows, 1))
                    place, rows = self.place, []

    def forward(self, inputs: Tensor, targets: Tensor) -> None:
        (cross_entropy(self.parallel(inputs), targets) / self.accumulation).backward()

    def step(self, place: tuple[int, int], rows: Tensor) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        ids, marks = rows.tolist()
        about = {"epoch": place[0], "position": place[1], "attempt": self.attempt}
        self.steps.append({**about, "ids": ids, "marks": marks})
        if not dist.is_initialized() or dist.get_rank() == 0:
            self.save()

    def save(self) -> None:
        """The old state or the new one is there, whenever this is killed."""
        state: dict[str, Any] = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"place": self.source.state_dict(), "steps": self.steps, "attempt": self.attempt}
        temporary = STATE.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            os.fsync(file.fileno())
        temporary.replace(STATE)


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, (2, ranks x batch), in the order of ranks."""
    if not dist.is_initialized():
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts, 1)


def main(arguments: Sequence[str]) -> None:
    """On one of the ranks that a launcher's variables name; without them alone, and without torch.distributed."""
    torch.set_num_threads(1)
    if "LOCAL_RANK" in os.environ:
        dist.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    Training(**json.loads(arguments[0])).run()
    if dist.is_initialized():
        dist.destroy_process_group()
