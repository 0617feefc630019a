"""Whether what a checkpoint says of a state is of the same kind as the state that it is to replace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def unlike(own: Any, saved: Any, name: str, more: bool = True) -> str:
    """What of `saved` cannot take the place of `own`, by its name; empty where all of it can.

    Numbers are alike, whatever their type, and what is None or empty now may have become anything.

    Args:
        more: `saved` may have entries that `own` lacks.
    """
    if own is None or (own is saved):
        return ""
    if isinstance(own, Mapping):
        if not isinstance(saved, Mapping):
            return name
        if not all(isinstance(key, str) for key in own):  # counts by number, which settings decide
            return ""
        if own and not more and (others := saved.keys() - own.keys()):
            return f"{name}.{min(map(str, others))}"
        parts = (unlike(own[key], saved.get(key), f"{name}.{key}", more) for key in own)
    elif isinstance(own, (list, tuple)):
        if not isinstance(saved, (list, tuple)) or (own and len(own) != len(saved)):
            return name
        parts = (unlike(a, b, f"{name}.{place}", more) for place, (a, b) in enumerate(zip(own, saved, strict=False)))
    else:
        return "" if _shape(own) == _shape(saved) else name
    return next((part for part in parts if part), "")


def _shape(value: Any) -> Any:
    """Of a tensor of several numbers its shape, of one number an empty one, of anything else its type."""
    if isinstance(value, Tensor):
        return tuple(value.shape) if value.numel() != 1 or value.ndim > 1 else ()
    return () if isinstance(value, (bool, int, float)) else type(value)
