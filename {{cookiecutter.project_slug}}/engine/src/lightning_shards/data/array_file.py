"""Values of fixed shape for each sample of a shard, in one file: made from its tar, and mapped into memory.

A file is NumPy's: `np.load(path, mmap_mode="r")` gives one record a sample. `there` in it is 1 where the other parts
hold what the tar has, and 2 where only the tar has it (a damaged sample, or one that has no room here). Behind the
records stands a JSON object that says what they were made from; a file that says something else, or that has another
length, is not read but made again.

While it is made the file is called `<name>.<machine>.partial`; its records with `there` 0 are not written yet. A
machine that starts anew may have lost some of the others, so it begins another.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import fsync_folder
from ..machine import boot_id, locked

MISSING, HERE, IN_TAR = 0, 1, 2  # values of `there`
MAGIC_BYTES = 4096  # more than any header has
MOST_JSON = 1 << 24
Made = Mapping[str, Any]  # what the records were made from: plain values


def record_type(parts: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> np.dtype[Any]:
    """The type of a record: `parts` (dtype and shape of each), then `there`, which is written last."""
    return np.dtype([*((name, *about) for name, about in parts.items()), ("there", np.uint8)])


class ArrayFile:
    """The records of one shard, mapped.

    Attributes:
        rows: uint8 (N, bytes of a record).
        there: uint8 (N,), a copy, as it was when the file was opened.
        whole: whether all samples are in it.
    """

    def __init__(self, path: Path, rows: NDArray[np.uint8], in_tar: list[int] | None) -> None:
        self.path, self.rows = path, rows
        self.there = rows[:, -1].copy() if in_tar is None else np.full(len(rows), HERE, np.uint8)
        self.there[in_tar or []] = IN_TAR
        self.whole = in_tar == []

    @classmethod
    def open(cls, path: Path, record: np.dtype[Any], samples: int, made: Made) -> ArrayFile | None:
        """None where there is no such file, or where it was made from something else, is cut short or damaged."""
        try:
            with path.open("rb") as file:
                begin, size = _begin(file.read(MAGIC_BYTES), record, samples), os.fstat(file.fileno()).st_size
                end = begin + samples * record.itemsize
                if not 0 < size - end <= MOST_JSON:
                    return None
                said = _description(file.fileno(), end)
                in_tar = said.pop("in_tar", None)  # of a file that is finished; reading `there` would read all of it
                if said != dict(made):
                    return None
                content = mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ)
                rows = np.frombuffer(content, np.uint8, end - begin, begin).reshape(samples, record.itemsize)
                return cls(path, rows, in_tar)
        except (OSError, ValueError, TypeError, IndexError, AttributeError, RecursionError):
            return None


def place_while_made(path: Path) -> Path:
    """Where the file is made: of a shared disk, each machine has its own."""
    return path.with_name(f"{path.name}.{hashlib.sha256(boot_id().encode()).hexdigest()[:8]}.partial")


class PartialFile:
    """The file while it is made, by any number of processes of this machine.

    Raises OSError where it cannot be made; then nothing is left behind.
    """

    def __init__(self, path: Path, record: np.dtype[Any], samples: int, made: Made) -> None:
        self.path, self.record, self.samples, self.made = path, record, samples, made
        self.place, self._while_made = place_while_made(path), {**made, "boot": boot_id()}
        opened = left_behind(path, record, samples, made)
        if opened is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self._lock):
                opened = left_behind(path, record, samples, made) or self._new()
        self.written = opened
        self.begun = bool(opened.there.any())  # by an earlier process or pass
        self._begin = len(_header(record, samples))
        self._descriptor = os.open(self.place, os.O_RDWR | os.O_CLOEXEC)

    @property
    def _lock(self) -> Path:
        return self.path.with_name(f"{self.path.name}.lock")

    def _new(self) -> ArrayFile:
        temporary = self.place.with_name(f"{self.place.name}.{os.getpid()}.tmp")
        header, end = _header(self.record, self.samples), json.dumps(self._while_made).encode()
        room = len(header) + self.samples * self.record.itemsize
        try:
            with temporary.open("wb") as file:
                with suppress(AttributeError):  # macOS has none: there a full disk is found later
                    os.posix_fallocate(file.fileno(), 0, room + len(end))
                file.write(header)
                file.seek(room)
                file.write(end)
            temporary.replace(self.place)
        finally:
            temporary.unlink(missing_ok=True)
        opened = ArrayFile.open(self.place, self.record, self.samples, self._while_made)
        if opened is None:
            raise OSError(0, "is replaced by others", str(self.place))
        return opened

    def put(self, row: int, records: NDArray[Any]) -> None:
        """Write one record, or several in a row from `row` on, by one call. Raises OSError.

        A kill in the middle of it leaves whole records, and perhaps one whose `there`, its last byte, is still 0.
        """
        content = records.tobytes()
        if os.pwrite(self._descriptor, content, self._begin + row * self.record.itemsize) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.place))  # a disk nearly full
        self.written.there[row : row + records.size] = records["there"]

    def put_one(self, row: int, content: memoryview) -> None:
        """The same for one record that the tar need not be asked for, as its bytes."""
        if os.pwrite(self._descriptor, content, self._begin + row * self.record.itemsize) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.place))
        self.written.there[row] = HERE

    def leave(self, row: int) -> None:
        """Note that the tar alone has this sample. Raises OSError."""
        os.pwrite(self._descriptor, bytes([IN_TAR]), self._begin + (row + 1) * self.record.itemsize - 1)
        self.written.there[row] = IN_TAR

    def finish(self) -> bool:
        """Give the file its name, durably, where every record is written; whether that is done. Raises OSError."""
        if not self.written.rows[:, -1].all():
            return False
        with locked(self._lock):
            if self.place.exists() and os.path.samestat(self.place.stat(), os.fstat(self._descriptor)):
                end = self._begin + self.samples * self.record.itemsize
                in_tar = np.flatnonzero(self.written.rows[:, -1] == IN_TAR).tolist()
                said, before = json.dumps({**self.made, "in_tar": in_tar}).encode(), os.fstat(self._descriptor).st_size
                os.pwrite(self._descriptor, said.ljust(before - end), end)  # at no moment is there none
                os.fsync(self._descriptor)
                self.place.replace(self.path)
                for other in self.path.parent.glob(f"{glob.escape(self.path.name)}.*.partial"):
                    other.unlink(missing_ok=True)
                fsync_folder(self.path.parent)
        self._lock.unlink(missing_ok=True)
        return True

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            self.close()


def left_behind(path: Path, record: np.dtype[Any], samples: int, made: Made) -> ArrayFile | None:
    """What an earlier process of this machine has written of the file; None where there is nothing to go on with."""
    place = place_while_made(path)
    found = ArrayFile.open(place, record, samples, {**made, "boot": boot_id()})
    return found or ArrayFile.open(place, record, samples, made)  # whoever finished it was killed


def _header(record: np.dtype[Any], samples: int) -> bytes:
    """NumPy's header, version 1.0, of so many records."""
    text = repr({"descr": record.descr, "fortran_order": False, "shape": (samples,)})
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin1")


def _begin(head: bytes, record: np.dtype[Any], samples: int) -> int:
    """Where the records begin. Raises ValueError for a header of something else."""
    header = _header(record, samples)
    if not head.startswith(header):
        raise ValueError("has another header")
    return len(header)


def _description(descriptor: int, end: int) -> Any:
    """What is behind the records. Raises ValueError where that is no JSON."""
    return json.loads(os.pread(descriptor, MOST_JSON, end))
