"""Where metrics go: `metrics.csv` always, Weights & Biases offline or online, TensorBoard when asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from lightning.pytorch.utilities import rank_zero_only

from ..errors import InputError
from ..terminal import say
from . import wandb_logger
from .metrics_file import MetricsFile
from .wandb_logger import Wandb


@dataclass
class LogSettings:
    """What a run writes beside metrics.csv, and to which loggers beside those of trainer.logger.

    Args:
        wandb: log to Weights & Biases: online where a key is found (`wandb login`, WANDB_API_KEY), else into the run's
            folder, from where `wandb sync` sends it later.
        tensorboard: write TensorBoard files into the run's folder too.
        report: write report.html when the run ends. Without it, a run ends a second or two earlier, which counts in
            a sweep of short ones; the command `report` makes it of any run later.
        project: W&B project; null: the name of the current folder.
        entity: W&B team or user; null: the account's default.
    """

    wandb: bool = True
    tensorboard: bool = False
    report: bool = True
    project: str | None = None
    entity: str | None = None


class TensorBoard(TensorBoardLogger):
    """The training goes on where its files cannot be written."""

    _gone = False

    def _try_to(self, act: Callable[[], object]) -> None:
        try:
            if not self._gone:
                act()
        except OSError as error:
            self._gone = True
            say(f"TensorBoard's files could not be written ({error.strerror}): it gets no more", sys.stderr)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._try_to(lambda: super(TensorBoard, self).log_metrics(metrics, step))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._try_to(lambda: super(TensorBoard, self).log_hyperparams(params, *args, **kwargs))

    @rank_zero_only
    def save(self) -> None:
        self._try_to(super().save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._try_to(lambda: super(TensorBoard, self).finalize(status))


def build(settings: LogSettings, folder: Path, own: Any = None, more: Sequence[Logger] = ()) -> list[Logger]:
    """The loggers of the run in `folder`. Nothing is written before the first metric.

    Args:
        own: of the setting trainer.logger: loggers, true for TensorBoard, Lightning's own, or false for metrics.csv
            alone.
        more: those that the code adds.

    Raises InputError for a logger that is asked for where there are to be none.
    """
    added = [*(own if isinstance(own, (list, tuple)) else [own] if isinstance(own, Logger) else []), *more]
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv")]
    if own is False:
        if settings.tensorboard:
            raise InputError("trainer.logger false leaves metrics.csv alone, and log.tensorboard wants more: give one")
        return loggers
    taken = any(isinstance(logger, WandbLogger) for logger in added)  # a process has one W&B run
    if settings.wandb and os.environ.get("WANDB_MODE") != "disabled" and not taken:  # the import takes a second
        loggers += filter(None, [wandb_logger.make(folder, settings.project, settings.entity)])
    if settings.tensorboard or own is True:
        loggers.append(TensorBoard(folder, name="tensorboard", version=""))
    return loggers + added


def begin_late(trainer: Trainer) -> None:
    """Keep Lightning from beginning the loggers before it has read the checkpoint, which may be refused; `begin` does.

    It looks for them once before the barrier `pre_setup`, for nothing else.
    """
    given, barrier = trainer.loggers, trainer.strategy.barrier

    def put_back(name: str | None = None) -> None:
        if name == "pre_setup":
            trainer.loggers = given
        barrier(name)

    trainer.loggers = []
    trainer.strategy.barrier = put_back  # type: ignore[method-assign]


def begin(trainer: Trainer, settings: dict[str, Any]) -> None:
    """As Lightning begins them; W&B gets the settings of the run."""
    for logger in trainer.loggers:
        if isinstance(logger, Wandb):
            logger.begin(settings)
        elif hasattr(logger, "experiment"):
            _ = logger.experiment


def keep_profile(trainer: Trainer, folder: Path) -> None:
    """Let a profiler that would only log its table write it into the run's folder: `profile/fit-profile-0.txt`."""
    profiler = trainer.profiler  # type: ignore[attr-defined]
    if isinstance(profiler, Profiler) and not isinstance(profiler, PassThroughProfiler):
        profiler.filename = profiler.filename or "profile"
        profiler.dirpath = profiler.dirpath or folder / "profile"
