"""Where the settings of a training come from, and how the command line speaks: short help, one-sentence errors.

Each over the one before: the defaults in the code, the `--config` files in their order (without any:
`configs/sample.yaml`; with `--resume`: the run's own), flags.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from ..errors import InputError
from ..runs.folder import find
from ..yaml_text import parse_yaml

DEFAULT_CONFIG = Path("configs/sample.yaml")
SHOWN_IN_HELP = [  # what most trainings touch, beside all that the model has; --help-all has the rest
    "config",
    "run",
    "resume",
    "ledger",
    "seed_everything",
    "log.wandb",
    "log.tensorboard",
    "data.path",
    "data.global_batch_size",
    "data.micro_batch_size",
    "data.image_size",
    "data.workers",
    "data.fraction",
    "data.crop_scale",
    "model",
    "ema_decay",
    "patience",
    "trainer.max_epochs",
    "trainer.devices",
    "trainer.precision",
    "trainer.gradient_clip_val",
    "trainer.val_check_interval",
    "max_hours",
    "max_kwh",
    "max_cost",
    "prices",
]

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list",
    "list": "a list",
    "NoneType": "null",
}


def with_files(given: Sequence[str]) -> tuple[list[str], Path | None]:
    """The arguments with the config files that go before them, and the folder of the run that `--resume` names."""
    arguments, resume, run = _files_first(given), value_of(given, "--resume"), value_of(given, "--run")
    if resume and run:
        raise InputError("--resume goes on with a run and --run begins one: give one of them")
    folder = find(resume) if resume else None
    if folder:
        arguments = ["--config", str(folder / "config.yaml"), *arguments]
    elif not any(a in ("-c", "--config") or a.startswith("--config=") for a in arguments):
        arguments = ["--config", str(DEFAULT_CONFIG), *arguments]
    if "--help-all" in arguments:
        arguments = ["--help"]
    _check_files(arguments)
    return arguments, folder


def _files_first(given: Sequence[str]) -> list[str]:
    """The arguments with the config files before the flags, which the parser lets win in the order of the line."""
    files: list[str] = []
    flags: list[str] = []
    rest = iter(given)
    for argument in rest:
        if argument in ("-c", "--config"):
            files += [argument, *itertools.islice(rest, 1)]
        else:
            (files if argument.startswith("--config=") else flags).append(argument)
    return files + flags


def _check_files(arguments: list[str]) -> None:
    """Raise InputError, with the name, for a config file that is missing or no YAML."""
    names = [a.partition("=")[2] for a in arguments if a.startswith("--config=")]
    names += [b for a, b in itertools.pairwise(arguments) if a in ("-c", "--config")]
    for name in names:
        try:
            parse_yaml(Path(name).read_bytes())
        except OSError as error:
            hint = "; run train.py from the project's folder" if Path(name) == DEFAULT_CONFIG else ""
            raise InputError(f"--config {name} cannot be read ({error.strerror}){hint}") from None
        except ValueError as error:
            raise InputError(f"--config {name} is no YAML ({' '.join(str(error).split())})") from None


def check(config: Any) -> None:
    """Raise InputError for what no type refuses: the settings that stand alone and Lightning's, with one sentence."""
    trainer = config.trainer
    if trainer.logger is False:
        raise InputError(
            "trainer.logger false would leave out metrics.csv, which the report is made of: use --log.wandb false,"
            " which leaves out Weights & Biases, and name no logger"
        )
    if trainer.default_root_dir is not None:
        raise InputError("trainer.default_root_dir cannot be set: a run's files lie in runs/<run>/, named by --run")
    if trainer.max_steps != -1:
        raise InputError("trainer.max_steps cannot be set: use trainer.max_epochs, a resume counts in epochs")
    for name, refused, instead in (
        ("fast_dev_run", bool(trainer.fast_dev_run), "try a small --data.fraction with --trainer.max_epochs 1"),
        ("overfit_batches", bool(trainer.overfit_batches), "take the same few images with a small --data.fraction"),
        ("default_root_dir", trainer.default_root_dir is not None, "runs are kept in runs/; name one with --run"),
        ("enable_checkpointing", trainer.enable_checkpointing is False, "a run goes on from its checkpoints"),
        ("use_distributed_sampler", trainer.use_distributed_sampler is True, "each rank gets its share already"),
        ("barebones", trainer.barebones is True, "it has neither metrics nor checkpoints"),
    ):
        if refused:
            raise InputError(f"trainer.{name} cannot be set: {instead}")
    if trainer.accumulate_grad_batches != 1:
        raise InputError("trainer.accumulate_grad_batches cannot be set: use data.micro_batch_size")
    if not trainer.max_epochs or trainer.max_epochs < 1:
        raise InputError("trainer.max_epochs must be at least 1: the learning rate is computed from it")
    interval = trainer.val_check_interval
    if isinstance(interval, (int, float)) and (interval <= 0 or (isinstance(interval, float) and interval > 1)):
        raise InputError("trainer.val_check_interval must be a share of the epoch up to 1.0, or a number of steps")
    for name, holds, rule in (
        ("save_every_minutes", config.save_every_minutes > 0, "above 0"),
        ("keep_checkpoints", config.keep_checkpoints >= 1, "at least 1"),
        ("patience", config.patience is None or config.patience >= 1, "at least 1"),
        ("ema_decay", config.ema_decay is None or 0 < config.ema_decay < 1, "above 0 and below 1"),
    ):
        if not holds:
            raise InputError(f"{name} is {config[name]}, it must be {rule}")


