"""The checkpoints in a run's folder: which is whole, which is the newest, which has the best weights."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from ..entry import rank
from ..errors import InputError


def newest(folder: Path) -> Path | None:
    """The checkpoint in `folder` to go on from, the first whole one of `last.ckpt` and the ones before it; None: none.

    Says which are passed over. Raises InputError where there are some and all are damaged.
    """
    last = folder / "last.ckpt"
    earlier = sorted(folder.glob("step-*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    damaged: set[int] = set()
    for path in [last, *earlier] if last.exists() else earlier:
        if path.stat().st_ino in damaged:
            continue
        if is_whole(path):
            return path
        damaged.add(path.stat().st_ino)
        if not rank():
            print(f"{path} is damaged; going on from the one before it", file=sys.stderr)
    if damaged:
        raise InputError(f"{folder} has no checkpoint that can be read: restore one, or start a new run")
    return None


def is_whole(checkpoint: Path) -> bool:
    """Whether a file that torch.save wrote, a zip archive, has all its parts and their checksums are right."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except Exception:  # whatever a damaged header makes of it
        return False
