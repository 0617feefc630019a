"""Where metrics go: `metrics.csv` always, Weights & Biases offline or online, TensorBoard when asked for."""

from __future__ import annotations

import csv
import os
import secrets
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from lightning.pytorch.utilities import rank_zero_only

from ..errors import InputError
from ..files import write_durably

if TYPE_CHECKING:  # a second of imports, for the runs that log to it
    import wandb


@dataclass
class LogSettings:
    """Which loggers a run has, beside metrics.csv and those of trainer.logger.

    Args:
        wandb: log to Weights & Biases: online where a key is found (`wandb login`, WANDB_API_KEY), else into the run's
            folder, from where `wandb sync` sends it later.
        tensorboard: write TensorBoard files into the run's folder too.
        project: W&B project; null: the name of the current folder.
        entity: W&B team or user; null: the account's default.
    """

    wandb: bool = True
    tensorboard: bool = False
    project: str | None = None
    entity: str | None = None


class MetricsFile(Logger):
    """`metrics.csv`: one row a step, one column a metric. A resumed run appends to it; a new metric adds a column."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []  # not yet written

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings are in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step if step is not None else 0, **metrics}
        if self._rows and self._rows[-1]["step"] == row["step"]:
            self._rows[-1] |= row
        else:
            self._rows.append(row)

    @rank_zero_only
    def save(self) -> None:
        """Append what is new; rewrite the file where there are new columns."""
        if not self._rows:
            return
        if not self._columns and self.path.exists():
            with self.path.open(newline="") as file:
                self._columns = next(csv.reader(file), [])
        new = [name for row in self._rows for name in row if name not in self._columns]
        if new:
            before = []
            if self._columns:
                with self.path.open(newline="") as file:
                    before = list(csv.DictReader(file))
            self._columns += list(dict.fromkeys(new))
            lines = [",".join(self._columns), *(_line(row, self._columns) for row in before)]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self.path, ("\n".join(lines) + "\n").encode())
        with self.path.open("a") as file:
            file.write("".join(_line(row, self._columns) + "\n" for row in self._rows))
        self._rows = []

    def finalize(self, status: str) -> None:
        self.save()


class Wandb(WandbLogger):
    """Weights & Biases. Where its helping process has gone, as by a signal to all processes of a job, the training goes
    on without it: that W&B hears no more is no reason to lose an image."""

    _gone = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.try_to(lambda: super(Wandb, self).log_metrics(metrics, step))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        self.try_to(lambda: super(Wandb, self).log_hyperparams(params))

    def try_to(self, act: Callable[[], object]) -> None:
        """Do it, or say once why W&B gets no more."""
        if self._gone:
            return
        try:
            act()
        except Exception as defect:
            self._gone = True
            print(f"W&B gets no more of this attempt: {type(defect).__name__}: {defect}", file=sys.stderr)


def _line(row: dict[str, Any], columns: list[str]) -> str:
    return ",".join(str(row.get(name, "")) for name in columns)


def build(settings: LogSettings, folder: Path, own: Any = None, more: Sequence[Logger] = ()) -> list[Logger]:
    """The loggers of the run in `folder`. Nothing is written before the first metric.

    Args:
        own: of the setting trainer.logger: loggers, or true for TensorBoard, Lightning's own.
        more: those that the code adds.
    """
    added = [*(own if isinstance(own, (list, tuple)) else [own] if isinstance(own, Logger) else []), *more]
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv")]
    taken = any(isinstance(logger, WandbLogger) for logger in added)  # a process has one W&B run
    if settings.wandb and os.environ.get("WANDB_MODE") != "disabled" and not taken:
        loggers.append(_wandb(settings, folder))
    if settings.tensorboard or own is True:
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    return loggers + added


def keep_profile(trainer: Trainer, folder: Path) -> None:
    """Let a profiler that would only log its table write it into the run's folder: `profile/fit-profile-0.txt`."""
    profiler = trainer.profiler  # type: ignore[attr-defined]
    if isinstance(profiler, Profiler) and not isinstance(profiler, PassThroughProfiler):
        profiler.filename = profiler.filename or "profile"
        profiler.dirpath = profiler.dirpath or folder / "profile"


def _wandb(settings: LogSettings, folder: Path) -> Wandb:
    """One W&B run a run folder, however often it is resumed: its id is kept in `wandb-id.txt`."""
    identity = folder / "wandb-id.txt"
    known = identity.read_text().strip() if identity.exists() else None
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")  # the terminal's output stays in the terminal
    offline = os.environ.get("WANDB_MODE") == "offline" or not _has_key()
    return Wandb(
        name=folder.name,
        id=known or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4),  # a sweep's agent gives one
        save_dir=folder,
        project=settings.project or Path.cwd().name,
        entity=settings.entity,
        mode="offline" if offline else "online",
        resume=None if offline else "allow",
        log_model=False,
    )


def _has_key() -> bool:
    """Whether W&B credentials are configured; asks nobody and contacts no server."""
    import wandb

    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.errors.Error as error:
        raise InputError(
            f"the W&B key cannot be used ({error}); mend it with `wandb login`, or give --log.wandb false"
        ) from None


@rank_zero_only
def keep_identity(loggers: list[Logger], folder: Path, config: dict[str, Any]) -> None:
    """Write down the W&B run's id, and send the whole configuration there."""
    for logger in loggers:
        if isinstance(logger, Wandb):
            if not (folder / "wandb-id.txt").exists():
                write_durably(folder / "wandb-id.txt", f"{logger.version}\n".encode())
            logger.experiment.config.update(config, allow_val_change=True)


def finish(summary: dict[str, Any] | None, report: Path | None, failed: bool) -> None:
    """End the W&B run, if there is one, with the run's figures as its summary, and its report where it is online."""
    run = sys.modules["wandb"].run if "wandb" in sys.modules else None
    if run is None:
        return
    try:
        if summary:
            run.summary.update(_figures(summary))
        if report and not run.offline:
            keep_report(run, report)
        run.finish(exit_code=int(failed))
    except Exception as defect:  # its helping process was ended by a signal to all processes; the run itself is saved
        print(f"the W&B run could not be ended: {type(defect).__name__}: {defect}", file=sys.stderr)


def keep_report(run: wandb.Run, report: Path) -> None:
    """Send the report as an artifact of the run; each attempt's is a version of it."""
    import wandb

    artifact = wandb.Artifact(f"report-{run.id}", type="report")
    artifact.add_file(str(report))
    run.log_artifact(artifact)


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    """The figures of `summary.json` by the names that metrics have; what was not measured is left out."""
    named = {
        "train/images_seen": summary.get("images_seen"),
        "train/epochs": summary.get("epochs"),
        "train/skipped": summary.get("skipped"),
        "speed/images_per_second": summary.get("images_per_second"),
        "speed/data_wait_fraction": summary.get("data_wait_fraction"),
        "speed/seconds": summary.get("seconds"),
        "cost/kwh": summary.get("kwh"),
        "cost/money": summary.get("cost"),
        **summary.get("metrics", {}),
        "status": summary.get("status"),
    }
    return {name: value for name, value in named.items() if value is not None}
