"""The folder that one training leaves behind: `runs/<run>/`, its name, and `summary.json`."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from ..cost.usage import Usage, duration
from ..entry import rank
from ..errors import InputError
from ..files import write_durably
from ..machine import lock
from ..runs.checkpoints import is_whole, newest
from ..runs.files import skipped_samples
from ..runs.folder import began
from ..runs.values import flat
from ..terminal import printable, say
from ..yaml_text import parse_yaml
from . import cluster, wandb_logger
from .restart_guard import note_start
from .run_name import VARIABLE, claim
from .stop import Stopped, StopRequest

# Torchrun or Lightning's launcher started this process, or srun, as another rank than zero.
_LAUNCHED = "LOCAL_RANK" in os.environ or rank() > 0


@dataclass
class Run:
    """The run's folder while it is in use; as a context it ends with `summary.json`, whatever happens.

    Args:
        folder: `runs/<run>`.
        config: what was asked for, as YAML that repeats the run.
        resumed: an earlier attempt's folder is there already.
        describe: what the summary says.
        stop: notes signals, as long as the run is in use.
        outcome: status of a training that ends without an error.
        with_report: write report.html at its end.
    """

    folder: Path
    config: str
    resumed: bool
    describe: Callable[[], dict[str, Any]]
    stop: StopRequest = field(default_factory=StopRequest)
    outcome: str = "done"
    with_report: bool = True
    _summary: bytes | None = None  # of the attempt before
    _written: dict[str, Any] = field(default_factory=dict)  # in the summary of this one
    _held: ExitStack = field(default_factory=ExitStack)  # keeps others from the folder

    @cached_property
    def last_checkpoint(self) -> Path | None:
        """Where a resumed run goes on; None: from the begin."""
        return newest(self.folder / "checkpoints") if self.resumed else None

    @property
    def best_checkpoint(self) -> Path | None:
        """The best weights, or the last ones where there is no validation; None: there are none yet."""
        best = self.folder / "checkpoints" / "best.ckpt"
        return best if is_whole(best) else newest(best.parent)

    @property
    def skipped(self) -> int:
        """Times that a sample was skipped, on all ranks and in all attempts."""
        return sum(row["times"] for row in skipped_samples(self.folder))

    def __enter__(self) -> Run:
        self.stop.__enter__()
        try:
            self._create()
        except BaseException:
            self._held.close()
            self.stop.__exit__(None, None, None)
            raise
        os.environ[VARIABLE] = self.folder.name
        return self

    @rank_zero_only
    def _create(self) -> None:
        if not (self.folder / "config.yaml").exists():
            claim(self.folder, self.config)
        elif not os.access(self.folder, os.W_OK):
            raise InputError(f"the run's folder {self.folder} cannot be written")
        self._hold()
        for litter in (
            f for name in ("*.tmp", "evaluation/*.tmp", "checkpoints/*.tmp") for f in self.folder.glob(name)
        ):
            litter.unlink(missing_ok=True)  # of an attempt that was killed while it wrote
        with suppress(OSError):  # there is none, or none that can be read
            self._summary = (self.folder / "summary.json").read_bytes()
            self._mark(status="unfinished")  # what holds if this attempt is killed

    def _hold(self) -> None:
        """Raise InputError where another process trains this run: the two would write over each other's files."""
        with suppress(OSError):  # the file is read only
            config = self._held.enter_context((self.folder / "config.yaml").open("rb+"))
            if lock(config.fileno(), wait=False) is False and not cluster.goes_on():  # a scheduler ends one before
                raise InputError(
                    f"the run {self.folder} is being trained by another process: wait until it has ended, or stop it"
                )

    def _mark(self, **changes: str) -> None:
        """Change what an earlier attempt has left in `summary.json`."""
        try:
            before = dict(json.loads(self._summary or b"{}"))
        except (ValueError, TypeError, RecursionError):
            before = {}
        before.pop("error", None)
        self._put(before | changes)

    def _put(self, content: dict[str, Any]) -> None:
        """Write `summary.json`; where that fails, what it would have told is lost, and nothing else."""
        path = self.folder / "summary.json"
        try:
            write_durably(path, (json.dumps(content, indent=1) + "\n").encode())
        except OSError as error:
            say(f"{path} could not be written ({error.strerror}): it is as it was before", sys.stderr)

    @property
    def how_to_go_on(self) -> str:
        """The command that does, where something was saved."""
        saved = newest(self.folder / "checkpoints")
        command = f"uv run train.py --resume {self.folder.name}"
        return f"Go on from the last checkpoint with: {command}" if saved else "There is no checkpoint yet"

    def fail(self, sentence: str) -> None:
        """Say why the run ends, where its own thread cannot."""
        say(printable(f"error: {sentence}. {self.how_to_go_on}"), sys.stderr)
        self._mark(status="failed", error=sentence)

    @rank_zero_only
    def note_start(self, checkpoint: Path | None) -> None:
        """The training goes on from `checkpoint`. Raises RunError where a scheduler starts it in vain."""
        note_start(self.folder, checkpoint)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.environ.pop(VARIABLE, None)
        try:
            self._finish(error)
        finally:
            self._held.close()
            self.stop.__exit__(kind, error, traceback)
        if isinstance(error, SystemExit) and not isinstance(error, Stopped) and not error.code:
            raise SystemExit(1)  # somebody's callback left the process in the middle: that is no success
        if isinstance(error, Stopped) and error.status == "stopped" and _LAUNCHED:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # srun and torchrun end those that are slower than rank zero
            raise SystemExit(0)  # so that no launcher restarts or kills the others; summary.json tells

    def _finish(self, error: BaseException | None) -> None:
        status = self.outcome if error is None else error.status if isinstance(error, Stopped) else "failed"
        if isinstance(error, InputError):
            wandb_logger.finish(None, None, failed=True)
            if self._summary is not None:
                with suppress(OSError):
                    write_durably(self.folder / "summary.json", self._summary)
            self._held.close()  # a file server keeps what is open
            self._remove_if_empty()
            return
        self._write(status, f"{type(error).__name__}: {error}" if status == "failed" else None)

    @rank_zero_only
    def _write(self, status: str, error: str | None) -> None:
        """`summary.json` and, if it is wanted, `report.html`; then W&B, which may have to wait for a network."""
        config = self.folder / "config.yaml"
        content: dict[str, Any] = {"status": status, "began": None, **self.describe()}
        content |= {"error": error} if error else {}
        try:
            if not config.exists():
                say(f"{self.folder} was moved or removed: what came since is in a new folder of that name", sys.stderr)
                self.folder.mkdir(parents=True, exist_ok=True)
                write_durably(config, self.config.encode())
            when = began(self.folder)
            content["began"] = when.isoformat(timespec="seconds") if when else None
            if changed := self.changed():
                content["changed_on_resume"] = changed
        except (OSError, ValueError) as trouble:  # the rest is told all the same
            why = getattr(trouble, "strerror", None) or str(trouble)
            say(f"{config} cannot be used ({why}): the summary does not say what was changed on a resume", sys.stderr)
        self._written = content
        self._put(content)
        wandb_logger.finish(content, self._report_page(), failed=status == "failed")
        again = f"Go on with: uv run train.py --resume {self.folder.name}"
        if status == "stopped":
            say(f"\nStopped; everything is saved. {again}")
        if status == "budget":
            say(f"\nStopped at {self.stop.budget}; everything is saved. {_with_more(again, self.stop.budget)}")

    def _report_page(self) -> Path | None:
        """Write `report.html`, or remove an earlier attempt's, which would tell of another end."""
        if not self.with_report:
            with suppress(OSError):
                (self.folder / "report.html").unlink()
            return None
        try:
            from ..reporting import report  # and matplotlib with it, for which no start should wait

            return report.write(self.folder)
        except Exception as defect:  # the training is what counts, and its figures are saved
            why = f"{type(defect).__name__}: {defect}"
            say(printable(f"{self.folder}/report.html could not be made: {why}"), sys.stderr)
            return None

    def changed(self) -> dict[str, Any]:
        """Settings with which this attempt went on that differ from those in `config.yaml`.

        Raises OSError or ValueError where that cannot be read.
        """
        first = parse_yaml((self.folder / "config.yaml").read_bytes())
        if not isinstance(first, dict):
            raise ValueError("it has no settings")
        first, now = dict(flat(first)), dict(flat(parse_yaml(self.config)))
        return {name: value for name, value in now.items() if name in first and first[name] != value}

    def report(self) -> str:
        """What a person wants to know at the end, as `summary.json` has it; empty on ranks other than zero."""
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            return ""
        to_make = f"uv run python -m lightning_shards report {shlex.quote(self.folder.name)}"
        summary = self._written
        metrics = {name: value for name, value in summary["metrics"].items() if name.startswith(("test/", "val/"))}
        chosen = {k: v for k, v in metrics.items() if k.startswith("test/")} or metrics
        rows = [(name, f"{value:.4g}") for name, value in chosen.items() if not name.endswith("/skipped")]
        rate, wait = summary["images_per_second"], summary["data_wait_fraction"]
        rows += [
            ("images trained on", f"{summary['images_seen']:,}"),
            ("took", _took(summary)),
        ]
        if rate:
            rows.append(("images per second", f"{rate:,.0f} (waiting for data {wait or 0:.0%})"))
        rows += [
            ("skipped samples", str(summary["skipped"])),
            ("hardware", summary["hardware"]),
            ("files", f"{self.folder}/"),
            ("report", f"{self.folder}/report.html" if self.with_report else to_make),
        ]
        width = max(20, *(len(name) for name, _ in rows))
        return "\n" + "\n".join(f"  {name:<{width}} {value}" for name, value in rows)

    @rank_zero_only
    def _remove_if_empty(self) -> None:
        """Bad input that shows only now leaves nothing behind."""
        if not self.resumed and not (self.folder / "checkpoints").exists():
            shutil.rmtree(self.folder, ignore_errors=True)


def _with_more(again: str, budget: str) -> str:
    """The command that goes on with twice the budget, such as `max_hours 2`."""
    limit, value = budget.split()[-2:]
    if limit == "Timer":
        return f"{again}, once that callback of the run's config.yaml or of train.py has a longer duration"
    if limit != "trainer.max_time":
        return f"{again} --{limit} {2 * float(value):g}"
    seconds = max(1, math.ceil(2 * float(value)))  # Lightning takes whole ones
    return f"{again} --{limit} '{json.dumps({'seconds': seconds})}'"


def _took(summary: dict[str, Any]) -> str:
    """Time, energy and money of a run, and how far off what was expected was."""
    took, expected = (
        Usage(part["seconds"], part["kwh"], part["cost"], summary["currency"])
        for part in (summary, summary["expected"] or summary)
    )
    if not summary["expected"]:
        return str(took)
    return f"{took} (expected {duration(expected.seconds)}: {took.seconds / expected.seconds - 1:+.0%})"
