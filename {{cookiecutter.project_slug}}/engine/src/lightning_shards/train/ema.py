"""What is averaged: the weights over the steps, to evaluate with, and running statistics over the ranks."""

from __future__ import annotations

from itertools import chain
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch.nn.modules.batchnorm import _BatchNorm

from ..vision.calibration import Calibration


class WeightEMA(WeightAveraging):
    """Exponential moving average of weights and buffers: validation, test and `best.ckpt` use it, training does not
    (Polyak & Juditsky, 1992; Tarvainen & Valpola, 2017, Mean teachers).

    After optimizer step n, average = d x average + (1 - d) x weights with d = min(decay, (1 + n) / (10 + n)), so that
    an early average is not of the first, random weights (as in TensorFlow's ExponentialMovingAverage). Checkpoints
    have both: the average as `state_dict`, the weights as `current_model_state`.

    Args:
        decay: 0.999 looks back over about a thousand steps.
    """

    state_key = "lightning_shards/ema"

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device  # the model is moved there only later
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._average_model is not None
        average, now = (list(chain(m.parameters(), m.buffers())) for m in (self._average_model.module, pl_module))
        self._average, self._now = ([t for t in side if t.is_floating_point()] for side in (average, now))
        self._counts = [pair for pair in zip(average, now, strict=True) if not pair[0].is_floating_point()]

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Unlike Lightning's, without a loop over the weights or a value read from the device."""
        if trainer.fit_loop._should_accumulate():
            return
        steps = trainer.global_step
        torch._foreach_lerp_(self._average, self._now, 1 - min(self.decay, (1 + steps) / (10 + steps)))
        for average, now in self._counts:
            average.copy_(now)


def swap_back(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """In a validation that is left early: give the model the weights that it is trained with."""
    for callback in _averages(trainer):
        callback._swap_models(pl_module)


def leave(trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Where weights are no longer averaged: go on with those that were trained, not with the average.

    Raises ValueError where a checkpoint has but one half of an average, which Lightning would pass over.
    """
    if ("current_model_state" in checkpoint) != ("averaging_state" in checkpoint):
        raise ValueError("the average of the weights is not whole")
    if "current_model_state" in checkpoint and not _averages(trainer):
        pl_module.load_state_dict(checkpoint["current_model_state"])


@torch.no_grad()
def share_statistics(trainer: L.Trainer) -> None:
    """Give the batch norms of all ranks the mean of their running statistics.

    Each rank updates its own from its own rows. As that is linear, the mean is the same whenever it is taken, so it is
    taken only where statistics matter: before a validation and in a checkpoint.
    """
    if trainer.world_size == 1:
        return
    average = [a._average_model.module for a in _averages(trainer) if a._average_model is not None]
    held = {id(one) for module in getattr(trainer.lightning_module, "_held", ()) for one in module.modules()}
    models = [list(model.modules()) for model in (trainer.lightning_module, *average)]
    # those of frozen layers are the same on all ranks, and stay what they are to the last bit
    own = [n for n, module in enumerate(models[0]) if isinstance(module, _BatchNorm) and id(module) not in held]
    norms: list[Any] = [model[n] for model in models for n in own]
    statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
    if not statistics:
        return
    mean = trainer.strategy.reduce(torch.cat(statistics), reduce_op="mean")
    torch._foreach_copy_(statistics, list(mean.split([len(s) for s in statistics])))


def keep_fitted(trainer: L.Trainer, calibration: Calibration) -> None:
    """Give an average of the weights the model's temperature and thresholds, which are fitted and not averaged."""
    for average in (a._average_model for a in _averages(trainer) if a._average_model is not None):
        average.module.calibration.load_state_dict(calibration.state_dict())  # type: ignore[union-attr, operator]


def _averages(trainer: L.Trainer) -> list[WeightAveraging]:
    """Ours, and one of Lightning's that a user gave."""
    return [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
