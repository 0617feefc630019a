"""Structured damage: a document in which one value is another than it should be, is missing, or is there twice."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

CODES = "a\x1b[2J\x1b]0;b\x07\r\n\u202ec\x00\ud800"
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 0.5, -2.5, 1e308, 10**30, -(10**400), float("inf"), float("nan")),
    *("", "x", "1", "x" * 200_000, CODES, "../../x", "/etc/passwd", "os.system", "\ud800"),
    *([], {}, [[]], [None], {"x": {}}, {"": None}, [1, "a"], [[1, 2], [3]], {CODES: CODES}, [CODES]),
]


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is a value in a document: keys and numbers on the way to it; of a list its first few."""
    if place:
        yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, one in inner:
        yield from _places(one, (*place, key))


def _holder(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        document = document[key]
    return document


@st.composite
def damaged(draw: st.DrawFn, document: Any, least: int = 1) -> Any:
    """The document with one to three such damages; it itself stays as it is."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(least, 3))):
        places = list(_places(document))
        if not places:
            break
        place = draw(st.sampled_from(places))
        holder, key = _holder(document, place), place[-1]
        what = draw(st.sampled_from(["value", "value", "value", "gone", "more", "of another place"]))
        if what == "value":
            holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif what == "gone":
            del holder[key]
        elif what == "more" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif what == "more":
            holder[draw(st.sampled_from(["x", CODES, 5]))] = copy.deepcopy(holder[key])
        else:
            other = draw(st.sampled_from(places))
            holder[key] = copy.deepcopy(_holder(document, other)[other[-1]])
    return document
