"""The arrays in the user's cache: those that were used longest ago make room for others."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..machine import cache_folder


def cached_arrays() -> Path:
    """The folder."""
    return cache_folder() / "arrays"


def used(path: Path) -> None:
    """Note that an array is used, where it lies in the cache."""
    if path.parent == cached_arrays():
        with suppress(OSError):
            os.utime(path)


def make_room(path: Path, name: str, needed: int, limit: int) -> None:
    """Before the array `path` of `needed` bytes is written into the cache: leave `limit` bytes there with it at most.

    Only arrays with that name in theirs go. They are made anew if need be; who reads one at the moment keeps what is
    mapped.
    """
    found = list[tuple[float, int, Path]]()
    with suppress(OSError):
        for entry in os.scandir(path.parent):
            if f".{name}-" not in entry.name or entry.name.startswith(path.name):  # begun before
                continue
            with suppress(OSError):  # another process has removed it
                about = entry.stat()
                found.append((about.st_mtime, about.st_size, Path(entry.path)))
    total = needed + sum(size for _, size, _ in found)
    for _, size, oldest in sorted(found):
        if total <= limit:
            return
        with suppress(OSError):
            oldest.unlink()
        total -= size
