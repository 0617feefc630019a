"""The checkpoints in a run's folder: which is whole, which is the newest, and where in the training each stands.

A checkpoint of ours has the place in the training under the key `lightning_shards`, as plain data, whatever the classes
of the model, the datamodule and the callbacks are called. By it, not by a file's name, it is known what a run can go on
from: files of other programs, and of other callbacks, have none.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..entry import rank
from ..errors import InputError
from ..machine import persistently
from ..terminal import say
from .values import is_count

KEY = "lightning_shards"
FORMAT = 1


def newest(folder: Path) -> Path | None:
    """The checkpoint in `folder` to go on from: `last.ckpt`, or of the whole ones that which saw the most; None: none.

    Says which are passed over. Raises InputError where there are some and none will do.
    """
    passed: dict[Path, str] = {}
    for path in _latest_first(folder):
        if any(path.samefile(other) for other in passed):  # a second name
            continue
        if not (reason := _unfit(path)):
            return path
        passed[path] = reason
        if not rank():
            say(f"{path} {reason}; looking for one before it", sys.stderr)
    foreign = next((path for path, reason in passed.items() if reason != _DAMAGED), None)
    if foreign:
        state(foreign)  # raises, with the reason
    if passed:
        raise InputError(f"{folder} has no checkpoint that can be read: restore one, or start a new run")
    return None


def _latest_first(folder: Path) -> Iterator[Path]:
    """`last.ckpt`, and then the others, read only where that will not do. A copied file's time says nothing."""
    files = {path for path in folder.glob("*.ckpt") if path.is_file()}
    last = folder / "last.ckpt"
    if last in files:
        yield last
    yield from sorted(files - {last}, key=lambda path: (_images_seen(path), path.name), reverse=True)


def _images_seen(checkpoint: Path) -> int:
    try:
        return int(state(checkpoint)["images_seen"])
    except InputError:
        return -1


_DAMAGED = "is damaged"


def _unfit(checkpoint: Path) -> str:
    """Why a run cannot go on from the file; empty where it can."""
    if not is_whole(checkpoint):
        return _DAMAGED
    try:
        state(checkpoint)
    except InputError:
        return "has no place in the training"
    return ""


def is_whole(checkpoint: Path) -> bool:
    """Whether a file that torch.save wrote, a zip archive, has all its parts and their checksums are right."""
    try:
        return persistently(lambda: _is_whole(checkpoint))
    except Exception:  # whatever a damaged header makes of it
        return False


def _is_whole(checkpoint: Path) -> bool:
    with zipfile.ZipFile(checkpoint) as archive:
        stored = all(part.compress_type == zipfile.ZIP_STORED for part in archive.infolist())  # no bomb
        return stored and archive.testzip() is None


def load(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds; tensors stay in the file until they are used. Raises InputError for any other file."""
    import torch  # takes seconds, which the commands without a model need not wait for

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a file of another kind makes of it; pickled objects are refused
        raise InputError(f"{checkpoint} cannot be read as a checkpoint ({type(error).__name__})") from None
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(f"{checkpoint} is no checkpoint of a training: it has no state_dict")
    return content


def _counts(found: dict[str, Any]) -> bool:
    return all(is_count(found.get(name)) for name in ("epoch", "position", "images_seen"))


def state(checkpoint: Path) -> dict[str, Any]:
    """The place in the training at which `checkpoint` stands. Raises InputError where it has none."""
    return state_in(load(checkpoint), checkpoint)


def state_in(content: dict[str, Any], name: object) -> dict[str, Any]:
    """The same for the content of the file `name`."""
    found = content.get(KEY)
    anew = f"start a new run from its weights with --model.weights {name}"
    states = all(isinstance(content.get(name), dict) for name in ("callbacks", "loops"))  # else Lightning skips them
    if not states or not isinstance(found, dict) or not isinstance(found.get("order"), dict) or not _counts(found):
        raise InputError(
            f"{name} does not say where in the training it stands: it is of an earlier version or of another program;"
            f" {anew}"
        )
    if found.get("format") != FORMAT:
        raise InputError(f"{name} has format {str(found.get('format'))[:80]!r}, this version reads {FORMAT}: {anew}")
    return found
