"""What the decoding processes and the batches ask of a field: one named part of a sample.

A field's object is pickled into the decoding processes, so its class lives in a module, and that imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..crop import View

SIDE = -1  # in a shape: the side of the square that the view cuts; such a field lies in the image's plane
MOST_CLASSES = 1 << 24
_EXTENSION = re.compile(r"[^./\s][^/\s]*")


class Field(Protocol):
    """One named part of a sample: which member of the tar holds it, and how its bytes become a row of the batch.

    Attributes:
        names: extensions in the tar, in lower case; the first that a sample has is read: ("jpg", "png"), ("seg.png",).
        shape: of a row, in the memory shared with the trainer; SIDE in it is the side of the view's square. None:
            ragged, anything that can be pickled; the batch has a list of them.
        dtype: of a row.
        required: whether a sample without it is masked. Else its row is `missing`, where the field has this attribute
            (a number for a field with a shape), or zeros.
    """

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> tuple[int, ...] | None: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def required(self) -> bool: ...

    def decode(self, data: bytes, view: View | None, out: NDArray[Any] | None) -> Any:
        """The value of a row. Raises DecodeError for bytes that are none: the row is masked.

        Args:
            data: the member's content.
            view: what of the image the model sees; None: all of it, as `verify` asks.
            out: where the row lies in the batch. Return it when it is filled; any other value is copied there. None
                for a ragged field, for a single number, and without a view.
        """

    def describe(self) -> dict[str, Any]:
        """Plain values for `dataset.json`, `kind` among them, from which `from_description` makes the same field."""


class Shipped:
    """Of the fields that come with the engine, which are dataclasses: description and checks."""

    kind: ClassVar[str]
    missing: ClassVar[Any] = 0

    def describe(self) -> dict[str, Any]:
        """Plain values for `dataset.json`: the kind, the extensions, and what differs from the defaults."""
        found: dict[str, Any] = {"kind": self.kind}
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if one.name == "names" or value != one.default:
                found[one.name] = _plain(value)
        return found

    def possible(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of the rows (B, ...), kept from an earlier pass, `decode` can have made, (B,)."""
        return np.ones(len(rows), np.bool_)

    def __post_init__(self) -> None:
        names = getattr(self, "names", None)
        if (
            isinstance(names, str)
            or not names
            or not all(isinstance(n, str) and _EXTENSION.fullmatch(n) for n in names)
        ):
            raise InputError(
                f"a field's names are extensions in the tar, such as ('seg.png',), not {str(names)[:80]!r}"
            )
        object.__setattr__(self, "names", tuple(name.lower() for name in names))
        if not isinstance(getattr(self, "required", None), bool):
            raise InputError(f"a field's required is true or false, not {str(getattr(self, 'required', None))[:80]!r}")


def check_count(what: str, count: object, least: int = 1) -> None:
    """Raises InputError where `count` is no number of classes or values."""
    if not isinstance(count, int) or isinstance(count, bool) or not least <= count <= MOST_CLASSES:
        raise InputError(f"a field's {what} is a whole number from {least} to {MOST_CLASSES}, not {str(count)[:80]!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, np.dtype):
        return value.name
    return list(value) if isinstance(value, tuple) else value


def row_shape(field: Field, side: int) -> tuple[int, ...]:
    """The shape of a row where the view's square has `side` pixels."""
    return tuple(side if size == SIDE else size for size in field.shape or ())


def empty_row(field: Field) -> Any:
    """Of a sample that has no such member, or that could not be decoded: zeros where the field says nothing else."""
    return getattr(field, "missing", None if field.shape is None else 0)


def in_plane(field: Field) -> bool:
    """Whether its rows lie in the image's plane, and have a shape."""
    return SIDE in (field.shape or ())


def is_field(value: object) -> bool:
    return callable(getattr(value, "decode", None)) and all(
        hasattr(value, name) for name in ("names", "shape", "dtype", "required")
    )


Fields = Mapping[str, Field]
