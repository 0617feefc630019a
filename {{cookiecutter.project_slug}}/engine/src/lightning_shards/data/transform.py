"""A transform: the team's own function, which changes one decoded sample in place, in the decoding processes.

Its only chance is the generator that it is handed: keyed by the sample's seed, so that a sample gets the same pixels
whoever decodes it. Python's and NumPy's own generators would differ between processes, and nobody could tell.
"""

from __future__ import annotations

import pickle
import pickletools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .decode import DecodeError
from .fields.base import Fields

Transform = Callable[[dict[str, Any], np.random.Generator], None]
RAISED = "the transform raised"
_STREAM = 0x7472616E73666F72  # second half of the key: apart from every other use of a sample's seed

_of_thread = threading.local()


def generator(seed: int) -> np.random.Generator:
    """This thread's generator, as new for a sample's seed: Philox, keyed anew in a fifth of the time of another."""
    state = getattr(_of_thread, "state", None)
    if state is None:
        _of_thread.generator = np.random.Generator(np.random.Philox(0))
        state = _of_thread.state = _of_thread.generator.bit_generator.state
        state["state"]["counter"][:] = 0
        state |= {"buffer_pos": 4, "has_uint32": 0, "uinteger": 0}
    state["state"]["key"][:] = seed & 0xFFFFFFFFFFFFFFFF, _STREAM
    _of_thread.generator.bit_generator.state = state
    return _of_thread.generator  # type: ignore[no-any-return]


def apply(transform: Transform, sample: dict[str, Any], fields: Fields, seed: int) -> None:
    """Change `sample`, the values of a row by field; what is replaced must have the field's shape and dtype.

    Raises DecodeError where the transform raises, and InputError where it gives something else than the field.
    """
    before = dict(sample)
    try:
        transform(sample, generator(seed))
    except Exception as error:
        failed = DecodeError(f"{RAISED} {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        failed.transform = True
        raise failed from None
    if sample.keys() != before.keys():
        other = next(iter(sample.keys() ^ before.keys()))
        raise InputError(f"the transform adds or removes {other!r}: a sample keeps its fields, {', '.join(before)}")
    for name, value in sample.items():
        if value is not before[name] and fields[name].shape is not None:
            _check(name, np.asarray(value), np.asarray(before[name]), isinstance(value, int | float))


def _check(name: str, value: NDArray[Any], before: NDArray[Any], plain: bool) -> None:
    fits = np.can_cast(value.dtype, before.dtype, "same_kind") if plain else value.dtype == before.dtype
    if value.shape != before.shape or not fits:
        raise InputError(
            f"the transform makes {name!r} {value.dtype} {value.shape}, but the batch has room for"
            f" {before.dtype} {before.shape}: keep its shape and dtype"
        )


def check_portable(what: str, value: object) -> None:
    """Raises InputError where the decoding processes could not be given `value`, a transform or a field.

    They import it from its module: a lambda or a function within a function has no name there, and `__main__`, where
    a script's and a notebook's own functions live, is another module in them.
    """
    how = "write it in a module of its own and import it from there"
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if "<lambda>" in name:
        raise InputError(f"{what} is a lambda, which other processes cannot import: {how}, as a function")
    try:
        content = pickle.dumps(value)
    except Exception as error:
        raise InputError(
            f"{what} ({name}) cannot be handed to other processes ({' '.join(str(error).split())[:160]}): {how}"
        ) from None
    if any(argument == "__main__" or str(argument).startswith("__main__ ") for _, argument, _ in _strings(content)):
        raise InputError(f"{what} ({name}) lives in __main__, which other processes cannot import: {how}")


def _strings(content: bytes) -> Any:
    return ((code, argument, at) for code, argument, at in pickletools.genops(content) if isinstance(argument, str))
