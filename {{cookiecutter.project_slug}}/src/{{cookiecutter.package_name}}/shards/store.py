"""Where a shard's bytes are: opens shards by position and reads members of them, from any thread.

Descriptors and indexes are opened at first use and kept for the shards used last, so memory and open files follow the
shards in use and not the dataset.
"""

from __future__ import annotations

import errno
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .dataset import Dataset, Shard
from .errors import InputError, RunError
from .index import BLOCK, ShardIndex


def load_index(root: Path, shard: Shard) -> ShardIndex:
    """The index of `shard`: its sidecar where that fits the tar, else made anew from the tar's headers.

    A sidecar fits when the tar's size and modification time are those that it was made with. A new one is stored beside
    the tar if that can be written. Raises InputError where the tar is missing or no longer the one in `dataset.json`.
    """
    path = root / shard.name
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): restore it or pack the dataset again") from None
    if stat.st_size != shard.bytes:
        raise InputError(
            f"{path} has {stat.st_size} bytes, dataset.json says {shard.bytes}: restore it or pack the dataset again"
        )
    sidecar = path.with_name(path.name + ".index")
    index = ShardIndex.load(sidecar)
    if index is None or (index.shard_bytes, index.shard_mtime_ns) != (stat.st_size, stat.st_mtime_ns):
        index = ShardIndex.build(path)
        try:
            index.save(sidecar)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT):
                raise
    if len(index) != shard.samples:
        raise InputError(
            f"{path} holds {len(index)} samples, dataset.json says {shard.samples}: pack the dataset again"
        )
    return index


class OpenShard:
    """An open tar with the places of the wanted fields. Its descriptor closes with the last reference to it."""

    def __init__(self, root: Path, shard: Shard, wanted: Sequence[tuple[str, ...]]) -> None:
        self.name = shard.name
        index = load_index(root, shard)
        self.keys = index.keys
        self._fields = [index.pick(names) for names in wanted]
        self._wanted = wanted
        self._descriptor = os.open(root / shard.name, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def offset(self, row: int) -> int:
        """Where the sample's first wanted field lies in the tar, -1 where it lacks it."""
        return int(self._fields[0][0][row])

    def read(self, row: int) -> list[bytes]:
        """The wanted fields of `row`. Raises KeyError for a field it lacks, RunError where the tar has changed."""
        contents = []
        for (offsets, sizes, checks), names in zip(self._fields, self._wanted, strict=True):
            offset, size = int(offsets[row]), int(sizes[row])
            if offset < 0:
                raise KeyError(f"the sample has no {'/'.join(names)}")
            data = os.pread(self._descriptor, BLOCK + size, offset - BLOCK)
            if len(data) != BLOCK + size or zlib.crc32(data[:BLOCK]) != checks[row]:
                raise RunError(
                    f"{self.name}: sample {self.keys[row]!r} is no longer at byte {offset}; was the shard replaced?"
                )
            contents.append(data[BLOCK:])
        return contents


class Store:
    """The samples of one split by id.

    Args:
        dataset, split: what to read.
        wanted: for each field the names it may have, such as (("jpg", "png"), ("cls",)).
        keep_open: shards kept open at most.
    """

    def __init__(self, dataset: Dataset, split: str, wanted: Sequence[tuple[str, ...]], keep_open: int = 256) -> None:
        self.root, self.shards, self._wanted = dataset.root, dataset.splits[split], wanted
        self._ends: NDArray[np.int64] = np.cumsum([shard.samples for shard in self.shards], dtype=np.int64)
        self._keep_open = keep_open
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, sample_id: int) -> tuple[OpenShard, int]:
        """The shard that holds the sample, and its row there."""
        number = int(np.searchsorted(self._ends, sample_id, side="right"))
        row = sample_id - int(self._ends[number]) + self.shards[number].samples
        with self._lock:
            shard = self._open.get(number)
            if shard is None:
                shard = self._open[number] = OpenShard(self.root, self.shards[number], self._wanted)
                if len(self._open) > self._keep_open:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(number)
        return shard, row
