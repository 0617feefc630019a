"""The one reader of YAML: plain values alone, in bounded time and memory, whatever the text is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MOST_BYTES, MOST_LEVELS, MOST_NODES, LONGEST_SCALAR = 4 << 20, 100, 200_000, 1 << 16
LONGEST_NUMBER = 1_000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class BeyondMeasure(ValueError):
    """A text that may well be YAML, but is not read."""


def read_yaml(path: Path) -> Any:
    """The values in a YAML file. Raises OSError, or what `parse_yaml` does."""
    with path.open("rb") as file:
        return parse_yaml(file.read(MOST_BYTES + 1))


def parse_yaml(text: str | bytes) -> Any:
    """The values of a YAML text. Raises ValueError, in one line, for what is none, BeyondMeasure for too much of it."""
    if (b"\0" if isinstance(text, bytes) else "\0") in text:  # type: ignore[operator]
        raise ValueError("it is no text")
    if len(text) > MOST_BYTES:
        raise BeyondMeasure(f"it has more than {MOST_BYTES >> 20} MB")
    try:
        _measure(text)
        return yaml.load(text, _LOADER)  # a loader of plain values
    except (yaml.YAMLError, UnicodeError, OverflowError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _measure(text: str | bytes) -> None:
    """Raise BeyondMeasure for too many levels, or too many values once every alias is written out."""
    total, sizes, opened = 0, dict[Any, int](), []  # values: so far, of each anchor, of what is being read
    for event in yaml.parse(text, _LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"the alias {event.anchor!r} stands within itself, or for nothing")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) > LONGEST_SCALAR:
                raise BeyondMeasure(f"a value has more than {LONGEST_SCALAR} characters")
            if event.implicit[0] and len(event.value) > LONGEST_NUMBER and event.value.lstrip("+-")[:1].isdigit():
                raise BeyondMeasure(f"a number has more than {LONGEST_NUMBER} digits")
            total += 1
            sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            total += 1
            opened.append((event.anchor, total))
            sizes.pop(event.anchor, None)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            sizes[anchor] = total - before + 1
        if len(opened) > MOST_LEVELS:
            raise BeyondMeasure(f"it has more than {MOST_LEVELS} levels")
        if total > MOST_NODES:
            raise BeyondMeasure(f"it has more than {MOST_NODES} values, aliases written out")
