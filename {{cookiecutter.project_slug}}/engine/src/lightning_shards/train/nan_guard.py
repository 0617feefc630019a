"""Ends a training whose loss is no longer finite, before such weights reach a checkpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ..errors import RunError

_ADVICE = "Try a lower model.learning_rate or trainer.gradient_clip_val 1.0"


class NanGuard(L.Callback):
    """Ends the run when a loss is not finite, with the ids of the samples, before such weights reach a checkpoint.

    The check costs a copy from the device, so it is made every `every` steps and before each checkpoint.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self._recent: deque[tuple[Tensor, Tensor]] = deque()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (loss := loss_of(outputs)) is not None:
            self._recent.append((loss, batch.ids))
        if len(self._recent) >= self.every:
            self.check()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.check()
        if not all(bool(p.isfinite().all()) for p in pl_module.parameters()):
            raise RunError(
                "the weights are no longer finite after this step; the last checkpoint was written before it. "
                + _ADVICE
            )

    def check(self) -> None:
        recent = list(self._recent)
        self._recent.clear()
        if recent and not bool(torch.stack([loss for loss, _ in recent]).isfinite().all()):
            ids = next(ids for loss, ids in recent if not bool(loss.isfinite())).tolist()
            shown = ", ".join(map(str, ids[:8])) + (f", ... ({len(ids)} in all)" if len(ids) > 8 else "")
            raise RunError(
                f"the loss is no longer finite; first in the batch with sample ids {shown}. The last checkpoint was"
                f" written before it. {_ADVICE}, and look at these samples"
            )


def loss_of(outputs: Any) -> Tensor | None:
    """What a training step returned; None where a model that steps its optimizers itself returned nothing."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss.detach() if isinstance(loss, Tensor) else None
