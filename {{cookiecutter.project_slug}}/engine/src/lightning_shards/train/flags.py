"""Lightning's own flags, `trainer.*`: each is obeyed, follows from another setting, or is refused in a sentence.

`FLAGS` has all of them, and docs/flags.md the same rows for people; a test walks through the table with each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InputError
from .datamodule import ShardDataModule

DEFAULTS = {  # that differ from Lightning's
    "max_epochs": 10,
    "max_steps": -1,
    "devices": 1,
    "log_every_n_steps": 50,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,  # its metrics could become the best ones
    "use_distributed_sampler": False,  # the datamodule gives each rank its share
}


@dataclass(frozen=True)
class Flag:
    """What becomes of a flag.

    Args:
        kind: `obeyed` as Lightning documents it, `ours` where another setting decides, `refused`.
        note: how it is meant here, or what to use.
        wrong: values that are refused.
        sentence: what the refusal says behind the flag's name.
    """

    kind: Literal["obeyed", "ours", "refused"]
    note: str = ""
    wrong: Callable[[Any], bool] = lambda value: False
    sentence: str = ""


def _given(value: Any) -> bool:
    return value not in (None, False)


def refused(note: str, wrong: Callable[[Any], bool] = _given) -> Flag:
    return Flag("refused", note, wrong, f"cannot be set: {note}")


def _no_share(value: Any) -> bool:
    """Neither null, nor a share 0.0..1.0, nor a whole number of batches."""
    return isinstance(value, (int, float)) and not (0 <= value <= 1 or (value > 1 and value % 1 == 0))


def _below_0(value: Any) -> bool:
    return not (value or 0) >= 0  # nan, too


_SHARE = "must be a share from 0.0 to 1.0, or a number of batches"

FLAGS: dict[str, Flag] = {
    "accelerator": Flag("obeyed"),
    "strategy": Flag("obeyed", "`auto` or `ddp`: a run's checkpoints are whole, for any number of devices"),
    "devices": Flag("obeyed", "under torchrun and srun their number is known from the launcher"),
    "num_nodes": Flag("obeyed", "under torchrun and srun it is known from the launcher"),
    "precision": Flag("obeyed", "null: bfloat16 or float16 mixed on a CUDA GPU, else float32"),
    "logger": Flag("obeyed", "added to the run's own; false leaves metrics.csv alone, which the report is made of"),
    "callbacks": Flag("obeyed", "added to the run's own; see the table of callbacks"),
    "fast_dev_run": Flag(
        "obeyed",
        "so many global batches of training, and batches of val and test; nothing is kept",
        _below_0,
        "must be at least 0",
    ),
    "max_epochs": Flag(
        "obeyed",
        "at least 1, since the learning rate is computed from it",
        lambda value: not value or value < 1,
        "must be at least 1: the learning rate is computed from it",
    ),
    "min_epochs": Flag(
        "obeyed",
        "before which nothing ends the training early; at most `trainer.max_epochs`",
        _below_0,
        "must be at least 0",
    ),
    "max_steps": refused("use trainer.max_epochs, a resume counts in epochs", lambda value: value != -1),
    "min_steps": Flag("obeyed", "as `trainer.min_epochs`, in optimizer steps", _below_0, "must be at least 0"),
    "max_time": Flag("obeyed", "a budget: everything is saved and a resume goes on; `max_hours` counts all attempts"),
    "limit_train_batches": Flag(
        "obeyed",
        "the first so many global batches of each epoch, or such a share of them; `data.fraction` takes a fixed part",
        lambda value: _no_share(value) or value == 0,
        f"{_SHARE}, and leave something to train on; evaluate measures without training",
    ),
    "limit_val_batches": Flag("obeyed", "0: no validation, the last weights are taken", _no_share, _SHARE),
    "limit_test_batches": Flag("obeyed", "0: no test", _no_share, _SHARE),
    "limit_predict_batches": refused("a training predicts nothing; give the command predict fewer images"),
    "overfit_batches": Flag(
        "obeyed", "the same global batches in every epoch, and as many batches of val; 0: off", _no_share, _SHARE
    ),
    "val_check_interval": Flag(
        "obeyed",
        "a share of the epoch, a number of optimizer steps, or on one device a time",
        lambda value: isinstance(value, (int, float)) and (value <= 0 or (isinstance(value, float) and value > 1)),
        "must be a share of the epoch up to 1.0, or a number of steps",
    ),
    "check_val_every_n_epoch": Flag(
        "obeyed",
        "null: `trainer.val_check_interval` counts steps across epochs",
        lambda value: value is not None and value < 1,
        "must be at least 1; trainer.limit_val_batches 0 leaves validation out",
    ),
    "num_sanity_val_steps": Flag(
        "obeyed", "0 where it is not set", lambda value: (value or 0) < -1, "must be at least -1"
    ),
    "log_every_n_steps": Flag("obeyed", "0: no metrics of the training", _below_0, "must be at least 0"),
    "enable_checkpointing": refused(
        "a run goes on from its checkpoints; keep_checkpoints says how many stay", lambda value: value is False
    ),
    "enable_progress_bar": Flag("obeyed"),
    "enable_model_summary": Flag("obeyed", "false where it is not set"),
    "accumulate_grad_batches": Flag(
        "ours",
        "`data.global_batch_size` / (`data.micro_batch_size` x devices)",
        lambda value: value != 1,
        "cannot be set: use data.micro_batch_size",
    ),
    "gradient_clip_val": Flag("obeyed", "", _below_0, "must be at least 0"),
    "gradient_clip_algorithm": Flag("obeyed", "beside `trainer.gradient_clip_val`"),
    "deterministic": Flag("obeyed"),
    "benchmark": Flag("obeyed", "true where neither it nor `trainer.deterministic` is set"),
    "inference_mode": Flag("obeyed"),
    "use_distributed_sampler": Flag(
        "ours",
        "each rank gets its share of the order already",
        lambda value: value is True,
        "cannot be set: each rank gets its share already",
    ),
    "profiler": Flag(
        "obeyed",
        "its files lie in the run's folder, in `profile/`",
        lambda value: value == "xla",
        "works on TPUs only: take simple, advanced or pytorch",
    ),
    "detect_anomaly": Flag("obeyed"),
    "barebones": refused("it has neither metrics nor checkpoints; forecast measures the bare speed"),
    "plugins": Flag("obeyed", "added to the run's own; none that writes checkpoints"),
    "sync_batchnorm": Flag("obeyed", "on NVIDIA GPUs only"),
    "reload_dataloaders_every_n_epochs": Flag("obeyed", "", _below_0, "must be at least 0"),
    "default_root_dir": refused("a run's files lie in runs/<run>/; name it with --run"),
    "enable_autolog_hparams": Flag("obeyed"),
    "model_registry": refused("checkpoints stay in the run's folder, and nothing is uploaded"),
}


def check(flags: Any) -> None:
    """Raise InputError for a value of `config.trainer` that is not obeyed, with what to use."""
    for name, flag in FLAGS.items():
        if flag.wrong(value := flags.get(name)):
            shown = "" if flag.sentence.startswith("cannot") or value is None else f" is {value}, it"
            raise InputError(f"trainer.{name}{shown} {flag.sentence}")
    if (flags.min_epochs or 0) > flags.max_epochs:
        raise InputError(f"trainer.min_epochs {flags.min_epochs} is more than trainer.max_epochs {flags.max_epochs}")
    if flags.gradient_clip_algorithm and not flags.gradient_clip_val:
        raise InputError("trainer.gradient_clip_algorithm does nothing without trainer.gradient_clip_val: set both")
    said = [name for name in ("fast_dev_run", "overfit_batches") if flags.get(name)]
    limits = [name for name in ("limit_train_batches", "limit_val_batches") if flags.get(name) is not None]
    if said and len(said + limits) > 1:
        one, other = (said + limits)[:2]
        raise InputError(f"trainer.{one} and trainer.{other} both say how much to use: give one")


def shorten(data: ShardDataModule, flags: Any) -> None:
    """Let the datamodule hand out the part of each epoch that the flags name.

    So the length of an epoch is known to schedules, progress and checkpoints alike, whatever the devices.
    """
    if flags.fast_dev_run:
        data.shorten(int(flags.fast_dev_run), same=False, flag="trainer.fast_dev_run")
    elif flags.overfit_batches:
        data.shorten(flags.overfit_batches, same=True, flag="trainer.overfit_batches")
    elif flags.limit_train_batches is not None:
        data.shorten(flags.limit_train_batches, same=False, flag="trainer.limit_train_batches")


def for_trainer(flags: Any) -> dict[str, Any]:
    """What a trainer gets in place of the flags that `shorten` has obeyed, and of those that are not set."""
    changed: dict[str, Any] = {"limit_train_batches": None, "overfit_batches": 0.0, "fast_dev_run": False}
    if flags.benchmark is None:
        changed["benchmark"] = not flags.deterministic
    if flags.overfit_batches and not flags.fast_dev_run:
        changed["limit_val_batches"] = flags.overfit_batches
    return changed
