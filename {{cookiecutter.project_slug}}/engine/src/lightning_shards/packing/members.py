"""What all members of a field have in common, seen one by one: enough to describe it. For `pack` and `adopt` alike."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..data.decode import DecodeError, decode_mask
from ..data.fields import Array, Boxes, Bytes, ClassIndex, Field, Image, Json, Mask, MultiHot, Numbers, Text
from ..data.fields.base import MOST_CLASSES
from ..data.fields.free import read_npy
from ..data.fields.plane import IGNORED
from ..data.number_text import to_numbers, to_whole_number
from ..errors import InputError

LAYOUTS = {"boxes": "xyxy", "boxes_xywh": "xywh"}
MOST_UNSEEN = 10_000  # class numbers that no sample has
MOST_FORMS = 32  # of arrays: more say no more
Forms = dict[str, list[Any]]  # a class, a count or an array's type and shape -> [samples, the first one's key]


def forms_of(kind: str, data: bytes, key: str | None = None) -> list[str]:
    """The classes in a member, or how many numbers it has, or its type and shape; `key` as fields have it.

    Raises DecodeError, ValueError or TypeError for bytes that are none of this kind.
    """
    if kind == "array":
        array = read_npy(data)
        return [f"{array.dtype.name} {','.join(map(str, array.shape))}"]
    if kind == "mask":
        return [str(number) for number in np.flatnonzero(np.bincount(decode_mask(data).ravel())).tolist()]
    return [str(number) for number in _class_numbers(kind, data, key)]


def _class_numbers(kind: str, data: bytes, key: str | None) -> Sequence[int]:
    found: Any
    if kind == "class":
        found = [to_whole_number(data)]
    elif kind in LAYOUTS:
        found = Boxes(MOST_CLASSES, layout=LAYOUTS[kind]).decode(data, None, None)["labels"].tolist()
    else:
        content = json.loads(data)
        content = content if key is None else content[key]
        found = content if kind == "labels" else [_how_many(content)]
    if not all(type(number) is int and 0 <= number < 1 << 31 for number in found):
        raise ValueError("is no class number")
    return found  # type: ignore[no-any-return]


def _how_many(content: Any) -> int:
    """Numbers in a list, or one alone; finite ones, as `Numbers` wants them."""
    found = to_numbers(content, np.float64)
    if found.ndim > 1 or not np.all(np.abs(found) <= np.finfo(np.float32).max):
        raise ValueError("is no list of finite numbers")
    return found.size


TO_SEE = ("class", "labels", "numbers", "mask", "boxes", "boxes_xywh", "array")  # kinds of which forms say anything
ALWAYS_SEEN = ("class", "numbers", "mask", "array")  # of which any member has a form
NOT_OF_THIS_KIND = (DecodeError, ValueError, KeyError, TypeError, OverflowError, RecursionError)


def add_forms(forms: Forms, more: Sequence[str] | Mapping[str, Sequence[Any]], where: str = "", most: int = 0) -> None:
    """Count a sample's forms, or another part's; `where` names the sample, `most` is how many are told apart."""
    for form in more:
        if most and len(forms) >= most and form not in forms:
            continue
        count, first = more[form] if isinstance(more, Mapping) else (1, where)
        forms.setdefault(form, [0, first])[0] += count


def width(forms: Forms, known: int = 0) -> int:
    """Classes needed, `known` or more. Raises InputError for a class number far above all others: it decides the size
    of nothing."""
    numbers = {int(form): first for form, (_, first) in forms.items()}
    for lower, number in enumerate(sorted(numbers)):
        if number >= max(known, MOST_UNSEEN + 100 * lower):
            raise InputError(
                f"{numbers[number]} has the class {number:,}, and only {lower} classes are below it: mend or remove it"
            )
    return max(known, max(numbers, default=-1) + 1)


def usual(forms: Forms) -> int:
    """How many numbers most samples have."""
    return int(max(forms, key=lambda form: forms[form][0], default="1"))


def describe(name: str, kind: str, names: Sequence[str], required: bool, forms: Forms, classes: int = 0) -> Field:
    """The field of members with the extensions `names`; `classes` are those known beforehand. Raises InputError."""
    settings: dict[str, Any] = {"names": tuple(names), "required": required}
    simple: dict[str, Callable[..., Field]] = {"text": Text, "json": Json, "image": Image, "bytes": Bytes}
    if kind in simple:
        return simple[kind](**settings)
    if kind == "array":
        return _array(forms, settings)
    if kind == "numbers":
        return Numbers(usual(forms), key=None, **settings)
    if kind == "mask":
        seen = {int(form) for form in forms}
        if IGNORED in seen and not seen - {0, IGNORED}:
            raise InputError(
                f"the masks of {name!r} hold no numbers but 0 and 255, and 255 counts nowhere: save the class as 1"
            )
        return Mask(max(classes, max(seen - {IGNORED}, default=0) + 1), **settings)
    settings["classes"] = max(1, width(forms, classes))
    if kind in LAYOUTS:
        return Boxes(layout=LAYOUTS[kind], **settings)
    if kind not in ("class", "labels"):
        raise ValueError(f"there is no kind {kind!r}")
    return ClassIndex(**settings) if kind == "class" else MultiHot(key=None, **settings)


def _array(forms: Forms, settings: Mapping[str, Any]) -> Field:
    """Of the type that all have, else float32; of the shape that all have, else ragged."""
    types, shapes = zip(*(form.split(" ") for form in forms), strict=True) if forms else ((), ())
    dtype = types[0] if len(set(types)) == 1 and types[0] not in ("float96", "float128") else "float32"
    shape = tuple(int(size) for size in shapes[0].split(",") if size) if len(set(shapes)) == 1 else None
    if shape is not None and math.prod(shape) > MOST_CLASSES:  # too much for memory that is shared
        shape = None
    return Array(shape=shape, dtype=np.dtype(dtype), **settings)
