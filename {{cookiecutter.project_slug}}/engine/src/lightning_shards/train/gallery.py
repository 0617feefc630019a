"""What the model says of single images: counts for each class and some images with predictions, of a pass over a split.

    validation or test -> evaluation/val.json or test.json in the run's folder -> report.html, and W&B

Whatever the size of the split and the number of ranks, a pass keeps a fixed number of images and counts.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection, SumMetric

from ..data.batch import Batch
from ..data.dataset import TASKS, Shard
from ..data.fields.plane import IGNORED
from ..files import write_durably
from ..terminal import say
from ..vision import box_pictures, boxes, mask_pictures
from ..vision.calibration import Calibration
from ..vision.objective import Shown
from .gallery_loggers import show
from .pictures import with_pictures
from .top_rows import TopRows

LARGEST_SIDE = 128  # pixels; larger images are made smaller
FORMAT = 1  # of evaluation/*.json
POINTS = 1000  # of the plot of predicted over actual numbers
MOST_BOXES = 50  # of an image that is shown
COMPARED = ("regression", "segmentation", "detection")  # tasks in which no image is simply right or wrong


class Gallery(L.Callback):
    """Collects during each validation and the test, and writes `evaluation/<split>.json`; shows it in loggers too.

    For models whose steps return {"scores": (B, T)}, of pixels (B, T, S, S) or of boxes (B, N, 6), and whose
    `objective` says how wrong a row is; others have none.

    Args:
        count: images of each kind: right, wrong, and most confidently wrong.
    """

    def __init__(self, count: int = 12) -> None:
        self.count = count
        self._kept: dict[str, TopRows] = {}
        self._counts = MetricCollection({})
        self._images = SumMetric()
        self._evaluation: dict[str, Any] = {}
        self._pictures = True  # whether the batches have images
        self._side, self._scale = 1, 1.0  # of the images that are shown, and how much smaller that is than they are
        self._task = ""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._kept, self._evaluation = {}, {}

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._kept, self._evaluation = {}, {}

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        self._look_at(trainer, pl_module, outputs, batch)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        self._look_at(trainer, pl_module, outputs, batch)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(trainer, pl_module, "test")
        show(trainer.loggers, self._evaluation)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        show(trainer.loggers, self._evaluation)

    def _look_at(self, trainer: L.Trainer, model: Any, outputs: Any, batch: Batch) -> None:
        scores = outputs.get("scores") if isinstance(outputs, Mapping) else None
        objective, data = getattr(model, "objective", None), trainer.datamodule  # type: ignore[attr-defined]
        if scores is None or not isinstance(objective, Shown) or data.task not in TASKS:
            return
        targets = objective.target_of(batch) if hasattr(objective, "target_of") else batch["target"]
        if not self._kept:
            self._begin(objective, data.task, batch, targets, scores)
        self._collect(objective, getattr(model, "calibration", None), batch, targets, scores)

    def _begin(self, objective: Shown, task: str, batch: Batch, targets: Tensor, scores: Tensor) -> None:
        self._pictures, self._task = "image" in batch.fields, task
        given = batch["image"].shape[-1] if self._pictures else 1
        side = self._side = min(LARGEST_SIDE, given)
        self._scale = side / given
        kept, said = self._rows(targets, scores)
        rows, device = (tuple(said.shape[1:]), tuple(kept.shape[1:]), kept.dtype), scores.device
        groups = {"surest": 1, "wrong": 2, "right": 3}  # times as many as are shown, since none is shown twice
        self._kept = {kind: TopRows(times * self.count, side, *rows).to(device) for kind, times in groups.items()}
        if task == "regression":
            self._kept["points"] = TopRows(POINTS, 1, *rows).to(device)
        self._counts = objective.counts().to(device)
        self._images = SumMetric().to(device)

    def _rows(self, targets: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and scores as they are kept with an image: masks, true and predicted, as large as it is shown; boxes,
        so many for each image, where they lie in what is shown."""
        if self._task == "detection":
            return self._of_fixed_number(targets), self._of_fixed_number(scores)
        if self._task != "segmentation":
            return targets, scores
        masks = (
            F.interpolate(x[:, None].float(), self._side, mode="nearest-exact") for x in (targets, scores.argmax(1))
        )
        small, said = (mask[:, 0].to(torch.uint8) for mask in masks)
        return small, said

    def _of_fixed_number(self, found: Tensor) -> Tensor:
        kept = found.new_full((len(found), MOST_BOXES, 6), boxes.NONE)
        count = min(MOST_BOXES, found.shape[1])
        kept[:, :count] = found[:, :count]
        kept[:, :, :4] *= self._scale
        return kept

    def _collect(self, objective: Shown, calibration: Any, batch: Batch, targets: Tensor, scores: Tensor) -> None:
        decided = calibration.centred(scores) if isinstance(calibration, Calibration) else scores
        valid, wrong = batch.valid, objective.error_score(decided, targets)
        draw = (batch.seeds & 0xFFFFFF) / 2.0**24  # random, but the sample's own, whichever rank has it
        if self._task in COMPARED:  # the nearest ones stand for those that are right
            priorities = {"surest": wrong, "wrong": draw, "right": -wrong, "points": draw}
        else:
            priorities = {
                "surest": torch.where(wrong > 0, wrong, -torch.inf),
                "wrong": torch.where(wrong > 0, draw, -torch.inf),
                "right": torch.where(wrong > 0, -torch.inf, draw),
            }
        rows = self._rows(targets, scores)
        for kind, metric in self._kept.items():
            metric.update(torch.where(valid, priorities[kind], -torch.inf), batch, *rows)
        self._images.update(valid.sum())
        if bool(valid.any()):
            self._counts.update(decided[valid], targets[valid])

    def _end(self, trainer: L.Trainer, model: Any, split: str) -> None:
        """Bring the ranks' parts together, on all of them, and write them down on one."""
        if trainer.sanity_checking or not self._kept:
            return
        kept = {kind: metric.rows() for kind, metric in self._kept.items()}
        images, counts = int(self._images.compute()), self._counts.compute()
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        task, dataset = data.task, data.dataset
        points = [[target.tolist(), scores.tolist()] for _, _, target, scores in kept.pop("points", [])]
        calibration, found = getattr(model, "calibration", None), None
        if isinstance(calibration, Calibration):  # which has fitted temperature and thresholds meanwhile
            found = dict(calibration.found or {})
            if labels := found.pop("labels", None):
                counts["stat_scores"] = torch.tensor(labels)
            kept = {kind: [(*row[:3], calibration.restated(row[3])) for row in rows] for kind, rows in kept.items()}
        shown = set[int]()
        for kind, rows in kept.items():
            kept[kind] = [row for row in rows if row[0] not in shown][: self.count]
            shown.update(row[0] for row in kept[kind])
        if not self._pictures:
            kept = with_pictures(kept, dataset, split, data.crop)
        cutoffs = found.pop("cutoffs", None) if found else None
        self._evaluation = {
            "format": FORMAT,
            "split": split,
            "task": task,
            "targets": data.targets,
            "images": images,
            "images_seen": data.images_seen,
            "counts": {name: value.tolist() for name, value in counts.items()},
            "points": points,
            "calibration": found or None,
            "cutoffs": cutoffs,
            "examples": {
                kind: [
                    _example(row, task, 0.5 if cutoffs is None else torch.tensor(cutoffs))
                    | _place(dataset.splits[split], row[0])
                    for row in rows
                ]
                for kind, rows in kept.items()
            },
        }
        path = Path(trainer.default_root_dir) / "evaluation" / f"{split}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, json.dumps(self._evaluation).encode())
        except OSError as error:
            say(f"{path} could not be written ({error.strerror}): the report will not have it", sys.stderr)


