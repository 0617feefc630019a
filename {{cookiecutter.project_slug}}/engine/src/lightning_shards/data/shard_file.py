"""One open tar: reads samples by row, from any thread, and knows when the tar is no longer the one that was indexed."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

import deflate  # whose CRC-32 takes a quarter of zlib's time

from .. import machine
from ..errors import InputError, RunError
from .dataset import Shard
from .tar_index import ShardIndex
from .tar_walk import BLOCK, header_name, header_number

LONG_READ = 8 << 20


def load_index(path: Path, shard: Shard) -> ShardIndex:
    """The index of `shard`, which lies at `path`: its sidecar where that fits, else made anew from the tar's headers.

    A sidecar fits when the tar's size and modification time are those that it was made with. A new one is stored beside
    the tar, or in the user's cache where that cannot be written. Raises InputError where the tar is missing, or no
    longer the one in `dataset.json`.
    """
    try:
        stat = machine.persistently(path.stat)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): restore it or pack the dataset again") from None
    stamp = (stat.st_size, stat.st_mtime_ns)
    if stat.st_size != shard.bytes:
        raise InputError(f"{path} has {stat.st_size} bytes, not {shard.bytes}: restore it, or pack the dataset again")
    found = (index for index in map(ShardIndex.load, _sidecars(path)) if index and index.stamp == stamp)
    index = next(found, None)
    if index is None:
        index = ShardIndex.build(path)
        save_index(index, path)
    if len(index) != shard.samples:
        raise InputError(f"{path} holds {len(index)} samples, not {shard.samples}: pack the dataset again")
    return index


def save_index(index: ShardIndex, path: Path) -> None:
    """Store the sidecar of the tar at `path`; on a full disk nowhere, it is made anew the next time then."""
    for place in _sidecars(path):
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            return index.save(place)


def _sidecars(path: Path) -> tuple[Path, Path]:
    """Where the sidecar of a tar may be: beside it, or in the user's cache if the tar's folder cannot be written."""
    hashed = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    return path.with_name(path.name + ".index"), machine.cache_folder() / "index" / f"{hashed}.index"


class ShardFile:
    """An open tar with the places of the wanted fields; those with an `optional` number a sample may lack.

    With `wanted` None these are all that there are, each under its own name, and a sample may lack any.

    Its descriptor closes with the last reference to it.
    """

    def __init__(
        self,
        shard: Shard,
        path: Path,
        wanted: Sequence[tuple[str, ...]] | None,
        descriptor: int = -1,
        optional: Collection[int] = (),
    ) -> None:
        self.name, self._descriptor = shard.name, descriptor
        index = load_index(path, shard)
        if wanted is None:
            wanted, optional = [(name,) for name in index.fields], range(len(index.fields))
        self._optional = optional
        self.keys, self.extensions = index.keys, index.fields
        # memoryviews give Python numbers, in half the time
        self._fields = [tuple(column.data for column in index.pick(names)) for names in wanted]
        self._wanted = wanted
        present = [[name for name in names if name in index.fields] or names for names in wanted]
        self._suffixes = [f".{names[0]}\0".encode() for names in present]  # of nearly all members
        self._path = path
        if descriptor < 0:
            try:
                self._descriptor = machine.persistently(self._opened)
            except OSError as error:
                raise RunError(f"{path} cannot be opened ({error.strerror})") from None

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _opened(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise RunError(f"{self._path} cannot be opened ({error.strerror}): allow more by `ulimit -n`") from None
            raise

    def read_ahead(self, stop: threading.Event) -> None:
        """Bring the tar into the page cache by long reads, one tar of a disk at a time on this node.

        That only saves time: what keeps it from being done, the reads that count will say.
        """
        with suppress(OSError):
            stat = os.fstat(self._descriptor)
            name = Path(tempfile.gettempdir()) / f"lightning-shards-{os.getuid()}-{stat.st_dev}.lock"
            with machine.locked(name, stop.is_set):
                if not all(self.in_memory(i * (stat.st_size - 1) // 15) for i in range(16)):
                    for offset in range(0, stat.st_size, LONG_READ):
                        if stop.is_set():
                            return
                        os.pread(self._descriptor, LONG_READ, offset)

    def in_memory(self, offset: int) -> bool:
        """Whether the byte comes from the page cache; False where the system cannot tell."""
        try:
            return os.preadv(self._descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
        except (AttributeError, OSError):
            return False

    def offset(self, row: int, field: int = 0) -> int:
        """Where the sample's wanted field lies in the tar; one that it has where it lacks this; -1 without any."""
        here = self._fields[field][0][row]
        return here if here >= 0 else max(offsets[row] for offsets, _, _ in self._fields)

    def members(self, row: int) -> dict[str, bytes]:
        """The wanted fields that the sample has, by the first of their names."""
        there = zip(self._wanted, self._fields, self.read(row), strict=True)
        return {names[0]: data for names, (offsets, _, _), data in there if offsets[row] >= 0}

    def read(self, row: int) -> list[bytes]:
        """The wanted fields of `row`; no bytes for an optional one that it lacks.

        Raises KeyError for another field that it lacks, RunError where the tar has changed.
        """
        contents, key = [], self.keys.encoded(row)
        for field, (offsets, sizes, checks) in enumerate(self._fields):
            offset, size = offsets[row], sizes[row]
            if offset < 0:
                if field in self._optional:
                    contents.append(b"")
                    continue
                raise KeyError(f"the sample has no {'/'.join(self._wanted[field])}")
            data = self._bytes(offset - BLOCK, BLOCK + size)
            right = len(data) == BLOCK + size and deflate.crc32(data[:BLOCK]) == checks[row]
            usual = data.startswith(key + self._suffixes[field]) and data.startswith(b"%011o\0" % size, 124)
            if not right or not (usual or _confirms(data[:BLOCK], key, self._wanted[field], size)):
                raise RunError(
                    f"{self.name}: sample {self.keys[row]!r} is no longer at byte {offset}; was the shard replaced?"
                )
            contents.append(data[BLOCK:])
        return contents

    def _bytes(self, offset: int, size: int) -> bytes:
        """So many bytes, fewer at the tar's end. Raises RunError where the file system does not give them."""
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError:
            try:
                data = machine.persistently(lambda: self._bytes_anew(offset, size))
            except OSError as error:
                raise RunError(f"{self._path} cannot be read at byte {offset} ({error.strerror})") from None
        while data and len(data) < size and (more := os.pread(self._descriptor, size - len(data), offset + len(data))):
            data += more  # a system gives 2 GB at a time, or less
        return data

    def _bytes_anew(self, offset: int, size: int) -> bytes:
        """The same from a file that is opened again: a handle of a shared file system may be stale."""
        fresh = self._opened()
        try:
            machine.lock(fresh, shared=True, wait=False)  # as whoever keeps it in the cache
            os.dup2(fresh, self._descriptor, inheritable=False)
        finally:
            os.close(fresh)
        return os.pread(self._descriptor, size, offset)


def _confirms(header: bytes, key: bytes, names: Sequence[str], size: int) -> bool:
    """Whether a member's header has the sample's key, one of the field's names, and the size.

    Of a name that is long or no ASCII the header before this one has the right form, so this one's is not compared.
    """
    try:
        has_size, name = header_number(header[124:136]) == size, header_name(header)
    except ValueError:
        return False
    encoded, suffixes = name.encode("utf-8", "surrogateescape"), [f".{each}".encode() for each in names]
    unsure = not key.isascii() or len(key) + max(map(len, suffixes)) > 99
    return has_size and (unsure or (encoded.startswith(key) and encoded[len(key) :].lower() in suffixes))
