"""Weights & Biases, without which a training can do: no network, no key, no room and no helping process end it."""

from __future__ import annotations

import os
import re
import secrets
import sys
import textwrap
import threading
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from ..errors import InputError
from ..files import write_durably
from ..terminal import printable, say

if TYPE_CHECKING:  # a second of imports, for the runs that log to it
    import wandb

INIT_SECONDS, FINISH_SECONDS = 10, 30  # that a server is waited for, at the begin and at the end
TOLD_AFTER = 5.0  # seconds of waiting at the end
_MODES = ("online", "offline", "shared", "disabled")
_OLD_NAMES = {"run": "online", "dryrun": "offline"}


class Wandb(WandbLogger):
    """One W&B run a run folder, however often it is resumed: its id is kept in `wandb-id.txt`.

    `mode` is online (or W&B's `shared`) where a key is known and the server answers, else offline.
    """

    _gone = False

    def __init__(
        self, folder: Path, project: str | None, entity: str | None, mode: str, why_offline: str | None
    ) -> None:
        self._folder = folder
        super().__init__(
            name=folder.name,
            id=_known_id(folder) or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4),  # a sweep's agent gives one
            save_dir=folder,
            project=project or Path.cwd().name,
            entity=entity,
            mode=mode if why_offline is None else "offline",
            resume="allow" if why_offline is None else None,
            log_model=False,
        )
        if why_offline:
            self._tell_offline(why_offline)

    @property
    def mode(self) -> str:
        return str(self._wandb_init["mode"])

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which whoever asks for it first begins."""
        if self._experiment is None and self.mode != "offline":
            try:
                return super().experiment
            except Exception as defect:  # no way out, a server in trouble, a key that it does not know
                _give_up()
                self._wandb_init |= {"mode": "offline", "resume": None}
                self._tell_offline(_one_line(defect))
        return super().experiment

    @rank_zero_only
    def begin(self, config: dict[str, Any]) -> None:
        """Begin the W&B run, write its id down, and send the whole configuration there."""
        self.try_to(lambda: self.experiment.config.update(config, allow_val_change=True))
        if not self._gone and _known_id(self._folder) is None:
            self.try_to(lambda: write_durably(self._folder / "wandb-id.txt", f"{self.version}\n".encode()))

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
            say(f"W&B gets no more of this attempt: {_one_line(defect)}", sys.stderr)

    @rank_zero_only
    def _tell_offline(self, why: str) -> None:
        say(f"W&B is offline ({why}): `wandb sync {self._folder}/wandb/offline-*` sends it later", sys.stderr)


def make(folder: Path, project: str | None, entity: str | None) -> Wandb | None:
    """The logger of the run in `folder`; None where W&B is disabled. Asks nobody yet, and contacts no server.

    Raises InputError for a WANDB_MODE that there is not.
    """
    for name, value in {
        "SILENT": "true",
        "CONSOLE": "off",  # the terminal's output stays in the terminal
        "ERROR_REPORTING": "false",  # without a network they hold up the end by 20 s
        "INIT_TIMEOUT": str(INIT_SECONDS),
        "FINISH_TIMEOUT": str(FINISH_SECONDS),
        "FINISH_TIMEOUT_RAISES": "true",
    }.items():
        os.environ.setdefault(f"WANDB_{name}", value)
    mode = _mode()
    return None if mode == "disabled" else Wandb(folder, project, entity, mode, _why_offline(mode))


def _mode() -> str:
    """What WANDB_MODE says, else the file that `wandb offline` and `wandb disabled` write, else online."""
    if (given := os.environ.get("WANDB_MODE")) is not None:
        mode = _OLD_NAMES.get(given, given)
        if mode and mode not in _MODES:
            raise InputError(f"WANDB_MODE is {given!r}, it must be one of {', '.join(_MODES)}, or not be set")
        del os.environ["WANDB_MODE"]
        if mode:
            os.environ["WANDB_MODE"] = mode
            return mode
    import wandb

    try:
        found = str(wandb.setup().settings.mode)
    except Exception:  # whatever it has against its files
        return "online"
    return _OLD_NAMES.get(found, found)


def _why_offline(mode: str) -> str | None:
    """Why no server is to be asked: a sentence, empty where nobody wants one; None where W&B credentials are there."""
    import wandb

    if mode == "offline":
        return ""
    without_key = f"WANDB_MODE is {mode}, and no key is known" if "WANDB_MODE" in os.environ else ""
    try:
        return None if wandb.login(prompt=False, verify=False) else without_key
    except Exception as defect:  # a key that is none, a file of keys that cannot be read
        return f"the key cannot be used: {_one_line(defect)}"


def _known_id(folder: Path) -> str | None:
    """Of an earlier attempt; None for none, and for what is no id."""
    try:
        text = (folder / "wandb-id.txt").read_text(errors="replace").strip()
    except OSError:
        return None
    return text if re.fullmatch(r"[\w.-]{1,64}", text, re.ASCII) else None


def finish(summary: dict[str, Any] | None, report: Path | None, failed: bool) -> None:
    """End the W&B run, if there is one, with the run's figures as its summary, and its report where it is online."""
    run = sys.modules["wandb"].run if "wandb" in sys.modules else None
    if run is None:
        return
    acts: list[tuple[str, Callable[[], object]]] = [("be ended", lambda: run.finish(exit_code=int(failed)))]
    if report and not run.offline:
        acts.insert(0, ("get the report", lambda: keep_report(run, report)))
    if summary:
        acts.insert(0, ("get the summary", lambda: run.summary.update(_figures(summary))))
    folder, lacks = Path(run.dir).parent, ""
    waits = (
        f"waiting for W&B's server: {os.environ.get('WANDB_FINISH_TIMEOUT')} s (WANDB_FINISH_TIMEOUT) and little more"
    )
    patience = threading.Timer(TOLD_AFTER, say, (waits, sys.stderr))
    patience.daemon = True
    patience.start()
    for what, act in acts:
        try:
            act()
        except TimeoutError:  # of which the other troubles came
            lacks = f"W&B has not taken everything yet: `wandb sync {folder}` sends the rest"
        except Exception as defect:  # its helping process was ended by a signal; the run itself is saved
            lacks = lacks or f"the W&B run could not {what}: {_one_line(defect)}"
    patience.cancel()
    if lacks:
        say(lacks, sys.stderr)


def _one_line(defect: Exception) -> str:
    return textwrap.shorten(printable(f"{type(defect).__name__}: {' '.join(str(defect).split())}"), 200)


def _give_up() -> None:
    """End the helping process, which may hold a run that never began."""
    with suppress(Exception):
        sys.modules["wandb"].teardown()


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
