"""Checkpoints and the place in the training: everything that must agree when a run goes on.

`last.ckpt` is written every few minutes, at the end of each epoch and when a signal or a budget ends the run;
`best.ckpt` is the one with the best validation metric, and the last few are kept as `step-<n>.ckpt`: names of the same
files where the file system has hard links. They are written at optimizer steps only, never while gradients accumulate,
and where a validation is due after the step, after it.
"""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, Timer

from ..errors import InputError
from ..runs.checkpoints import FORMAT, KEY, state_in
from ..runs.values import is_count
from ..terminal import say
from . import ema, loop_state, own_callbacks, resume_settings, schedules
from .checkpoint_io import add_name
from .datamodule import ShardDataModule
from .stop import RankConsensus, Stopped, StopRequest, ended


class Checkpoints(Checkpoint):
    """Advances the datamodule's place, saves, and stops when a signal asked for it.

    The place goes into every checkpoint under the key `lightning_shards`, whoever has it written.

    Lightning calls callbacks of type Checkpoint after all others, so what the others note of a step (ledger, meter) is
    noted before the place moves on; a user's own come after this one.

    Args:
        monitor, mode: name of the metric of the best weights, and whether `max` or `min` of it is best.
        every_minutes: time between checkpoints within an epoch.
        keep: how many of the last ones stay.
        patience: validations at epochs' ends without a better metric after which the training is over; None: never.
        stop: where a signal is noted.
        begin: called once it is known that the training begins, or can go on from its checkpoint.
    """

    state_key = "lightning_shards/checkpoints"  # in checkpoints, whatever this class is called

    def __init__(
        self,
        monitor: str,
        mode: str,
        every_minutes: float = 10.0,
        keep: int = 2,
        patience: int | None = None,
        stop: StopRequest | None = None,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.monitor, self.sign, self.every_seconds = monitor, 1 if mode == "max" else -1, 60 * every_minutes
        self.keep, self.patience, self.begin = keep, patience, begin
        self.stop, self.agreement, self.plateaus = stop or StopRequest(), RankConsensus(), schedules.Plateaus()
        self.best: float | None = None
        self._options: list[dict[str, Any]] | None = None  # what the model gave its optimizers at this start,
        self._schedules: list[dict[str, Any]] = []  # and its schedulers
        self._global_batch_size = 0
        self.waited = 0  # validations since then, at epochs' ends
        self._is_best = False  # the checkpoint being written is the best one
        self._validated: tuple[int, int] | None = None  # (epoch, position) of the last validation that was completed
        self._saved_at = time.monotonic()
        self.saved = False  # anything, in this attempt
        self._warned = False  # that nothing says which weights are best

    # -- what a checkpoint holds of this callback, and how a run goes on from it
    def state_dict(self) -> dict[str, Any]:
        place = {"is_best": self._is_best, "validated": self._validated}
        given = {"options": self._options, "schedules": self._schedules, "global_batch_size": self._global_batch_size}
        return {"best": self.best, "waited": self.waited, **given, **place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self._validated, self.waited = (state_dict[name] for name in ("best", "validated", "waited"))
        if not isinstance(self.best, float | None) or not is_count(self.waited):
            raise ValueError(f"best is {self.best!r}, waited {self.waited!r}")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._global_batch_size = _data(trainer).global_batch_size
        own_callbacks.arrange(trainer, self)
        self.stop.take_over(trainer)
        self.agreement.start(trainer)

    def _note_given(self, options: list[dict[str, Any]], begun: list[dict[str, Any]]) -> None:
        self._options, self._schedules = options, begun

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.agreement.finish()  # a pass that was ended by an error is not torn down

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        state = _data(trainer).checkpoint_state()
        checkpoint[KEY] = {"format": FORMAT, **state, "version": importlib.metadata.version("lightning-shards")}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        data = _data(trainer)
        data.load_checkpoint_state(state_in(checkpoint, trainer.ckpt_path))
        done, left = data.batches(trainer.accumulate_grad_batches)
        begun = bool(data.position)
        loop_state.rewrite(checkpoint["loops"]["fit_loop"], data.epoch, done, left, begun)
        loop_state.check(trainer, checkpoint)
        ema.leave(trainer, pl_module, checkpoint)
        before = checkpoint["callbacks"].get(self.state_key, {})
        resume_settings.keep_options(trainer, before, data.global_batch_size, self._note_given)
        if checkpoint["callbacks"].get(self.state_key, {}).get("is_best"):
            self._name(trainer, "best.ckpt")  # a kill may have come between the two

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        schedules.check_given(trainer, pl_module)
        schedules.check_rate(trainer, pl_module)
        connector = trainer._checkpoint_connector
        connector.restore_training_state()  # which Lightning does behind this, when loggers have begun to write
        connector.restore_training_state = lambda: None  # type: ignore[method-assign]
        self.begin()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._options is None:  # a run that begins
            self._note_given(resume_settings.options(trainer.optimizers), schedules.states(trainer))
        self.plateaus.take_over(trainer)
        loop_state.at_start(trainer, validated=self._validated == _data(trainer).place)
        if self.agreement.now(*self.stop.wishes())[1]:
            raise Stopped("budget")  # the checkpoint that it began with holds everything
        self._end_if_nothing_improves(trainer)

    # -- the course of a training
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        data, loop = _data(trainer), trainer.fit_loop.epoch_loop
        data.advance()
        assert trainer.fit_loop._data_fetcher is not None
        if not (validates := loop._should_check_val_fx(trainer.fit_loop._data_fetcher)):
            self.plateaus.step("step", data.place)
        due = time.monotonic() - self._saved_at > self.every_seconds
        *ends, save = self.agreement.ask(*self.stop.wishes(), due)
        if end := ended(*ends):
            self.save(trainer)
            raise end
        if save and not validates and not loop.batch_progress.is_last_batch:
            self.save(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            ema.share_statistics(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._stop_came():
            ema.swap_back(trainer, pl_module)
            self.save(trainer)
            raise Stopped("stopped")  # the resume runs this validation from its begin

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validated = _data(trainer).place
        self.plateaus.step("step", self._validated)
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_with_best(trainer)
            self._end_if_asked()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = _data(trainer)
        measured, left = self._validated == data.place, data.batches(1)[1]
        if left and trainer.should_stop:  # Lightning calls this an epoch's end too
            self.save(trainer)
            return
        if left and trainer.is_global_zero:
            say(f"the model ended epoch {data.epoch} itself: {left * data.global_batch_size} images are left out")
        if trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self.plateaus.step("epoch", data.place)
        data.finish_epoch()
        if measured:
            self.waited += 1
            self._save_with_best(trainer)
        else:
            self.save(trainer)
        self._end_if_nothing_improves(trainer)
        if data.epoch < (trainer.max_epochs or 0) and not trainer.should_stop:
            self._end_if_asked()

    def on_test_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if self._stop_came():
            raise Stopped("stopped")  # the training is saved; the resume tests anew

    # -- ends
    def outcome(self, trainer: L.Trainer, timer_of: str) -> str:
        """How a training ended that no error ended, as `summary.json` says it: by its length, by a limit or early.

        `timer_of` says where a Timer comes from: `trainer.max_time`, or `the callback Timer`.

        One that gets no better is done at the end of an epoch; whatever else stops it, the rest is owed.
        """
        data = _data(trainer)
        if data.epoch >= (trainer.max_epochs or 0):
            return "done"
        for timer in (c for c in trainer.callbacks if isinstance(c, Timer)):  # type: ignore[attr-defined]
            if timer._duration is not None and timer.time_elapsed() >= timer._duration:
                self.stop.budget = f"{timer_of} {timer._duration:g}"
                return "budget"
        early = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]  # type: ignore[attr-defined]
        no_better = self._nothing_improves or any(c.stopping_reason_message for c in early)
        return "done" if no_better and not data.position else "stopped"

    @property
    def _nothing_improves(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def _stop_came(self) -> bool:
        """On any rank, in a pass that no step of the training is made in."""
        return self.agreement.ask(bool(self.stop.number), False, False)[0]

    def _end_if_asked(self) -> None:
        """Where all ranks meet in any case, and everything is saved."""
        if end := ended(*self.agreement.now(*self.stop.wishes())):
            raise end

    def _end_if_nothing_improves(self, trainer: L.Trainer) -> None:
        if self._nothing_improves:
            trainer.should_stop = True

    # -- saving
    def save(self, trainer: L.Trainer) -> None:
        """Write `last.ckpt`, on all ranks, and let go of what is older than the last few."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.saved = True
        ema.share_statistics(trainer)
        trainer.save_checkpoint(self.folder(trainer) / "last.ckpt", weights_only=False)
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:
            name = f"step-{trainer.global_step:09d}.ckpt"
            if self.keep > 1:
                self._name(trainer, name)
            for path in outdated(self.folder(trainer), name, self.keep):
                path.unlink()

    def _save_with_best(self, trainer: L.Trainer) -> None:
        """Save at a place that was just validated."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is None and self.best is None and not self._warned and trainer.is_global_zero:
            self._warned = True
            logged = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val"))) or "nothing"
            say(f"the model logs no {self.monitor}, so the last weights count as the best ones; it logs {logged}")
        score = float(value) if value is not None else math.nan
        gain = math.nan if math.isnan(score) else math.inf if self.best is None else self.sign * (score - self.best)
        self._is_best = gain >= 0  # of equals, the later
        if gain > 0:
            self.waited = 0
        if self._is_best:
            self.best = score
        self.save(trainer)
        if self._is_best:
            self._name(trainer, "best.ckpt")
        self._is_best = False

    def _name(self, trainer: L.Trainer, name: str) -> None:
        """Give `last.ckpt` a second name."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            add_name(self.folder(trainer) / "last.ckpt", name)

    @staticmethod
    def folder(trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"


def _data(trainer: L.Trainer) -> ShardDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, ShardDataModule):
        raise InputError(
            f"the datamodule {type(data).__name__} keeps no place to go on from: make it a subclass of ShardDataModule"
        )
    return data


def outdated(folder: Path, newest: str, keep: int) -> list[Path]:
    """The numbered checkpoints of a folder beyond the last `keep`, of which `newest` is one whatever the clock says;
    where one is kept, that is `last.ckpt`."""
    files = sorted(folder.glob("step-*.ckpt"), key=lambda path: (path.name == newest, path.stat().st_mtime_ns))
    return files[:-keep] if keep > 1 else files
