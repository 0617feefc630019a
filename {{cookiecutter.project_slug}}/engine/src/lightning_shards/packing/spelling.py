"""Names as people write them: of classes and columns, which may look alike and differ, and of splits."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from ..errors import InputError

SPLITS = ("train", "val", "test")
_SYNONYMS = {
    "train": "train training trainings trn fit",
    "val": "val valid validation validate validating dev development eval evaluation",
    "test": "test testing tests tst holdout heldout",
}
_SPLIT_OF = {word: split for split, words in _SYNONYMS.items() for word in words.split()}
_AROUND = re.compile(r"^(?:images?|imgs?|data)|(?:images?|imgs?|pictures?|photos?|data(?:set)?|set|split)?\d*$")
# have no width and no meaning in a name: zero-width space, word joiner, byte order mark, soft hyphen
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))


@lru_cache(1 << 16)
def clean(name: str) -> str:
    """Without invisible differences: one Unicode form (NFC), single blanks, none at the ends, nothing of no width."""
    if not name.isascii():
        name = unicodedata.normalize("NFC", name).translate(_INVISIBLE)
    return " ".join(name.split())


@lru_cache(1 << 16)
def split_of(name: str) -> str | None:
    """The split that a folder or a cell names, such as `Training`, `dev`, `val2017`, `test_images`; or None."""
    word = re.sub(r"[\W_]+", "", clean(name)).lower()
    return _SPLIT_OF.get(word) or _SPLIT_OF.get(_AROUND.sub("", word))


def split_within(name: str) -> tuple[str, str] | None:
    """The split that a word in a longer name says, and the rest of the name: `seg_train` is (train, seg)."""
    words = re.split(r"[\W_\d]+", clean(name).lower())
    found = [word for word in words if word in _SPLIT_OF]
    rest = " ".join(word for word in words if word and word not in found)
    return (_SPLIT_OF[found[0]], rest) if len(found) == 1 else None


def is_utf8(name: str) -> bool:
    """False for a name of a file, or a cell, whose bytes are no UTF-8."""
    return name.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in name)


def sort_names(names: Iterable[str]) -> list[str]:
    """By name; by value where all are whole numbers."""
    found = list(names)
    return sorted(found, key=(lambda n: (int(n), n)) if all(n.isdecimal() and len(n) < 1000 for n in found) else None)


def check_classes(where: str, names: Iterable[str]) -> None:
    """Raises InputError for a class that cannot be printed, and for two that print alike."""
    alike: dict[str, str] = {}
    for name in names:
        if not is_utf8(name):
            raise InputError(f"{where} has the class {name!a}, which is no UTF-8: rename it, or save a table as UTF-8")
        bare = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
        if not bare.isprintable():
            raise InputError(f"{where} has the class {name!a}: rename it, so that it can be printed")
        if bare in alike:
            raise InputError(f"{where} has the classes {alike[bare]!a} and {name!a}, which look alike: rename one")
        alike[bare] = name


def read_names(file: Path) -> list[str]:
    """The names of classes in the lines of `file`. Raises InputError where it cannot be read or names none."""
    try:
        names = [clean(line) for line in file.read_text("utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--names {file} cannot be read ({error}): it must be UTF-8") from None
    if not names:
        raise InputError(f"--names {file} is empty: each line is the name of a class")
    if "" in names:
        raise InputError(f"--names {file} has an empty line {names.index('') + 1}: each line is the name of a class")
    check_classes(f"--names {file}", names)
    return names
