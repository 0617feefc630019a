"""The commands beside training: `python -m PACKAGE COMMAND`, or `python -m PACKAGE COMMAND --help`.

Exit status: 0 done, 1 failed, 2 bad input (one sentence on stderr, nothing written), 75 stopped by a signal with
finished work kept.
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from .command import command
from .commands import data, models, runs


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def main() -> int:
    """Run the command that the arguments name; returns the exit status."""
    with command():
        parser = _Parser(prog=f"python -m {__package__}", description="Commands beside training.")
        commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
        for kind in (data, runs, models):
            kind.add(commands)
        arguments, settings = parser.parse_known_args()
        if settings and "settings" not in arguments:
            commands.choices[sys.argv[1]].error(f"unrecognized arguments: {' '.join(settings)}")
        arguments.settings = settings
        return int(arguments.run(arguments) or 0)


if __name__ == "__main__":
    sys.exit(main())
