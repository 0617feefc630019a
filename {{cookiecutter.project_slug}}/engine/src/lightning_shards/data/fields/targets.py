"""Fields of numbers: a class, several classes, or measurements."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..crop import View
from ..decode import DecodeError
from ..number_text import to_numbers, to_whole_number, to_whole_numbers
from .base import Shipped, check_count

_INT64, _FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)
_DAMAGE = (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError)


@dataclass(frozen=True)
class ClassIndex(Shipped):
    """A class number, 0..classes-1, in decimal digits: int64 (). Where it may be missing, -100: torch ignores it."""

    kind: ClassVar[str] = "class"
    dtype: ClassVar[np.dtype[Any]] = _INT64
    shape: ClassVar[tuple[int, ...]] = ()
    missing: ClassVar[int] = -100
    classes: int
    names: tuple[str, ...] = ("cls",)
    required: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("classes", self.classes)

    def decode(self, data: bytes, view: View | None, out: NDArray[Any] | None) -> int:
        try:
            number = to_whole_number(data)
        except ValueError:
            raise DecodeError(f"its class {data[:40]!r} is no number") from None
        if not 0 <= number < self.classes:
            raise DecodeError(f"its class {str(number)[:40]} is not in 0..{self.classes - 1}")
        return number

    def possible(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        right = (rows >= 0) & (rows < self.classes)
        return right if self.required else right | (rows == self.missing)


@dataclass(frozen=True)
class MultiHot(Shipped):
    """Any number of classes, as JSON `{"labels": [class numbers]}`: float32 (classes,) of 0 and 1.

    `key` None: the JSON is the list itself. Where it may be missing, all are NaN.
    """

    kind: ClassVar[str] = "labels"
    dtype: ClassVar[np.dtype[Any]] = _FLOAT32
    missing: ClassVar[float] = float("nan")
    classes: int
    names: tuple[str, ...] = ("json",)
    key: str | None = "labels"
    required: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("classes", self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.classes,)

    def decode(self, data: bytes, view: View | None, out: NDArray[Any] | None) -> NDArray[np.float32]:
        values = np.zeros(self.classes, np.float32)
        try:
            content = json.loads(data)
            labels = content if self.key is None else content[self.key]
            values[to_whole_numbers(labels)] = 1
            if min(labels, default=0) < 0:
                raise IndexError("a class number is negative")
        except _DAMAGE as error:
            raise DecodeError(f"its target cannot be read ({error})") from None
        return values

    def possible(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        right = ((rows == 0) | (rows == 1)).all(1)
        return right if self.required else right | np.isnan(rows).all(1)


@dataclass(frozen=True)
class Numbers(Shipped):
    """`count` finite numbers, as JSON `{"targets": [numbers]}`: float32 (count,).

    `key` None: the JSON is the list itself. One may stand without a list. Where they may be missing, all are NaN.
    """

    kind: ClassVar[str] = "numbers"
    dtype: ClassVar[np.dtype[Any]] = _FLOAT32
    missing: ClassVar[float] = float("nan")
    count: int
    names: tuple[str, ...] = ("json",)
    key: str | None = "targets"
    required: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("count", self.count)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count,)

    def decode(self, data: bytes, view: View | None, out: NDArray[Any] | None) -> NDArray[np.float32]:
        try:
            content = json.loads(data)
            values = to_numbers(content if self.key is None else content[self.key])
        except _DAMAGE as error:
            raise DecodeError(f"its target cannot be read ({error})") from None
        if values.shape == () and self.count == 1:
            values = values.reshape(1)
        if values.shape != (self.count,) or not np.isfinite(values).all():
            raise DecodeError(f"its target is not {self.count} finite numbers")
        return values

    def possible(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        right = np.isfinite(rows).all(1)
        return right if self.required else right | np.isnan(rows).all(1)
