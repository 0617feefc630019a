"""The LightningModule: backbone + objective + optimizer. The file to edit when the training itself should change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from lightning_shards.data.batch import Batch
from lightning_shards.errors import InputError
from lightning_shards.train.eval_metrics import EvalMetrics
from torch import Tensor, nn
from torch.optim import Optimizer

from . import backbones
from .augment import Augment, Mix
from .objectives import OBJECTIVES, Objective

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, what torchvision's weights expect


class ImageModel(L.LightningModule):
    """Images in, classes or numbers out.

    Args:
        targets: class names, or names of the numbers; come from the dataset.
        task: single_label, multi_label or regression; comes from the dataset.
        image_size: side of the images, in pixels; comes from data.image_size.
        backbone: small_cnn, or any classification network of torchvision: resnet50, convnext_tiny, vit_b_16, ...
        weights: what to start from: a checkpoint of this project, `imagenet`, or null for random weights.
        optimizer: adamw or sgd (with Nesterov momentum).
        learning_rate: the highest one, reached after the warm-up.
        weight_decay: on matrices and kernels; biases and norms have none.
        momentum: of sgd.
        warmup: share of the training in which the learning rate rises from 0; it then falls to 0 along a cosine.
        label_smoothing: share of the target that is spread over all classes.
        mixup: alpha of the shares in which two images of a micro-batch are blended in training; 0 is off.
        cutmix: alpha of the share of an image that a box of another one replaces; with mixup, either of them.
        erasing: probability that a box of a training image is blanked.
        color_jitter: brightness, contrast and saturation change by up to this share in training.
        channels_last: memory layout of weights and images; the fast one on GPUs.
        fused: let one kernel update all weights.
        compile: torch.compile in place; null: on CUDA, for runs that are long enough to earn it.
    """

    mean: Tensor  # of ImageNet's pixels in 0..255, (1, 3, 1, 1)
    std: Tensor

    def __init__(
        self,
        targets: list[str],
        task: Literal["single_label", "multi_label", "regression"] = "single_label",
        image_size: int = 224,
        backbone: str = "resnet50",
        weights: str | None = None,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        momentum: float = 0.9,
        warmup: float = 0.05,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        erasing: float = 0.0,
        color_jitter: float = 0.0,
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
            ("mixup", mixup, 0 <= mixup <= 10, "between 0 and 10"),
            ("cutmix", cutmix, 0 <= cutmix <= 10, "between 0 and 10"),
            ("erasing", erasing, 0 <= erasing <= 1, "between 0 and 1"),
            ("color_jitter", color_jitter, 0 <= color_jitter <= 1, "between 0 and 1"),
        ):
            if not holds:
                raise InputError(f"model.{name} is {value}, it must be {rule}")
        self.save_hyperparameters(ignore=["weights"])
        self.objective: Objective = OBJECTIVES[task]()
        self.backbone: nn.Module = backbones.build(backbone, len(targets), image_size, weights)
        backbones.check_input(self.backbone, image_size)
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255, persistent=False)
        self.augment = Augment(mixup, cutmix, erasing, color_jitter, fill=self.mean)
        self.watch_outputs: Callable[[Batch, Tensor], None] | None = (
            None  # is shown each evaluated batch and its scores
        )
        self.measures = nn.ModuleDict(
            {stage: EvalMetrics(self.objective.metrics(len(targets))) for stage in ("val", "test")}
        )

    def forward(self, images: Tensor) -> Tensor:
        """Outputs, float (B, T), for RGB images in 0..255, uint8 or float (B, 3, S, S)."""
        return self.backbone((images - self.mean) / self.std)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, mix = self.augment(batch["image"], batch["target"], batch.seeds, batch.valid)
        losses = self.losses(self(images), batch, mix)
        loss = losses.sum() / len(losses)  # rows that are not valid count as rows, with no loss: the same on every rank
        self.log("train/loss", loss)  # with prog_bar, Lightning would wait for its value in every step
        return loss

    def losses(self, outputs: Tensor, batch: Batch, mix: Mix | None = None) -> Tensor:
        """Loss of each row, float (B,), for its target and what was mixed in; 0 where the row is not valid."""
        outputs, smoothing = outputs.float(), self.hparams["label_smoothing"]
        losses = self.objective.losses(outputs, batch["target"], smoothing)
        if mix is not None:
            losses = torch.lerp(self.objective.losses(outputs, mix.targets, smoothing), losses, mix.share)
        return torch.where(batch.valid, losses, 0.0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure("test", batch)

    def _measure(self, stage: str, batch: Batch) -> None:
        outputs = self(batch["image"])
        self.measures[stage].update(self.losses(outputs, batch), outputs.float(), batch)  # type: ignore[operator]
        if self.watch_outputs is not None:
            self.watch_outputs(batch, self.objective.scores(outputs.float()))

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        """Log what was measured and start anew. Every sample of the split was counted once, over all ranks."""
        values = self.measures[stage].compute()  # type: ignore[operator]
        self.measures[stage].reset()  # type: ignore[operator]
        rows = int(values.pop("rows"))
        data, limit = (
            getattr(self.trainer, "datamodule", None),
            getattr(self.trainer, f"limit_{stage}_batches"),
        )
        if data is not None and limit == 1.0 and rows != data.dataset.samples(stage):
            raise RuntimeError(f"{stage}: {rows} rows were measured, the split has {data.dataset.samples(stage)}")
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=stage == "val" and name != "skipped")

    def configure_optimizers(self) -> Optimizer:
        decayed = [p for p in self.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in self.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.hparams["weight_decay"]},
            {"params": plain, "weight_decay": 0.0},
        ]
        rate, fused = self.hparams["learning_rate"], self._fused()
        if self.hparams["optimizer"] == "adamw":
            return torch.optim.AdamW(groups, lr=rate, fused=fused)
        return torch.optim.SGD(groups, lr=rate, momentum=self.hparams["momentum"], nesterov=True, fused=fused)

    def _fused(self) -> bool:
        """Fused where it exists; not with float16 and clipping, where gradients must be unscaled before the step."""
        clipped_fp16 = self.trainer.precision == "16-mixed" and bool(self.trainer.gradient_clip_val)
        return self.hparams["fused"] and self.device.type in ("cpu", "cuda") and not clipped_fp16

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, without its refusal of fused optimizers under bf16 (nothing is scaled there)."""
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate from the progress, not from steps: another batch size keeps the schedule."""
        done = self.trainer.datamodule.progress(self.trainer.max_epochs)  # type: ignore[attr-defined]
        rate = self.hparams["learning_rate"] * schedule(done, self.hparams["warmup"])
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        if self.trainer._logger_connector.should_update_logs:
            self.log("train/learning_rate", rate)

    def on_fit_start(self) -> None:
        if self.hparams["compile"]:
            torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is, with a warning
            self.backbone.compile()  # in place: names in checkpoints stay as they are
            self.augment.compile()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["targets"] = list(self.hparams["targets"])


def schedule(progress: float, warmup: float) -> float:
    """Factor of the learning rate at `progress` in 0..1: a linear rise over `warmup`, then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / max(1e-9, 1 - warmup))))
