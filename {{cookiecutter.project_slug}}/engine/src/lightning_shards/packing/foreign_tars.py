"""Where the tars that others packed lie, and to which split each belongs."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import braceexpand

from ..data.file_names import is_system_file
from ..data.remote import Remote
from ..errors import InputError
from .spelling import is_utf8, split_of


def find_tars(source: str) -> tuple[Path | str, list[str]]:
    """The folder or URL that all tars of `source` are in, and their names there, sorted."""
    if "{" in source:
        try:
            tars = list(braceexpand.braceexpand(source))
        except ValueError as error:
            raise InputError(f"{source} is no pattern of shards ({error})") from None
        place = tars[0].rpartition("/")[0] or "."
        if any((tar.rpartition("/")[0] or ".") != place for tar in tars):
            raise InputError(f"the shards of {source} lie in several folders; give the folder above them")
        found = [tar.rpartition("/")[2] for tar in tars]
    else:
        place, found = source, []
    root = place.rstrip("/") if "://" in place else Path(place).absolute()
    if isinstance(root, str):
        found, missing = found or Remote(root).tars(), list[str]()
    else:
        below = (tar.relative_to(root).as_posix() for tar in root.rglob("*.tar"))
        found = found or sorted(name for name in below if not is_system_file(name))
        missing = [name for name in found if not (root / name).is_file()]
    if not found or missing:
        what = f"there is no shard {missing[0]} in {root}" if missing else f"{source} holds no .tar file"
        raise InputError(f"{what}; give a folder of tars, or a brace pattern of them")
    if odd := [name for name in found if not is_utf8(name)]:
        raise InputError(f"{source} has a shard {odd[0]!a}, a name that is no UTF-8: rename it")
    return root, found


def chosen_split(name: str, patterns: Mapping[str, str]) -> str | None:
    """The split whose pattern takes the shard; None: none does."""
    return next((split for split, pattern in patterns.items() if fnmatch.fnmatch(name, pattern)), None)


def usual_split(name: str) -> str:
    """What a folder in a shard's path or a word in its name says; else train."""
    words = [*Path(name).parts[:-1], *re.split(r"[^A-Za-z]+", Path(name).stem)]  # test/000.tar, test-000.tar
    folders: Iterator[str] = filter(None, map(split_of, words))
    return next(folders, "train")
