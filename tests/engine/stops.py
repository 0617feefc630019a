"""Callbacks of a user's that end a training, or an epoch, in the middle; by name in a config."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L


class _At(L.Callback):
    """Acts once the trainer has made `step` optimizer steps, counted over all attempts."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            self.act(trainer)

    def act(self, trainer: L.Trainer) -> None:
        raise NotImplementedError


class ShouldStop(_At):
    def act(self, trainer: L.Trainer) -> None:
        trainer.should_stop = True


class Fails(_At):
    def act(self, trainer: L.Trainer) -> None:
        raise OSError("a cable was pulled")


class Interrupts(_At):
    def act(self, trainer: L.Trainer) -> None:
        raise KeyboardInterrupt


class Leaves(_At):
    def act(self, trainer: L.Trainer) -> None:
        sys.exit(0)
