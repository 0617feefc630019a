"""The accuracy of nearest neighbours beside that of a head: what the features know before anything is learned of them.

Each held-out sample gets the class of its 20 nearest training samples by cosine, weighted by exp(similarity / 0.07) (Wu
et al., 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"; Caron et al., 2021, DINO).

Shapes: B rows, F features, N training samples, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import MeanMetric

from ..data.batch import Batch
from ..data.embedded_rows import embedded_rows
from ..data.embedding import FEATURES, Embedded
from ..data.order import Order
from .datamodule import ShardDataModule

NEIGHBOURS, TEMPERATURE = 20, 0.07
MOST_ROWS = 100_000  # training samples that are looked through
MOST_BYTES = 1 << 29  # of them in memory
MOST_PRODUCTS = 1e11  # multiplications for a split: half a minute on two CPU cores
LEAST_ROWS = 1_000
_AT_A_TIME = 1 << 24  # similarities
_READ = 1 << 13  # samples, and positions of the order, at a time


def settings(data: ShardDataModule) -> dict[str, Any]:
    """For `resolved` of a run's summary: how many training samples are looked through, and whether these are drawn.

    Empty for a training that has no neighbours: not on features, or not of one class a sample.
    """
    features, target = (data.sample_fields.get(name) for name in (FEATURES, "target"))
    if data.task != "single_label" or not isinstance(features, Embedded) or not isinstance(target, Embedded):
        return {}
    held_out = max([data.dataset.samples(split) for split in ("val", "test") if data.dataset.splits.get(split)] or [1])
    length, training = features.shape[0], len(data.each_once())
    most = min(MOST_ROWS, MOST_BYTES // (4 * length), int(MOST_PRODUCTS / (held_out * length)))
    rows = min(training, max(LEAST_ROWS, most))
    return {"knn_samples": rows, "knn_drawn": rows < training}


def drawn(order: Order, count: int, seed: int) -> NDArray[np.int64]:
    """The ids of `count` positions of the first epoch, drawn by `seed`, in ascending order; each once."""
    if count < len(order):
        chance = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0x6B6E6E])))
        positions = chance.choice(len(order), count, replace=False, shuffle=False)
        positions.sort()
    else:
        positions = np.arange(len(order))
    found = []
    for start in range(0, len(order), _READ):
        first, last = positions.searchsorted([start, start + _READ])
        if last > first:
            found.append(order.ids(0, start, min(start + _READ, len(order)))[positions[first:last] - start])
    return np.unique(np.concatenate(found))


def training_rows(data: ShardDataModule, ids: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Features of unit length, float32 (N, F), and classes, int64 (N,), of those of `ids` that could be embedded."""
    fields = {name: data.sample_fields[name] for name in (FEATURES, "target")}
    (rows,) = embedded_rows(data.dataset, "train", fields)
    length = int((fields[FEATURES].shape or (0,))[0])
    features, classes = np.empty((len(ids), length), np.float32), np.empty(len(ids), np.int64)
    done = 0
    for some in np.split(ids, range(_READ, len(ids), _READ)):
        read: dict[str, NDArray[Any]] = {
            FEATURES: np.empty((len(some), length), np.float16),
            "target": np.empty(len(some), np.int64),
        }
        rows.expect(np.unique(rows.ends.searchsorted(some, side="right")).tolist())
        there = np.ones(len(some), np.bool_)
        there[rows.fill(some, None, read)] = False
        end = done + int(there.sum())
        features[done:end], classes[done:end] = read[FEATURES][there], read["target"][there]
        done = end
    rows.expect([])
    return F.normalize(torch.from_numpy(features[:done])), torch.from_numpy(classes[:done])


def nearest(queries: Tensor, features: Tensor, classes: Tensor, count: int) -> Tensor:
    """The class of each of the `queries`, (B, F): int64 (B,).

    Args:
        features, classes: of the training samples, as `training_rows` gives them.
        count: C.
    """
    found = []
    for some in F.normalize(queries.float()).split(max(1, _AT_A_TIME // max(1, len(features)))):
        near, places = (some @ features.T).topk(min(NEIGHBOURS, len(features)), dim=1)
        votes, rows = near.new_zeros(len(some), count), torch.arange(len(some), device=some.device)
        for own, weight in zip(classes[places].unbind(1), (near / TEMPERATURE).exp().unbind(1), strict=True):
            votes[rows, own] += weight  # each row once: the same on any device
        found.append(votes.argmax(1))
    return torch.cat(found)


class NearestNeighbours(L.Callback):
    """Logs `knn_accuracy` of validation and test in a training on features of one class a sample.

    The features stay what they are, so each split is looked at once in an attempt, over all ranks; later validations
    log the same figure again.
    """

    def __init__(self) -> None:
        self._found: dict[str, float] = {}
        self._rows: tuple[Tensor, Tensor] | None = None
        self._right = MeanMetric()

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer, pl_module, "test")

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        self._look_at(batch, len(trainer.datamodule.targets))  # type: ignore[attr-defined]

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        self._look_at(batch, len(trainer.datamodule.targets))  # type: ignore[attr-defined]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(pl_module, "test")

    def _begin(self, trainer: L.Trainer, model: L.LightningModule, split: str) -> None:
        self._rows, data = None, trainer.datamodule  # type: ignore[attr-defined]
        if trainer.sanity_checking or split in self._found or not (how := settings(data)):
            return
        features, classes = training_rows(data, drawn(data.each_once(), how["knn_samples"], data.seed))
        if len(features):
            self._rows = features.to(model.device), classes.to(model.device)
            self._right = MeanMetric().to(model.device)

    def _look_at(self, batch: Batch, classes: int) -> None:
        if self._rows and bool(batch.valid.any()):
            guesses = nearest(batch[FEATURES][batch.valid], *self._rows, classes)
            self._right.update((guesses == batch["target"][batch.valid]).float())

    def _end(self, model: L.LightningModule, split: str) -> None:
        if self._rows:
            value, self._rows = float(self._right.compute()), None
            if math.isfinite(value):  # there was a row
                self._found[split] = value
        if split in self._found:
            model.log(f"{split}/knn_accuracy", self._found[split], batch_size=1)
