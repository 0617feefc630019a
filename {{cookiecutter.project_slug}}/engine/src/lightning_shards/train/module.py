"""What a model may offer beyond a LightningModule's own methods, and what the engine does with it.

`ShardModule` is recommended, not required: any LightningModule trains. The engine acts by callbacks, so that a model
loses nothing of it by a hook of Lightning's that it has itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class ShardModule(L.LightningModule):
    """A LightningModule with the engine's hooks, each of which may stay as it is.

    Attributes:
        monitor, mode: the metric that picks the best weights, by the name that it is logged by, and whether `min` or
            `max` of it is best.
        inputs: the fields that `scores` takes, in this order.
        measures: an EvalMetrics, if there is one: validation and test log and reset it at their end.
        calibration: a Calibration, if there is one: each validation of a training fits its temperature.
        note: what a person should know when a training begins; empty: nothing.
    """

    monitor: str = "val/loss"
    mode: str = "min"
    inputs: tuple[str, ...] = ("image",)
    note: str = ""
    _held: tuple[nn.Module, ...] = ()

    def learning_rate(self, progress: float) -> float | None:
        """The learning rate at `progress`, 0..1; None: the optimizer's own schedulers have it.

        It is set before each step. A parameter group with an `lr_scale` gets that multiple of it.
        """
        return None

    def frozen(self, progress: float) -> Iterable[nn.Parameter]:
        """What is not trained at `progress`, 0..1; modules that have no other parameters are as in evaluation, so that
        batch norms keep their statistics. It is asked before each step, so it should be quick."""
        return ()

    def hold(self, modules: Iterable[nn.Module]) -> None:
        """Keep `modules`, and no others from now on, as in evaluation while the rest is trained."""
        before, self._held = self._held, tuple(modules)
        for module in before:
            module.train(self.training)
        for module in self._held:
            module.eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._held:
            module.eval()
        return self

    def compiled(self) -> Iterable[nn.Module]:
        """The modules that torch.compile takes, in place."""
        return ()

    def features(self, image: Tensor) -> Tensor:
        """What `embed` keeps of images (B, 3, S, S) in 0..255: float (B, F)."""
        raise NotImplementedError

    def scores(self, *inputs: Tensor) -> Tensor:
        """What predictions and exported programs say of a batch of `inputs`: probabilities or numbers, float (B, T)."""
        raise NotImplementedError

    @property
    def progress(self) -> float:
        """Share of the training that is done, by samples, 0..1: the same on any hardware."""
        return float(self.trainer.datamodule.progress(self.trainer.max_epochs))  # type: ignore[attr-defined]

    @property
    def can_fuse(self) -> bool:
        """Whether a fused optimizer works here; not with float16 and clipping, which unscale gradients before the
        step."""
        clipped_fp16 = self.trainer.precision == "16-mixed" and bool(self.trainer.gradient_clip_val)
        return self.device.type in ("cpu", "cuda") and not clipped_fp16

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


class LearningRate(L.Callback):
    """Sets the rate that `ShardModule.learning_rate` gives for the progress: another batch size keeps the schedule."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not isinstance(pl_module, ShardModule):
            return
        rate = pl_module.learning_rate(pl_module.progress)
        if rate is None:
            return
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
        if trainer._logger_connector.should_update_logs:
            pl_module.log("train/learning_rate", rate, batch_size=len(batch))


class Compile(L.Callback):
    """Compiles what the model names, in place: names in checkpoints stay as they are."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ShardModule)
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is, with a warning
        sides = getattr(trainer.datamodule, "sides", None)  # type: ignore[attr-defined]
        for module in pl_module.compiled():
            module.compile(dynamic=False if sides else None)  # each size of a schedule gets a program of its own
