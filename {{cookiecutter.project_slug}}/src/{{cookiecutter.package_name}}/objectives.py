"""What is asked of the model, one class a task: loss of each row, metrics, and the metric that picks the best weights.
The engine's `tasks` has the rest of each. A setting of a loss is a parameter of the constructors here and in model.py.

Shapes: B rows, T targets (classes or numbers); logits are the network's float outputs (B, T).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning_shards.vision import detection, tasks
from lightning_shards.vision.objective import LARGEST_MATRIX
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, R2Score
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex
from torchvision.ops import generalized_box_iou_loss


class SingleLabel(tasks.SingleLabel):
    """One class an image. Targets: int64 (B,).

    Binary cross entropy asks of each class whether it is there (Wightman et al., 2021, ResNet strikes back): the mean
    over the classes. Scores sum up to one for either loss.
    """

    monitor, mode = "val/accuracy", "max"
    choices = ("cross_entropy", "binary_cross_entropy")

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights, smooth = self.class_weights(logits), self.label_smoothing
        if self.loss == "binary_cross_entropy":
            wanted = F.one_hot(targets, self.targets).to(logits.dtype) * (1 - smooth) + smooth / self.targets
            losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)
        else:
            losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smooth)
        return losses if weights is None else losses * weights[targets]

    def taught(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Distance of each row, float (B,), from a teacher's scores, float (B, T)."""
        if self.loss == "binary_cross_entropy":
            return F.binary_cross_entropy_with_logits(logits, teacher, reduction="none").mean(dim=1)
        return F.cross_entropy(logits, teacher, reduction="none")

    def metrics(self) -> MetricCollection:
        chosen: dict[str, Metric] = {
            "accuracy": MulticlassAccuracy(self.targets, average="micro"),
            "balanced_accuracy": MulticlassAccuracy(self.targets, average="macro"),  # the mean over the classes
            "f1": MulticlassF1Score(self.targets, average="macro"),
        }
        if self.targets > 10:
            chosen["accuracy_top5"] = MulticlassAccuracy(self.targets, average="micro", top_k=5)
        if self.targets <= LARGEST_MATRIX:
            chosen["ranking"] = self.ranking()  # auroc and average_precision, the mean over the classes
        return MetricCollection(chosen)  # type: ignore[arg-type]


class MultiLabel(tasks.MultiLabel):
    """Any number of classes an image. Targets: float (B, T) of 0 and 1."""

    monitor, mode = "val/average_precision", "max"

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights = self.class_weights(logits)  # of a label where it is there
        smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none", pos_weight=weights).mean(dim=1)

    def taught(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Distance of each row, float (B,), from a teacher's scores, float (B, T)."""
        return F.binary_cross_entropy_with_logits(logits, teacher, reduction="none").mean(dim=1)

    def metrics(self) -> MetricCollection:
        return MetricCollection({"ranking": self.ranking()})  # auroc and average_precision; `f1` goes by thresholds


class Regression(tasks.Regression):
    """Numbers. Targets: float (B, T); the loss is the squared error, so bring targets to a scale near 1."""

    monitor, mode = "val/mean_absolute_error", "min"

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits - targets).square().mean(dim=1)

    taught = losses  # by a teacher's numbers

    def metrics(self) -> MetricCollection:
        absolute, squared = MeanAbsoluteError(), MeanSquaredError(squared=False)
        return MetricCollection({"mean_absolute_error": absolute, "root_mean_squared_error": squared, "r2": R2Score()})


class Segmentation(tasks.Segmentation):
    """A class for each pixel. Logits are (B, T, S, S), targets int64 (B, S, S); 255 counts nowhere.

    The loss is the mean cross entropy of the pixels that count, plus 1 - Dice (Milletari et al., 2016, V-Net): the mean
    over the classes, whatever their size, of twice the overlap over the sum of the areas.
    """

    monitor, mode = "val/mean_iou", "max"
    choices = ("cross_entropy_dice", "cross_entropy")

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        counted, weights, smooth = targets != self.ignored, self.class_weights(logits), self.label_smoothing
        pixels = F.cross_entropy(
            logits, targets, weights, ignore_index=self.ignored, reduction="none", label_smoothing=smooth
        )
        entropy = pixels.sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)
        if self.loss == "cross_entropy":
            return entropy
        said, counts = logits.softmax(dim=1), counted[:, None]
        wanted = F.one_hot(targets.where(counted, 0), self.targets).movedim(3, 1)
        overlap, areas = ((x * counts).sum((2, 3)) for x in (said * wanted, said + wanted))
        return entropy + 1 - ((2 * overlap + 1) / (areas + 1)).mean(dim=1)

    def metrics(self) -> MetricCollection:
        mean = MulticlassJaccardIndex(self.targets, **self.counted)  # of the classes that occur
        accuracy = MulticlassAccuracy(self.targets, average="micro", **self.counted)
        of_each = MulticlassJaccardIndex(self.targets, average=None, zero_division=float("nan"), **self.counted)
        return MetricCollection({"mean_iou": mean, "iou": of_each, "pixel_accuracy": accuracy})


class Detection(tasks.Detection):
    """Boxes around things. Logits are a detector's maps (B, T + 4, h, w); targets (B, N, 6) are left, top, right and
    bottom in pixels, 1, and the class; -1 where there is none.

    The loss is the quality focal loss (Li et al., 2020) of what each place says of each class, for each thing in the
    image, plus 1 - GIoU (Rezatofighi et al., 2019) of the boxes of the places around the things' centres.
    """

    monitor, mode = "val/map", "max"

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        if logits.ndim != 4:  # torchvision's networks give their own losses in training, and boxes else
            return logits if logits.ndim == 1 else logits.new_full((len(logits),), torch.nan)
        heat, boxes, height = detection.wanted(logits, targets)
        said, weights = logits[:, : self.targets], self.class_weights(logits)
        focal = F.binary_cross_entropy_with_logits(said, heat, reduction="none") * (said.sigmoid() - heat).square()
        focal = focal if weights is None else focal * weights[:, None, None]
        things = (targets[:, :, 5] >= 0).sum(dim=1).clamp(min=1)
        away = generalized_box_iou_loss(detection.edges(logits).movedim(1, 3), boxes.movedim(1, 3))
        return focal.sum((1, 2, 3)) / things + (away * height).sum((1, 2)) / height.sum((1, 2)).clamp(min=1)

    def metrics(self) -> MetricCollection:
        return MetricCollection({"precision": self.precision()})  # map, map_50, and ap of each class


OBJECTIVES: dict[str, type[tasks.Task]] = {
    "single_label": SingleLabel,
    "multi_label": MultiLabel,
    "regression": Regression,
    "segmentation": Segmentation,
    "detection": Detection,
}
