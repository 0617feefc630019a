"""Fields that are text, JSON, arrays or just bytes: handed over as they are, whatever the view."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..crop import View
from ..decode import DecodeError
from .base import MOST_CLASSES, Shipped

_OBJECT, _FLOAT32 = np.dtype(object), np.dtype(np.float32)
# NumPy's own reader parses headers by `ast`, in which CPython 3.11 fails now and then where threads take turns
# (gh-106905); numbers and truth values only, so there is no pickle
_NPY = re.compile(
    rb"\{'descr': '([<>|=]?[biuf?]\d*)', 'fortran_order': (True|False), "
    rb"'shape': \((\d{0,18}(?:, ?\d{1,18})*,?)\), \} *\n"
)


@dataclass(frozen=True)
class Text(Shipped):
    """UTF-8: a str a row, in a list."""

    kind: ClassVar[str] = "text"
    dtype: ClassVar[np.dtype[Any]] = _OBJECT
    shape: ClassVar[None] = None
    missing: ClassVar[str] = ""
    names: tuple[str, ...] = ("txt",)
    required: bool = True

    def decode(self, data: bytes, view: View | None, out: NDArray[Any] | None) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"its text is not UTF-8 ({error.reason} at byte {error.start})") from None


@dataclass(frozen=True)
class Json(Shipped):
    """Any JSON: what Python's json makes of it, in a list; None where it may be missing."""

    kind: ClassVar[str] = "json"
    dtype: ClassVar[np.dtype[Any]] = _OBJECT
    shape: ClassVar[None] = None
    missing: ClassVar[None] = None
    names: tuple[str, ...] = ("json",)
    required: bool = True

    def decode(self, data: bytes, view: View | None, out: NDArray[Any] | None) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"its JSON cannot be read ({error})") from None


@dataclass(frozen=True)
class Bytes(Shipped):
    """A member's bytes as they are, such as a sound: in a list; none where it may be missing."""

    kind: ClassVar[str] = "bytes"
    dtype: ClassVar[np.dtype[Any]] = _OBJECT
    shape: ClassVar[None] = None
    missing: ClassVar[bytes] = b""
    names: tuple[str, ...] = ("bin",)
    required: bool = True

    def decode(self, data: bytes, view: View | None, out: NDArray[Any] | None) -> bytes:
        return data


@dataclass(frozen=True)
class Array(Shipped):
    """A NumPy file (.npy) of numbers: rows of `shape`, or with None arrays of any shape in a list.

    What is stored is converted to `dtype` where that is of the same kind (float64 to float32, not to int64).
    """

    kind: ClassVar[str] = "array"
    names: tuple[str, ...] = ("npy",)
    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] = _FLOAT32
    required: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            dtype = np.dtype(self.dtype)
            shape = None if self.shape is None else tuple(int(size) for size in self.shape)
        except (TypeError, ValueError):
            raise InputError(
                f"an array's shape is a list of sizes and its dtype a name such as float32, not"
                f" {str(self.shape)[:80]} and {str(self.dtype)[:80]!r}"
            ) from None
        if dtype.kind not in "biuf":
            raise InputError(f"an array holds numbers or truth values, not {str(dtype)[:80]!r}")
        if shape is not None and (any(size < 0 for size in shape) or math.prod(shape) > MOST_CLASSES):
            raise InputError(f"an array's shape {str(shape)[:80]} is negative, or more than {MOST_CLASSES} numbers")
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", shape)

    @property
    def missing(self) -> Any:  # type: ignore[override]
        return np.zeros(0, self.dtype) if self.shape is None else 0

    def decode(self, data: bytes, view: View | None, out: NDArray[Any] | None) -> NDArray[Any]:
        array = read_npy(data)
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise DecodeError(f"its array holds {array.dtype}, not {self.dtype}")
        if self.shape is not None and array.shape != self.shape:
            raise DecodeError(f"its array has the shape {array.shape}, not {self.shape}")
        return array.astype(self.dtype)


def read_npy(data: bytes) -> NDArray[Any]:
    """The array in an .npy file, which reads `data`. Raises DecodeError."""
    start = 10 if data[6:7] == b"\x01" else 12
    found = _NPY.match(data, start) if data[:6] == b"\x93NUMPY" else None
    if not found:
        raise DecodeError("is no .npy file of numbers")
    try:
        shape = tuple(int(size) for size in found[3].split(b",") if size.strip())
        dtype = np.dtype(found[1].decode())
        content = memoryview(data)[found.end() :]
        if len(content) != math.prod(shape) * dtype.itemsize:
            raise ValueError("its size is not that of its header")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if found[2] == b"True" else "C")
    except (ValueError, TypeError) as error:
        raise DecodeError(f"its array cannot be read ({error})") from None
