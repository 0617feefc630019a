"""Checkpoints as files: each is written beside its place, fsynced and renamed, so that after a kill, or where the disk
is full, there is the old one or the new one, and never half of one.
"""

from __future__ import annotations

import errno
import os
import shutil
import textwrap
import traceback
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.trainer.connectors import checkpoint_connector
from torch.optim import Optimizer

from ..errors import InputError, RunError
from ..files import fsync_folder, replacing

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class Unwritten(RunError):
    """A file that the training cannot do without could not be written."""


def unwritten(error: BaseException, path: object = None) -> Unwritten | None:
    """The sentence for an error that came of a full disk, or for any error of writing `path`; None for others.

    torch's writer, which is in the middle of a file then, puts an error of its own over the operating system's.
    """
    if isinstance(error, (InputError, RunError)):
        return error if isinstance(error, Unwritten) else None
    cause: BaseException | None = error
    while cause and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, OSError) or (path is None and cause.errno not in _NO_ROOM):
        return None
    return Unwritten(f"{path or cause.filename or 'a file'} could not be written ({cause.strerror or cause})")


def unfit(error: BaseException, first_step: bool) -> str:
    """Why Lightning could not go on from a checkpoint that it had read; empty for an error that is of something else.

    What a checkpoint holds beside the weights and the place (the state of optimizers, loops, callbacks) is taken over
    by many hands, each of which stumbles in its own way over what somebody else has put there. An optimizer may do so
    at its first step only.

    Args:
        first_step: the training has gone on from a checkpoint, and has made no step since.
    """
    if isinstance(error, (InputError, RunError, KeyboardInterrupt, SystemExit)) or unwritten(error):
        return ""
    in_step = False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module, function = str(frame.f_globals.get("__name__")), frame.f_code.co_name
        restores = module == checkpoint_connector.__name__ and function.startswith(("restore", "resume", "_restore"))
        steps = function == "step" and isinstance(frame.f_locals.get("self"), Optimizer)
        in_step = steps or (in_step and not module.startswith("lightning."))  # which the step calls for the gradients
        if restores:
            break
    else:
        if not (in_step and first_step) or isinstance(error, torch.OutOfMemoryError):
            return ""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes each checkpoint beside its place, fsyncs and renames it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            if sentence := unwritten(error, path):
                raise sentence from None
            raise

    def remove_checkpoint(self, path: str | Path) -> None:
        """Only a file that a checkpoint may be: which ones to remove, a ModelCheckpoint knows from the run itself."""
        if Path(path).suffix == ".ckpt" and Path(path).is_file():
            Path(path).unlink()


def add_name(path: Path, name: str) -> None:
    """Give the file `path` a second name in its folder; a copy has it where there are no hard links."""
    new = path.with_name(name)
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(new)
        temporary.unlink(missing_ok=True)  # renaming one name of a file onto another of its names does nothing
        fsync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritten(error, new) or error from None
