"""Optimizers of other libraries, which a project need not have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

from ..errors import InputError


def lamb(groups: Iterable[dict[str, Any]], learning_rate: float) -> Optimizer:
    """LAMB (You et al., 2020) by timm: Adam's step, scaled for each weight tensor by the tensor's own size.

    It is made for large batches, and bounds the norm of all gradients to 1 itself. Its moments and its count of steps
    are in the checkpoint, so a resume goes on exactly.

    Raises InputError where timm is not installed.
    """
    made: Optimizer = _lamb()(groups, lr=learning_rate)
    return made


def check(name: str | None) -> None:
    """Raise InputError where the optimizer of this name, a model's setting, is in a library that is not installed."""
    if name == "lamb":
        _lamb()


def _lamb() -> Any:
    try:
        from timm.optim import Lamb
    except ImportError:
        raise InputError("model.optimizer lamb is in timm, which is not installed: uv sync --extra timm") from None
    return Lamb
