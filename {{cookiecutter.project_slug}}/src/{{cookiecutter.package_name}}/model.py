"""The model: what is trained, on which loss, with which optimizer and schedule.

What to change where:

    another network                       backbones.py
    another loss or metric of a task      objectives.py; its settings: the constructor below
    augmentation on the device            augment.py
    inputs, crops, transforms             data.py
    optimizer, schedule, frozen layers    `configure_optimizers`, `learning_rate` and `frozen` below
    anything else, or another model       `training_step` below; any LightningModule will do in its place (train.py)

A setting is a parameter of the constructor: `--model.NAME` and the `model` part of a config set it, and a sentence
about it in the docstring is its help. Values that come from the data (`targets`, `task`, `image_size`) are handed to
parameters of these names, where a model has them.

Shapes: B rows, S image side, T targets (classes or numbers).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from lightning_shards.data.batch import Batch
from lightning_shards.errors import InputError
from lightning_shards.train import EvalMetrics, ShardModule
from lightning_shards.train.optimizers import lamb
from lightning_shards.vision import depth, last_layer
from lightning_shards.vision.augmentation import check_changes, partners
from lightning_shards.vision.calibration import Calibration
from lightning_shards.vision.detection import Detector
from lightning_shards.vision.fine_tuning import FineTuning
from lightning_shards.vision.pretrained import Pretrained
from lightning_shards.vision.random_operations import random_operations
from lightning_shards.vision.tasks import Task
from lightning_shards.vision.torchvision_models import check_input
from torch import Tensor, nn
from torch.optim import Optimizer

from . import backbones
from .augment import Augment, Mix
from .objectives import OBJECTIVES


class ImageModel(ShardModule):
    """Images in; classes, numbers, masks or boxes out.

    Args:
        targets: class names, or names of the numbers; come from the dataset.
        task: single_label, multi_label, regression, segmentation or detection; comes from the dataset.
        image_size: side of the images, in pixels; comes from data.image_size.
        fields: shape of a row of each field of a sample; comes from the dataset.
        backbone: small_cnn, small_cnn_wide, any classification network of torchvision (resnet50, ...) or of timm
            (timm/NAME); for data.features, in place of images: linear or mlp; for masks: small_unet, fcn_*,
            deeplabv3_*, lraspp_*; for boxes: small_detector, fasterrcnn_*, fcos_*, retinanet_*, ssd*.
        weights: what to start from: `imagenet`, a checkpoint or another file of weights, or null for random weights.
        pretrained: mean, std, image_size of the images that the weights were trained on; null: what the weights say.
        drop_path: stochastic depth: the last block is left out so often in training; null: as the network has it.
        gradient_checkpointing: compute blocks twice rather than keep what is in them: less memory, a third slower.
        trained_blocks: train so many blocks in front of the head; 0 is the head alone, null is all of the network.
        thaw_after: share of the training after which all is trained, whatever trained_blocks says; 1 is never.
        optimizer: adamw, sgd (with Nesterov momentum), or lamb for large batches (`uv sync --extra timm`).
        learning_rate: the highest one, reached after the warm-up.
        layer_decay: learning rate of a block, as a share of that of the one behind it; 1 is the same for all.
        weight_decay: on matrices and kernels; biases and norms have none.
        momentum: of sgd.
        warmup: share of the training in which the learning rate rises from 0; it then falls to 0 along a cosine.
        loss: of one class an image: cross_entropy, or binary_cross_entropy, which asks for each class by itself
            (Wightman et al., 2021); of masks: cross_entropy_dice or cross_entropy; null: the first, or the only one.
        label_smoothing: share of the target that is spread over all classes.
        distillation: share of the loss that is the distance from data.teacher (Hinton et al., 2015); 0 is off.
        class_weights: what classes count in the loss, by name, 1 for others; or how far to even them out, 0 to 1.
        mixup: alpha of the shares in which two images of a micro-batch are blended in training; 0 is off.
        cutmix: alpha of the share of an image that a box of another one replaces; with mixup, either of them.
        erasing: probability that a box of a training image is blanked.
        color_jitter: brightness, contrast and saturation change by up to this share in training.
        trivial_augment: one random operation a training image, of random magnitude (Mueller & Hutter, 2021).
        rand_augment: so many operations of one magnitude, 0..30, such as [2, 9] (Cubuk et al., 2020); null: none.
        calibrate: let each validation fit a temperature of the scores, so that they are as sure as they are right.
        thresholds: let it also choose from which score on each of several labels counts as there; else from 0.5 on.
        channels_last: memory layout of weights and images; the fast one on GPUs.
        fused: let one kernel update all weights, where the optimizer has one: lamb has not.
        compile: torch.compile in place; null: on CUDA, for runs that are long enough to earn it.
    """

    inputs: tuple[str, ...] = ("image",)  # the fields of a batch that `forward` takes
    more_outputs: int = 0  # of the network, behind one of each target
    mean: Tensor  # of the pixels in 0..255 that the weights expect, (1, 3, 1, 1); of features 0
    std: Tensor

    def __init__(
        self,
        targets: list[str],
        task: Literal["single_label", "multi_label", "regression", "segmentation", "detection"] = "single_label",
        image_size: int = 224,
        fields: dict[str, list[int] | None] | None = None,
        backbone: str = "resnet50",
        weights: str | None = None,
        pretrained: dict[str, Any] | None = None,
        drop_path: float | None = None,
        gradient_checkpointing: bool = False,
        trained_blocks: int | None = None,
        thaw_after: float = 1.0,
        optimizer: Literal["adamw", "sgd", "lamb"] = "adamw",
        learning_rate: float = 1e-3,
        layer_decay: float = 1.0,
        weight_decay: float = 0.05,
        momentum: float = 0.9,
        warmup: float = 0.05,
        loss: Literal["cross_entropy", "binary_cross_entropy", "cross_entropy_dice"] | None = None,
        label_smoothing: float = 0.0,
        distillation: float = 0.0,
        class_weights: float | dict[str, float] | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        erasing: float = 0.0,
        color_jitter: float = 0.0,
        trivial_augment: bool = False,
        rand_augment: tuple[int, int] | None = None,
        calibrate: bool = True,
        thresholds: bool = True,
        channels_last: bool = True,
        fused: bool = True,
        compile: bool | None = None,
    ) -> None:
        super().__init__()
        for name, value, holds, rule in (
            ("learning_rate", learning_rate, learning_rate > 0, "above 0"),
            ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
            ("momentum", momentum, 0 < momentum < 1, "above 0 and below 1"),
            ("warmup", warmup, 0 <= warmup <= 1, "between 0 and 1"),
            ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "at least 0 and below 1"),
            ("distillation", distillation, 0 <= distillation <= 1, "between 0 and 1"),
            ("mixup", mixup, 0 <= mixup <= 10, "between 0 and 10"),
            ("cutmix", cutmix, 0 <= cutmix <= 10, "between 0 and 10"),
            ("erasing", erasing, 0 <= erasing <= 1, "between 0 and 1"),
            ("color_jitter", color_jitter, 0 <= color_jitter <= 1, "between 0 and 1"),
        ):
            if not holds:
                raise InputError(f"model.{name} is {value}, it must be {rule}")
        self.save_hyperparameters(ignore=["weights"])
        self.objective: Task = OBJECTIVES[task](len(targets), label_smoothing, loss)
        self.objective.weigh(class_weights, targets)
        if distillation and not hasattr(self.objective, "taught"):
            raise InputError(f"model.distillation is for what is said of an image as a whole, not for {task}")
        teacher = (fields or {}).get("teacher")
        if distillation and teacher != [len(targets)]:
            raise InputError("model.distillation learns from data.teacher: scores of the same targets, made by `embed`")
        self.monitor, self.mode = self.objective.monitor, self.objective.mode  # what picks the best weights
        self.measures = EvalMetrics(self.objective.metrics())  # of validation and test; logged at their end
        self.calibration = Calibration(self.objective.link, calibrate, len(targets), thresholds)
        features = (fields or {}).get("features")  # (F,), where samples have them in place of an image
        self.backbone: nn.Module = backbones.build(
            backbone,
            len(targets) + self.more_outputs,
            image_size,
            weights,
            features,
            pretrained,
            drop_path,
            task,
        )
        self.fine_tuning = FineTuning(self.backbone, backbone, trained_blocks, thaw_after, layer_decay)
        if gradient_checkpointing:
            depth.compute_twice(self.backbone, backbone)
        begun = Pretrained.of(self.backbone, pretrained)
        self.hparams["pretrained"], self.note = begun.settings(), begun.note(image_size)
        if teacher and not distillation:
            self.note += f"{'; ' if self.note else ''}the teacher teaches nothing, model.distillation is 0"
        check_changes(self.hparams, features=bool(features), task=task)
        if features:
            self.inputs = ("features",)
        else:
            check_input(self.backbone, image_size)
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (begun.mean, begun.std))
        self.register_buffer("mean", torch.zeros(1) if features else mean, persistent=False)
        self.register_buffer("std", torch.ones(1) if features else std, persistent=False)
        operations = random_operations(trivial_augment, rand_augment)
        self.augment = Augment(mixup, cutmix, erasing, color_jitter, self.mean, operations)

    def forward(self, images: Tensor, *truth: Tensor) -> Tensor:
        """Outputs, float (B, T), for RGB images in 0..255, uint8 or float (B, 3, S, S), or for features (B, F)."""
        return self.backbone((images - self.mean) / self.std, *truth)

    def features(self, images: Tensor) -> Tensor:
        """What `embed` keeps of images: what the backbone's last layer sees, float (B, F)."""
        return last_layer.features(self.backbone, (images - self.mean) / self.std)

    def scores(self, *inputs: Tensor) -> Tensor:
        """Probabilities or numbers, float (B, T): what `predict` writes and an exported file gives."""
        return self.objective.scores(self.calibration(self(*inputs).float()))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, mix = [batch[name] for name in self.inputs], None
        if self.inputs[0] == "image":
            inputs[0], mix = self.augment(inputs[0], self.objective.target_of(batch), batch.seeds, batch.valid)
        if isinstance(self.backbone, Detector):  # which needs to know what it is to find
            inputs.append(self.objective.target_of(batch))
        losses = self.losses(self(*inputs), batch, mix)
        loss = losses.sum() / len(losses)  # rows that are not valid count as rows, with no loss: the same on every rank
        self.log("train/loss", loss, batch_size=len(batch))  # with prog_bar, each step would wait for its value
        return loss

    def losses(self, outputs: Tensor, batch: Batch, mix: Mix | None = None) -> Tensor:
        """Loss of each row, float (B,), for its target and what was mixed in; 0 where the row is not valid."""
        outputs = outputs.float()
        losses = self.objective.losses(outputs, self.objective.target_of(batch))
        if mix is not None:
            losses = torch.lerp(self.objective.losses(outputs, mix.targets), losses, mix.share)
        if self.training and (share := self.hparams["distillation"]):
            teacher, objective = batch["teacher"].float(), cast(Any, self.objective)
            taught = objective.taught(outputs, teacher)
            if mix is not None:
                taught = torch.lerp(objective.taught(outputs, partners(teacher)), taught, mix.share)
            losses = torch.lerp(losses, taught, share)
        return torch.where(batch.valid, losses, 0.0)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        outputs = self(*(batch[name] for name in self.inputs)).float()
        return self.measure(self.losses(outputs, batch), outputs, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self.validation_step(batch, batch_idx)

    def measure(self, losses: Tensor, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Add a batch to what a pass over a split measures: the loss of each row, and outputs, float (B, T)."""
        targets = self.objective.target_of(batch)
        self.measures.update(losses, outputs, targets, batch.valid)
        self.calibration.update(outputs, targets, batch.valid)
        return {"scores": self.objective.scores(self.calibration(outputs))}  # of which the report shows some

    def configure_optimizers(self) -> Optimizer:
        groups = self.fine_tuning.groups(self, self.hparams["weight_decay"])
        rate, fused = self.hparams["learning_rate"], self.hparams["fused"] and self.can_fuse
        if self.hparams["optimizer"] == "adamw":
            return torch.optim.AdamW(groups, lr=rate, fused=fused)
        if self.hparams["optimizer"] == "lamb":
            return lamb(groups, rate)
        return torch.optim.SGD(groups, lr=rate, momentum=self.hparams["momentum"], nesterov=True, fused=fused)

    def learning_rate(self, progress: float) -> float:
        """The learning rate at `progress` in 0..1 of the training. None instead: the optimizer's own schedulers."""
        return float(self.hparams["learning_rate"] * schedule(progress, self.hparams["warmup"]))

    def frozen(self, progress: float) -> Iterable[nn.Parameter]:
        """What is not trained at `progress` in 0..1 of the training."""
        return self.fine_tuning.frozen(progress)

    def compiled(self) -> Iterable[nn.Module]:
        """What torch.compile takes."""
        return self.backbone, self.augment


def schedule(progress: float, warmup: float) -> float:
    """Factor of the learning rate at `progress` in 0..1: a linear rise over `warmup`, then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / max(1e-9, 1 - warmup))))
