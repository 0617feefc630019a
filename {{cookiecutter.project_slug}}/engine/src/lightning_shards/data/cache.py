"""A node's copies of remote shards: each fetched once, checked, shared by all processes, bounded in bytes.

    <key>.tar, <key>.tar.index   a shard and its sidecar; the key hashes the shard's URL and its SHA-256 in dataset.json
    <key>.<random>.tmp           a download; from its start as long as what it will become, so that the room is taken
    <key>.lock, room.lock        held by who fetches this shard; by who makes room

Whoever reads or downloads a file holds a shared `flock` on it, which the kernel takes back when the process ends in
whatever way. What can be locked exclusively is therefore in nobody's use: that is deleted when room is wanted, left
behind downloads first, then shards by the time of their last use (the access time, set here). Bytes are counted as file
lengths, over all processes, and never exceed the capacity.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from .. import machine
from ..errors import InputError, RunError
from .dataset import Shard
from .remote import Remote
from .tar_index import ShardIndex

DAMAGED_TRIES = 3
DAY = 86_400  # seconds
PATIENCE = 1.0  # seconds that a reader waits for room before it asks others to let go
_OURS = re.compile(r"[0-9a-f]{32}\.(tar|[0-9a-f]{32}\.tmp)")


def footprint(shard: Shard) -> int:
    """Bytes that are set aside for a shard and its sidecar (of which 512 a sample are more than enough)."""
    return shard.bytes + 512 * shard.samples + 8192


class Cache:
    """Copies of the shards below `url`, for one `SampleReader`.

    Args:
        url: of the dataset.
        folder: on a local disk; made where it is missing; other datasets and processes may use it too.
        capacity: bytes that all files in `folder` may take; None: half of what is free there or taken by the cache.
    """

    def __init__(self, url: str, folder: Path, capacity: int | None = None) -> None:
        self.remote, self.folder = Remote(url), folder
        self.stop = self.remote.stop
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"data.cache: {folder} cannot be made ({error.strerror})") from None
        taken = sum(stat.st_size for stat in self._files().values())
        self.capacity = capacity or (shutil.disk_usage(folder).free + taken) // 2

    def check_capacity(self, reach: int, shards: Sequence[Shard], held_out: Sequence[Shard]) -> None:
        """Raise InputError if `reach` bytes of `shards`, with sidecars, and two shards of `held_out` do not fit."""
        needed = int(reach * max(footprint(shard) / shard.bytes for shard in shards)) + 1
        needed += 2 * max(map(footprint, held_out), default=0)
        if self.capacity < needed:
            raise InputError(
                f"data.cache_bytes: the {self.capacity} bytes of {self.folder} are too few for two windows of shards"
                f" and the batches in the making, which take up to {needed}; raise it, or lower data.window_bytes"
            )

    def open(self, shard: Shard, urgent: Callable[[], bool]) -> tuple[Path, int]:
        """The shard's copy, fetched if need be: its path, and a descriptor. It stays there until that is closed.

        `urgent` tells whether somebody waits for it: then others are asked to let go where there is no room.
        """
        key = hashlib.sha256(f"{self.remote.url}/{shard.name}\n{shard.sha256}".encode()).hexdigest()[:32]
        path = self.folder / f"{key}.tar"
        descriptor = self._hold(path, shard)
        if descriptor is None:
            try:
                with machine.locked(path.with_suffix(".lock"), self.stop.is_set):
                    descriptor = self._hold(path, shard)
                    if descriptor is None:
                        descriptor = self._fetch(shard, path, urgent)
            except BlockingIOError:
                raise CancelledError from None
        return path, descriptor

    def asked_to_let_go(self) -> bool:
        """Whether in the last seconds a process of this node had to wait for room."""
        try:
            since = time.time() - (self.folder / "asked").stat().st_mtime
            return abs(since) < 2 + PATIENCE  # the clock may have been put back
        except FileNotFoundError:
            return False

    def _hold(self, path: Path, shard: Shard) -> int | None:
        """A descriptor that keeps `path` where it is, or None where there is no whole copy."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        machine.lock(descriptor, shared=True)
        stat = os.fstat(descriptor)
        if stat.st_nlink and stat.st_size == shard.bytes:
            os.utime(descriptor, ns=(time.time_ns(), stat.st_mtime_ns))
            return descriptor
        os.close(descriptor)  # deleted while it was opened, or not what was stored here
        return None

    def _fetch(self, shard: Shard, path: Path, urgent: Callable[[], bool]) -> int:
        temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        descriptor = self._reserve(temporary, footprint(shard), urgent)
        try:
            self._download(shard, descriptor)
            os.fsync(descriptor)  # its length was there first: without this a power cut could leave zeros
            with self._room():
                os.ftruncate(descriptor, shard.bytes)
                ShardIndex.build(temporary).save(path.with_name(path.name + ".index"))
                temporary.replace(path)
            return descriptor
        except BaseException as error:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise RunError(f"{shard.name}: no copy can be stored in {self.folder} ({error.strerror})") from None
            raise

    def _download(self, shard: Shard, descriptor: int) -> None:
        """Write the remote bytes into the file, until they have the checksum that dataset.json gives."""
        for _ in range(DAMAGED_TRIES):
            digest, done = hashlib.sha256(), 0
            for piece in self.remote.pieces(shard.name, shard.bytes):
                if self.stop.is_set():
                    raise CancelledError
                digest.update(piece)
                while piece:  # a disk that is nearly full takes a part
                    written = os.pwrite(descriptor, piece, done)
                    done, piece = done + written, piece[written:]
            if digest.hexdigest() == shard.sha256:
                return
        raise RunError(
            f"{self.remote.url}/{shard.name}: came {DAMAGED_TRIES} times with another checksum than dataset.json has:"
            " restore the shard there, or pack the dataset again"
        )

    def _reserve(self, temporary: Path, size: int, urgent: Callable[[], bool]) -> int:
        """Create and hold a file of `size` bytes as soon as there is room for it."""
        if size > self.capacity:
            raise InputError(f"data.cache_bytes is {self.capacity}: one shard alone takes {size}")
        began = time.monotonic()
        while True:
            with self._room():
                if self._make_room(size):
                    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                    machine.lock(descriptor, shared=True)
                    os.ftruncate(descriptor, size)
                    return descriptor
            if urgent() and time.monotonic() - began > PATIENCE:
                (self.folder / "asked").touch()
            if self.stop.wait(0.1):
                raise CancelledError

    def _files(self) -> dict[str, os.stat_result]:
        found = {}
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                found[entry.name] = entry.stat()
        return found

    def _make_room(self, size: int) -> bool:
        """Delete what nobody uses until `size` more bytes fit; abandoned downloads in any case."""
        files = self._files()
        used = sum(stat.st_size for stat in files.values())
        ours = [name for name in files if _OURS.fullmatch(name)]
        for name in sorted(ours, key=lambda name: (name.endswith(".tar"), files[name].st_atime_ns)):
            if name.endswith(".tar") and used + size <= self.capacity:
                break
            if self._delete(self.folder / name):
                used -= sum(files[x].st_size for x in (name, name + ".index") if x in files)
        return used + size <= self.capacity

    def _room(self) -> AbstractContextManager[None]:
        return machine.locked(self.folder / "room.lock")

    def _delete(self, path: Path) -> bool:
        """Delete a file and its sidecar, unless somebody holds it.

        Without locks nobody can tell: a shard that is open stays readable, a download is left alone for a day.
        """
        with suppress(FileNotFoundError), path.open("rb") as file:
            free = machine.lock(file.fileno(), wait=False)
            fresh = path.suffix == ".tmp" and time.time() - os.fstat(file.fileno()).st_mtime < DAY
            if free is False or (free is None and fresh):
                return False
            path.with_name(path.name + ".index").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        return True
