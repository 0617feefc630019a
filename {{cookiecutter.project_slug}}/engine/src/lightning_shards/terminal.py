"""What people read of text that others wrote (names of folders, classes and runs, settings, errors): without codes that
a terminal would obey, and on one line.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from .errors import RunError

# Control characters, line and paragraph separators, marks that turn the direction of writing, halves of a surrogate
# pair, which no encoding has.
_CODES = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: object) -> str:
    """The text with `\\x1b` and the like in place of such characters."""
    return _CODES.sub(lambda code: ascii(code[0])[1:-1], str(text))


def plain_lines(text: str) -> str:
    """The same for text that has lines, which stay."""
    return "\n".join(map(printable, text.split("\n")))


def several(count: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def in_bytes(size: float) -> str:
    """`3.25 GB`, `12 MB`, `4 kB`: three digits at least."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:,.0f} {name}" if size >= 100 * unit else f"{size / unit:.3g} {name}"
    return several(int(size), "byte")


def say(text: str, file: TextIO | None = None) -> None:
    """Print, on standard output or `file`, what a work that goes on has to tell. Where a log on a full disk takes no
    more, the work goes on without."""
    stream = file or sys.stdout
    try:
        print(plain_lines(text), file=stream, flush=True)
    except OSError as error:
        _close(stream)
        if stream is not sys.stderr:
            name = "standard output" if stream is sys.stdout else str(getattr(stream, "name", stream))
            say(f"{name} could not be written ({error.strerror}): what follows is not said there", sys.stderr)


def show(text: str) -> None:
    """Print a command's result. Raises RunError where it cannot be written."""
    with shown():
        print(plain_lines(text), flush=True)


@contextmanager
def shown(goes_on: bool = False) -> Iterator[None]:
    """Standard output is written to here: RunError where that fails; a reader that has seen enough ends the command,
    unless it `goes_on`, since other files are still being written."""
    try:
        yield
    except OSError as error:
        _close(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise RunError(f"standard output could not be written ({error.strerror})") from None
        if not goes_on:
            sys.exit(0)  # such as `head`


def _close(stream: TextIO) -> None:
    """Let what is still written there go nowhere, and fail no more."""
    with suppress(OSError, ValueError):  # some streams have no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
