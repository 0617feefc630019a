"""Numbers as files hold them; what Python alone takes for one (1_000, digits of other scripts) is none."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_whole_number(data: bytes) -> int:
    """The number in decimal digits. Raises ValueError for anything else."""
    if b"_" in data:
        raise ValueError(f"{data[:40]!r} is no number")
    return int(data)


def to_number(text: str | float) -> float:
    """The number in a cell. Raises ValueError for anything else."""
    if isinstance(text, str) and ("_" in text or not text.strip().isascii()):
        raise ValueError(f"{text[:40]!r} is no number")
    return float(text)


def to_whole_numbers(content: Any) -> NDArray[np.int64]:
    """The whole numbers in what JSON holds. Raises ValueError, TypeError or OverflowError for anything else."""
    return _of_kinds(content, "iuO", np.int64)


def to_numbers(content: Any, dtype: Any = np.float32) -> NDArray[Any]:
    """The numbers in what JSON holds, whole or not; the same errors."""
    return _of_kinds(content, "iufbO", dtype)


def _of_kinds(content: Any, kinds: str, dtype: Any) -> NDArray[Any]:
    found = np.array(content)
    if found.size and found.dtype.kind not in kinds:  # which NumPy would parse, or round
        raise ValueError(f"{str(content)[:80]} are no {'whole ' if dtype is np.int64 else ''}numbers")
    return np.array(content, dtype)