def value_of(arguments: Sequence[str], flag: str) -> str | None:
    """What follows `flag` in the arguments."""
    for place, argument in enumerate(arguments):
        if argument == flag:
            argument = "=".join([flag, *arguments[place + 1 : place + 2]])
        if argument == flag or argument.startswith(flag + "="):
            value = argument.partition("=")[2]
            if not value:
                raise InputError(f"{flag} needs a name behind it")
            return value
    return None


class Parser(LightningArgumentParser):
    """Short help, and errors of one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise InputError(shorten(message, [action.dest for action in self._actions])) from None

    def format_help(self, formatter: Any = None) -> str:
        if "--help-all" in sys.argv:
            return super().format_help(formatter)
        lines = ["usage: uv run train.py [--config FILE]... [--run NAME] [--resume RUN] [any setting]", ""]
        known = {action.dest: action for action in self._actions}
        for action in (action for name in SHOWN_IN_HELP for action in _of(name, known)):
            name = action.dest
            default = "" if action.default is None or name == "config" else f" [{action.default}]"
            text = " ".join(str(action.help or "").split())
            text = re.sub(r"\s*\((required, )?type:.*\)$", "", text) + default
            lines.append(f"  --{name:<26} {textwrap.shorten(text, 88, placeholder=' ...')}")
        lines += [
            "",
            "--help-all shows every setting; the files in configs/ say what they are for.",
        ]
        return "\n".join(lines) + "\n"


def _of(name: str, known: dict[str, Any]) -> list[Any]:
    """The setting of this name, if there is one; of the model, all that the command line sets."""
    if name != "model":
        return [known[name]] if name in known else []
    return [known[of] for of in known if of.startswith("model.") and known[of].default != argparse.SUPPRESS]


def shorten(message: str, known: Sequence[str] = ()) -> str:
    """The parser's message as one sentence: the setting, its value, and what it may be.

    `known` are the names of all settings, from which the nearest to an unknown one is proposed.
    """
    text = " ".join(message.split())
    unknown = re.search(r"unrecognized arguments: -*([^\s=]+)|(?:Option|Key|key) ['\"]([\w.]+)['\"] is not \w+", text)
    if unknown:
        name = unknown[1] or unknown[2]
        near = difflib.get_close_matches(name, known, 1)
        return f"{name} is no setting; " + (f"did you mean {near[0]}?" if near else "--help-all lists them")
    setting = re.match(r"Parser key \"([\w.]+)\": ", text)
    expected = re.findall(r"Expected a (?:typing\.Literal\[([^\]]*)\]|<class '(\w+)'>)", text)
    if not setting or not expected:
        return textwrap.shorten(text, 240, placeholder=" ...")
    literals = [f"one of {values}".replace("'", "") for values, _ in expected if values]
    allowed = literals + [_WORDS.get(kind, kind) for values, kind in expected if not values]
    value = text.rpartition("value: ")[2]
    return textwrap.shorten(f"{setting[1]} is {value}, it must be {' or '.join(allowed)}", 240, placeholder=" ...")
