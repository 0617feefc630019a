"""The classes of a mask's pixels: their names, and masks that hold numbers which are none of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..data.fields import Field, Mask
from ..data.fields.plane import IGNORED
from ..errors import InputError
from .members import Forms


def name_classes(about: dict[str, Any], names: Sequence[str]) -> None:
    """Write the names of the classes 0, 1, 2 ... into what the listing says. Raises InputError for too few or many."""
    if names and not 2 <= len(names) <= IGNORED:
        raise InputError(f"--names has {len(names)} names: masks have 2 to {IGNORED} classes, the background is one")
    about["names"] = list(names)
    for field in about["fields"]:
        if field["name"] == "mask":
            field["classes"] = list(names)


def check_classes_of(path: str, found: Iterable[str], count: int) -> None:
    """Raise InputError where a mask holds the number of a class that has no name; `found` are all that it holds."""
    for number in map(int, found):
        if count <= number < IGNORED:
            raise InputError(
                f"the mask {path} has the class {number}, and --names has names for 0 to {count - 1}"
                f" ({IGNORED} stands for pixels that count nowhere)"
            )


def class_names(mask: Field, names: Sequence[str] | None) -> list[str]:
    """The names that were given, else the numbers.

    Raises InputError for fewer names than classes, and where all masks hold one class only.
    """
    assert isinstance(mask, Mask)
    if names and len(names) < mask.classes:
        raise InputError(f"{len(names)} names are too few: the masks need {mask.classes}")
    if not names and mask.classes < 2:
        raise InputError("the masks hold one class only, 0; two or more are needed, the background is one")
    return list(names or ()) or [str(number) for number in range(mask.classes)]


def images_with_class(forms: Mapping[str, Iterable[Forms]], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Of each split, how many images have pixels of each class; `forms` are what the masks of its shards hold."""
    found = {split: dict.fromkeys(names, 0) for split in forms}
    for split, parts in forms.items():
        for number, (count, _) in ((int(form), entry) for part in parts for form, entry in part.items()):
            if number < len(names):
                found[split][names[number]] += count
    return found
