"""Where the settings of a training come from.

Each over the one before: the defaults in the code, the `--config` files in their order (without any:
`configs/sample.yaml`; with `--resume`: the run's own), flags.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..runs.folder import find
from ..yaml_text import read_yaml

DEFAULT_CONFIG = Path("configs/sample.yaml")
_SEED = "a whole number from 0 to 4294967295, of which the order is made, or false"


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
    for name in _files(arguments):
        try:
            read_yaml(Path(name))
        except OSError as error:
            hint = "; run train.py from the project's folder" if Path(name) == DEFAULT_CONFIG else ""
            raise InputError(f"--config {name} cannot be read ({error.strerror}){hint}") from None
        except ValueError as error:
            raise InputError(f"--config {name} is no YAML ({' '.join(str(error).split())})") from None


def _files(arguments: Sequence[str]) -> list[str]:
    """What `--config` names."""
    names = [a.partition("=")[2] for a in arguments if a.startswith("--config=")]
    return names + [b for a, b in itertools.pairwise(arguments) if a in ("-c", "--config")]


def check_linked(arguments: Sequence[str], linked: Mapping[str, str]) -> None:
    """Raise InputError for a config file with one of the settings `linked`, which would be overwritten; the parser
    refuses them as flags itself."""
    for name in filter(os.path.isfile, _files(arguments)):
        content = read_yaml(Path(name))
        for setting, why in linked.items():
            section, _, key = setting.partition(".")
            if isinstance(content, dict) and isinstance(part := content.get(section), dict) and key in part:
                raise InputError(f"{name}: {setting} is not for a config, {why}: leave it out")


def check(config: Any) -> None:
    """Raise InputError for a value that no type refuses, of the settings that stand alone."""
    for name, holds, rule in (
        ("seed_everything", config.seed_everything is not True and 0 <= config.seed_everything < 1 << 32, _SEED),
        ("save_every_minutes", config.save_every_minutes > 0, "above 0"),
        ("keep_checkpoints", config.keep_checkpoints >= 1, "at least 1"),
        ("patience", config.patience is None or config.patience >= 1, "at least 1"),
        ("ema_decay", config.ema_decay is None or 0 < config.ema_decay < 1, "above 0 and below 1"),
    ):
        if not holds:
            raise InputError(f"{name} is {config[name]}, it must be {rule}")


def value_of(arguments: Sequence[str], flag: str) -> str | None:
    """What follows `flag` in the arguments, the last time where it is given twice, as the parser takes it."""
    for place, argument in reversed([*enumerate(arguments)]):
        if argument == flag:
            argument = "=".join([flag, *arguments[place + 1 : place + 2]])
        if argument == flag or argument.startswith(flag + "="):
            value = argument.partition("=")[2]
            if not value:
                raise InputError(f"{flag} needs a name behind it")
            return value
    return None


def set_to_null(arguments: Sequence[str]) -> list[str]:
    """The settings that flags set to null, whatever a file says of them."""
    pairs = [tuple(a.split("=", 1)) for a in arguments if "=" in a] + list(itertools.pairwise(arguments))
    return [flag.removeprefix("--") for flag, value in pairs if flag.startswith("--") and value == "null"]
