"""What a `dataset.json` may say, whoever wrote it: each value of its type and within its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from ..terminal import printable

MOST_SAMPLES = 1 << 53  # ids stay exact as floats
MOST_BYTES = 1 << 62
LONGEST_NAME = 4096  # characters


def check_content(content: Any) -> None:
    """Raise ValueError for the first value that cannot be, with its name."""
    _need(isinstance(content, dict), "it is no object")
    _need(isinstance(content.get("task"), str), "task is no text")
    targets = content.get("targets")
    _need(isinstance(targets, list) and all(isinstance(name, str) for name in targets), "targets are no list of texts")
    for name in targets:
        _need(_is_name(name), f"a target cannot be printed, {name[:80]!a}")
    splits, fields = content.get("splits"), content.get("fields", {})
    for what, found in (("splits", splits), ("fields", fields), ("packed", content.get("packed"))):
        _need(isinstance(found, dict) and all(map(_is_name, found)), f"{what} is no object with names")
    _need(all(isinstance(about, dict) for about in fields.values()), "a field is described by no object")
    place = content.get("shards_at", ".")
    _need(isinstance(place, str) and _is_name(place), "shards_at is no folder or URL")
    names: set[str] = set()
    for split, shards in splits.items():
        _need(isinstance(shards, list), f"the shards of {split} are no list")
        for shard in shards:
            _check_shard(shard, split)
            _need(shard["name"] not in names, f"the shard {shard['name']} is there twice")
            names.add(shard["name"])
        _need(sum(shard["samples"] for shard in shards) < MOST_SAMPLES, f"{split} has too many samples")


def _check_shard(shard: Any, split: str) -> None:
    known = isinstance(shard, Mapping) and sorted(shard) == ["bytes", "name", "samples", "sha256"]
    _need(known, f"a shard of {split} has no name, samples, bytes and sha256, or more than these")
    name = shard["name"]
    _need(isinstance(name, str) and _is_name(name), f"the name of a shard of {split} is none")
    path = PurePosixPath(name)
    _need(not path.is_absolute() and ".." not in path.parts, f"the shard {name} is outside the dataset's folder")
    for what, most in (("samples", MOST_SAMPLES), ("bytes", MOST_BYTES)):
        value = shard[what]
        whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < most
        _need(whole, f"{what} of {name} are {str(value)[:80]!a}")
    _need(isinstance(shard["sha256"], str) and _is_name(shard["sha256"] or "none"), f"sha256 of {name} is no checksum")


def _is_name(name: str) -> bool:
    return 0 < len(name) <= LONGEST_NAME and printable(name) == name


def _need(holds: bool, why: str) -> None:
    if not holds:
        raise ValueError(why)
