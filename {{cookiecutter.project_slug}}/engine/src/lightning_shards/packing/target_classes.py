"""The classes of masks' pixels and of boxes: their names, and targets that hold numbers which are none of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..data.dataset import TARGET_FIELDS
from ..data.fields import Boxes, Field, Mask
from ..data.fields.plane import IGNORED
from ..errors import InputError
from .members import Forms


def name_classes(about: dict[str, Any], names: Sequence[str]) -> None:
    """Write the names of the classes 0, 1, 2 ... into what the listing says. Raises InputError for too few or many."""
    if about["task"] == "segmentation" and names and not 2 <= len(names) <= IGNORED:
        raise InputError(f"--names has {len(names)} names: masks have 2 to {IGNORED} classes, the background is one")
    if names and about["names"]:
        raise InputError("--names is for classes that are numbers: the annotations have names")
    about["names"] = list(names) or about["names"]
    for field in about["fields"]:
        if field["name"] == TARGET_FIELDS[about["task"]]:
            field["classes"] = about["names"]


def check_classes_of(where: str, found: Iterable[str], count: int, ignored: int | None) -> None:
    """Raise InputError where a target holds the number of a class that has no name.

    Args:
        where: which target it is, for the sentence.
        found: all class numbers that it holds.
        count: of the classes.
        ignored: the number that stands for none; None: there is no such.
    """
    for number in map(int, found):
        if number >= count and number != ignored:
            none = "" if ignored is None else f" ({ignored} stands for pixels that count nowhere)"
            raise InputError(f"{where} has the class {number}, and --names has names for 0 to {count - 1}{none}")


def class_names(target: Field, names: Sequence[str] | None) -> list[str]:
    """The names that were given, else the numbers.

    Raises InputError for fewer names than classes, and where all masks hold one class only.
    """
    assert isinstance(target, Mask | Boxes)
    if names and len(names) < target.classes:
        raise InputError(f"{len(names)} names are too few: the {target.kind.rstrip('s') + 's'} need {target.classes}")
    if not names and isinstance(target, Mask) and target.classes < 2:
        raise InputError("the masks hold one class only, 0; two or more are needed, the background is one")
    return list(names or ()) or [str(number) for number in range(target.classes)]


def times_of_class(forms: Mapping[str, Iterable[Forms]], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Of each split, how many masks have pixels of each class, or how many boxes are of it.

    Args:
        forms: what the targets of each split's shards hold.
    """
    found = {split: dict.fromkeys(names, 0) for split in forms}
    for split, parts in forms.items():
        for number, (count, _) in ((int(form), entry) for part in parts for form, entry in part.items()):
            if number < len(names):
                found[split][names[number]] += count
    return found
