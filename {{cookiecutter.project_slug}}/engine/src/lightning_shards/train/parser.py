"""The command line: the settings beside those of Trainer, model and data, a short help, and errors of one sentence."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import LightningEnum

from ..errors import InputError
from ..runs.files import config_in
from ..vision.pretrained import USUAL_SIZE
from ..vision.weights import image_size_of
from . import contract, loggers

PRICES = Path("prices.yaml")
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
    "data.size_schedule",
    "data.workers",
    "data.fraction",
    "data.mixture",
    "data.balance",
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

# What tells of the weights; an own model may mean something else by these names.
_OF_THE_WEIGHTS: dict[str, type] = {"backbone": str, "weights": str, "pretrained": dict}
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list",
    "list": "a list",
    "NoneType": "null",
}


def add_settings(parser: LightningArgumentParser) -> dict[str, str]:
    """The settings that stand alone, `log`, and what the data and the model have in common.

    Returns the settings that are no person's to set, and what says them.
    """
    for name, kind, default, text in (
        ("run", str | None, None, "Name of the run's folder; null: the date and time."),
        ("resume", str | None, None, "Go on with this run; `last` is the newest."),
        ("ledger", bool, False, "Write down which samples each step was made of."),
        ("save_every_minutes", float, 10.0, "Time between checkpoints within an epoch."),
        ("keep_checkpoints", int, 2, "How many of the last checkpoints stay, beside the best one."),
        ("patience", int | None, None, "End after so many epochs in which validation did not get better."),
        ("ema_decay", float | None, None, "Evaluate a moving average of the weights: 0.999 is usual; null: off."),
        ("max_hours", float | None, None, "Stop, with everything saved, after so long in all attempts."),
        ("max_kwh", float | None, None, "The same by energy."),
        ("max_cost", float | None, None, "The same by money, in the currency of the prices."),
        ("prices", str, str(PRICES), "File of prices and watts, by which energy and money are counted."),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.add_class_arguments(loggers.LogSettings, "log")
    known, linked = {action.dest for action in parser._actions}, dict[str, str]()
    if "data.seed" in known:  # an own datamodule may fix what it hands on
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        linked["data.seed"] = "seed_everything says it"
    if {"data.image_size", "model.image_size"} <= known:
        names = [name for name in _OF_THE_WEIGHTS if f"model.{name}" in known]

        def size_of_the_weights(size: int | None, *values: Any) -> int:
            return _image_size(dict(zip(names, values, strict=True))) if size is None else size

        sources = ("data.image_size", *(f"model.{name}" for name in names))
        parser.link_arguments(sources, "model.image_size", compute_fn=size_of_the_weights)
        linked["model.image_size"] = "data.image_size says it"
    for name, source in contract.HANDED_OVER.items():
        if f"model.{name}" in known:
            parser.link_arguments(f"data.{source}", f"model.{name}", apply_on="instantiate")
            linked[f"model.{name}"] = "the dataset says it"
    return linked


def _image_size(settings: dict[str, Any]) -> int:
    """Side of the images that the weights in the model's `settings` were trained on."""
    said: dict[str, Any] = {name: v for name, v in settings.items() if isinstance(v, _OF_THE_WEIGHTS[name])}
    return image_size_of(**said)


def write_down_image_size(config: Any, resumed: Path | None) -> None:
    """Where `data.image_size` is null, put what is taken in its place: of the run in `resumed` what it has."""
    of_model = config.get("model") or {}
    if (config.get("data") or {}).get("image_size", 0) is None:
        before = config_in(resumed).get("data.image_size") if resumed else None
        config.data.image_size = before or of_model.get("image_size") or USUAL_SIZE
        if "image_size" in of_model:
            config.model.image_size = config.data.image_size


def plain(value: Any) -> Any:
    """Parsed settings with the values of enums in their place, such as the default interval of Lightning's Timer, which
    the parser could not write down again."""
    if isinstance(value, Namespace):
        for name, inner in vars(value).items():
            setattr(value, name, plain(inner))
        return value
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value.value if isinstance(value, LightningEnum) else value


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
    value = text.rpartition("value: ")[2]
    if of_class := _of_class(text, value):
        return textwrap.shorten(f"{setting[1]}: {of_class}", 240, placeholder=" ...")
    if part := re.search(r"Expected a <class '(\w+)'>\. Got value: (.*?) - ", text):  # of a list or dictionary
        return textwrap.shorten(
            f"{setting[1]}: {part[2]} must be {_WORDS.get(part[1], part[1])}", 240, placeholder=" ..."
        )
    literals = [f"one of {values}".replace("'", "") for values, _ in expected if values]
    allowed = literals + [_WORDS.get(kind, kind) for values, kind in expected if not values]
    return textwrap.shorten(f"{setting[1]} is {value}, it must be {' or '.join(allowed)}", 240, placeholder=" ...")


def _of_class(text: str, value: str) -> str | None:
    """What is wrong with a setting that names a class, such as a callback; None for others."""
    errors = text.partition("Errors: - ")[2].partition(" Given value type")[0].split(" - ")
    if not errors[0] or "class" not in text.partition("Errors: ")[0]:
        return None
    if missing := re.search(r"arguments are required: ([\w, ]+?)(?: - |$)", text):
        return f"it needs {missing[1]}"
    if problem := re.search(r"Problem with given class_path '([^']+)': (.+?) - ", text):
        return f"{problem[1]} cannot be used ({problem[2].rstrip('.')})"
    if kind := re.search(r"not correspond to a subclass of (\w+)", text):
        return f"{value} is no {kind[1]}"
    if "Expected a dot import path string" in text:
        return f"there is no {value}: give the name of a class, with its module if it is not Lightning's"
    if re.search(r"instantiatable class|Got value: \{", text):
        return f"{value} is not understood: give a class_path, and its settings below init_args"
    return next((one for one in errors if "is no setting" in one or "it must be" in one), None)
