"""The commands beside training: their options, and what each prints. What one needs is imported when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from ..entry import command
from ..errors import InputError
from ..terminal import printable
from . import data, embed, models, runs


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage; an option has one name, which is not cut short."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings | {"allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)} (see {self.prog} --help)\n")


def main(
    program: str,
    model: Callable[[], type[Any]] | None = None,
    fields: Mapping[str, Any] | Callable[..., Mapping[str, Any]] | None = None,
    transform: Callable[..., None] | None = None,
    datamodule: Callable[[], type[Any]] | None = None,
) -> int:
    """Run the command that the arguments name; returns the exit status.

    Args:
        program: how the user calls it, for messages.
        model: gives the LightningModule that runs were trained with; None leaves out the commands that need one.
        fields, transform: as for TrainingCLI.
        datamodule: gives the ShardDataModule that runs were trained with, where it is the team's own.
    """

    def data_class() -> type[Any]:
        from ..train import contract
        from ..train.datamodule import ShardDataModule

        return contract.data_class(datamodule() if datamodule else ShardDataModule, fields, transform)

    with command():
        parser = _Parser(prog=program, description="Commands beside training.")
        commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
        data.add(commands)
        runs.add(commands, model is not None)
        if model:
            models.add(commands)
            embed.add(commands)
        arguments, settings = parser.parse_known_args()
        chosen = commands.choices[next(word for word in sys.argv[1:] if word in commands.choices)]
        options = {name: action.nargs != 0 for action in chosen._actions for name in action.option_strings}
        if settings and "settings" not in arguments:
            chosen.error(_unknown(settings, list(options)))
        arguments.typed = _typed(sys.argv[1:], options)
        arguments.settings, arguments.model, arguments.datamodule = settings, model, data_class
        return int(arguments.run(arguments) or 0)


def _typed(words: Sequence[str], options: Mapping[str, bool]) -> set[str]:
    """The options among the words, those that repeat a default, too.

    Args:
        words: of a command line.
        options: whether each takes a value.

    Raises InputError for an empty word, such as of a shell's variable that is not set.
    """
    found, last = set(), ""
    for word in words:
        name, equals, value = word.partition("=")
        if name in options:
            found.add(name)
        if (name in options and equals and not value) or (not word and options.get(last)):
            raise InputError(f"{name or last} is empty: name something, or leave it out")
        if not word and not (last.startswith("--") and options.get(last, True)):
            raise InputError("one of the words that name what to work on is empty: is a variable not set?")
        last = word
    return found


def _unknown(words: Sequence[str], options: Sequence[str]) -> str:
    """What is wrong with words that no option takes; the nearest option to the first of them."""
    near = get_close_matches(words[0].partition("=")[0], options, 1)
    return f"unrecognized arguments: {' '.join(words)}" + (f"; did you mean {near[0]}?" if near else "")
