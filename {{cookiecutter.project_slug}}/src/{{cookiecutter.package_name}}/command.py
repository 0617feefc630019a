"""How every command of this project ends: with one sentence and an exit status, or with the traceback of a defect."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .shards.errors import InputError, RunError


@contextmanager
def command() -> Iterator[None]:
    """Bad input ends with status 2, a run that failed with 1, Ctrl-C where nothing is half done with 130."""
    try:
        yield
    except InputError as error:
        sys.exit(_say(f"error: {error}", 2))
    except RunError as error:
        sys.exit(_say(f"error: {error}", 1))
    except KeyboardInterrupt:
        sys.exit(_say("stopped; nothing was written", 130))


def _say(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)
    return status