def _example(row: tuple[int, Tensor, Tensor, Tensor], task: str, cutoffs: Any = 0.5) -> dict[str, Any]:
    """One image with what it is and what the model says, as JSON: class numbers with scores, or numbers.

    With masks, the picture shows them beside the image, and each class has its intersection over union. With boxes, it
    has those that are there and those that were found, and how many of the first were.
    """
    sample, image, target, scores = row
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    if task == "segmentation":
        masks = target.numpy(), scores.to(torch.uint8).numpy()
        pixels = mask_pictures.side_by_side(pixels, *masks)
    elif task == "detection":
        true = target[boxes.there(target)]
        said = scores[boxes.there(scores) & (scores[:, 4] >= boxes.SURE)]
        pixels = box_pictures.side_by_side(pixels, true.numpy(), said.numpy())
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    kind = "png" if len(pixels) <= 64 else "jpeg"
    data = cv2.imencode(f".{kind}", pixels, [] if kind == "png" else [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    if task == "segmentation":
        actual = np.setdiff1d(masks[0], IGNORED).tolist()
        predicted = [[number, round(share, 4)] for number, share in mask_pictures.overlaps(*masks)]
    elif task == "detection":
        actual, predicted = true[:, 5].int().tolist(), [[int(one[5]), round(float(one[4]), 4)] for one in said]
    elif task == "regression":
        actual, predicted = target.tolist(), scores.tolist()
    else:
        if task == "single_label":
            actual, chosen = [int(target)], [int(scores.argmax())]
        else:
            actual, chosen = target.nonzero().flatten().tolist(), (scores >= cutoffs).nonzero().flatten().tolist()
        predicted = [[number, round(float(scores[number]), 4)] for number in chosen]
    image_url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    found = {"found": boxes.found(said, true)} if task == "detection" else {}
    return {"id": sample, "actual": actual, "predicted": predicted, **found, "image": image_url}


def _place(shards: Sequence[Shard], sample: int) -> dict[str, Any]:
    """Where a sample lies: its shard, and its number there, from 0."""
    for shard in shards:
        if sample < shard.samples:
            return {"shard": shard.name, "number": sample}
        sample -= shard.samples
    raise IndexError(sample)
