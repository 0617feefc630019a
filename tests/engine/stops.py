"""A callback of a user's that ends a training anywhere; by name in a config."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L


class Stops(L.Callback):
    """Ends the training at the `call`-th call of a hook, in one of several ways.

    Args:
        hook: name of a method of callbacks.
        way: `asks` sets `trainer.should_stop`, `fails` raises an OSError, `interrupts` a KeyboardInterrupt, `leaves`
            calls `sys.exit(0)`.
        call: counted from 1, in this attempt.
    """

    def __init__(self, hook: str, way: str, call: int) -> None:
        self.way, self.left = way, call
        setattr(self, hook, self.act)

    def act(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left:
            return
        if self.way == "asks":
            trainer.should_stop = True
        elif self.way == "fails":
            raise OSError("a cable was pulled")
        elif self.way == "interrupts":
            raise KeyboardInterrupt
        else:
            sys.exit(0)
