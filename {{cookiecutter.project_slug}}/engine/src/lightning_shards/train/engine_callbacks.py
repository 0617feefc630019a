"""The engine's own callbacks in a training, but for its checkpoints and what does for a model what that says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback

from .ema import WeightEMA
from .eval_metrics import EvalPass
from .gallery import Gallery
from .knn import NearestNeighbours
from .ledger import Ledger
from .nan_guard import NanGuard
from .progress import AnyBar, progress_bar
from .throughput import Throughput
from .trained_model import KeepSettings


def engine_callbacks(
    config: Any, given: Sequence[Callback], meter: Throughput, model_settings: dict[str, Any]
) -> list[Callback]:
    """In the order in which they are called.

    Args:
        config: all settings.
        given: the user's callbacks; a progress bar among them takes the place of ours.
        meter: of the speed.
        model_settings: what the model's constructor got, kept in checkpoints.
    """
    bar = config.trainer.enable_progress_bar is not False and not any(isinstance(one, AnyBar) for one in given)
    return [
        meter,
        *([progress_bar(meter)] if bar else []),
        NanGuard(),
        *([WeightEMA(config.ema_decay)] if config.ema_decay else []),
        EvalPass(),
        NearestNeighbours(),
        Gallery(),
        KeepSettings(model_settings),
        *([Ledger()] if config.ledger else []),
    ]
