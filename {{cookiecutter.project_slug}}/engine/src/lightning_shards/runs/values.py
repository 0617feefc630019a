"""Values out of files that anybody may have written, as they can be shown and reckoned with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..terminal import printable

LONGEST_TEXT = 2_000  # characters
LARGEST_NUMBER = 1e18


def plain(value: Any, longest: int = LONGEST_TEXT) -> Any:
    """The same value with texts that can be shown: without a terminal's codes, and not without end."""
    if isinstance(value, str):
        return printable(value if len(value) <= longest else f"{value[:longest]} ...")
    if isinstance(value, dict):
        return {plain(str(name)): plain(inner, longest) for name, inner in value.items()}
    return [plain(inner, longest) for inner in value] if isinstance(value, (list, tuple, set)) else value


def is_number(value: Any) -> bool:
    """Whether it is one, and not without measure; NaN is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER


def is_count(value: Any) -> bool:
    return isinstance(value, int) and is_number(value) and value >= 0


def flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by their dotted names."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
