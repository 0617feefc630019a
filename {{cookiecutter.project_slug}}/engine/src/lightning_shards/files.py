"""Writing files so that after a kill or a power cut there is the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .errors import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where its file system can fsync a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` at the end: after a kill or a power cut there is the old one or
    the new one, never half of one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError in here is one of writing `path`: RunError says so."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} could not be written ({error.strerror})") from None


def save_array(path: Path, array: NDArray[Any]) -> None:
    """np.save by plain writes, so that the OSError of a full disk has its number: numpy's own for files has none."""
    import numpy as np

    with path.open("wb") as file:
        np.save(SimpleNamespace(write=file.write), array)


def append(path: Path, content: bytes) -> None:
    """Add to the end of `path`, all of it or nothing. Raises OSError."""
    with path.open("ab", buffering=0) as file:
        append_to(file, content)


def append_to(file: FileIO, content: bytes) -> None:
    """The same for an open file, which has no buffer: what is in one would be written, and fail, once more later."""
    before = os.fstat(file.fileno()).st_size
    try:
        while content:
            content = content[file.write(content) :]
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), before)
        raise


def write_durably(path: Path, content: bytes) -> None:
    """Write `path`, all of it or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
