"""What the model says of single images: a panel of validation images with predictions, and the confusion matrix."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from .model import ImageModel

LARGEST_MATRIX = 200  # classes; above, a confusion matrix is a carpet


class Pictures(L.Callback):
    """Collects during validation, and shows the last one's pictures in W&B when the training ends.

    Args:
        count: images in the panel.
    """

    def __init__(self, count: int = 32) -> None:
        self.count = count
        self._shown: list[tuple[Tensor, Tensor, Tensor]] = []  # image (3, S, S), target, scores (T,)
        self._matrix: MulticlassConfusionMatrix | None = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageModel)
        self._shown = []
        classes = len(pl_module.hparams["targets"])
        if pl_module.hparams["task"] == "single_label" and 2 <= classes <= LARGEST_MATRIX:
            self._matrix = MulticlassConfusionMatrix(classes).to(pl_module.device)
        pl_module.watch_outputs = self._collect

    def _collect(self, batch: Any, scores: Tensor) -> None:
        valid = batch.valid
        if self._matrix is not None:
            self._matrix.update(scores[valid], batch.targets[valid])
        for row in valid.nonzero().flatten()[: self.count - len(self._shown)].tolist():
            self._shown.append((batch.images[row].cpu(), batch.targets[row].cpu(), scores[row].cpu()))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageModel)
        pl_module.watch_outputs = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counts = self._matrix.compute().cpu() if self._matrix is not None and self._matrix.update_called else None
        logger = next((x for x in trainer.loggers if isinstance(x, WandbLogger)), None)
        if not trainer.is_global_zero or logger is None or not self._shown:
            return
        names, single = pl_module.hparams["targets"], pl_module.hparams["task"] == "single_label"
        shown: dict[str, Any] = {
            "val/predictions": [
                wandb.Image(image.permute(1, 2, 0).numpy(), caption=_caption(target, scores, names, single))
                for image, target, scores in self._shown
            ]
        }
        if counts is not None:
            shown["val/confusion_matrix"] = _matrix_plot(counts, names)
        logger.experiment.log(shown)


def _caption(target: Tensor, scores: Tensor, names: list[str], single: bool) -> str:
    """`prediction (how sure) | target`."""
    if not single:
        return f"{_text(scores, names)} | {_text(target, names)}"
    best = int(scores.argmax())
    return f"{names[best]} ({float(scores[best]):.0%}) | {names[int(target)]}"


def _text(values: Tensor, names: list[str]) -> str:
    return ", ".join(
        f"{name} {float(value):.2f}" for name, value in zip(names, values, strict=True) if abs(float(value)) >= 0.005
    )


def _matrix_plot(counts: Tensor, names: list[str]) -> Any:
    """W&B's own confusion matrix, from counts (actual, predicted)."""
    rows = [
        [names[a], names[p], int(counts[a, p])]
        for a, p in torch.cartesian_prod(*[torch.arange(len(names))] * 2).tolist()
    ]
    return wandb.plot_table(
        data_table=wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=rows),
        vega_spec_name="wandb/confusion_matrix/v1",
        fields={"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
        string_fields={"title": "Confusion matrix (validation)"},
    )
