"""The samples of a split by id: opens shards by position, fetches or reads ahead those that come next.

Descriptors and indexes are opened at first use and kept for the shards used last, so memory and open files follow the
shards in use and not the dataset. A shard is a future: made by a background thread once it is expected, or by whoever
needs it before one has begun with it, who therefore never waits for another shard than its own. An error of a
background thread is raised where the shard is used.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..machine import open_files
from .cache import Cache
from .dataset import Dataset
from .joined import RenumberedShardFile, renumbering
from .shard_file import ShardFile

STREAMS = 4  # shards that a process fetches at a time; of a local disk one process of the node reads one


class SampleReader:
    """The samples of one split by id.

    Args:
        dataset, split: what to read.
        wanted: for each field the names it may have, such as (("jpg", "png"), ("cls",)); None: every member.
        cache: where the shards of a dataset behind a URL are kept, this reader's own object; of a joined dataset, one
            for each of its parts, None for a folder.
        keep_open: shards kept open at most; None: 256, or a quarter of the files that the process may open.
        optional: numbers of the fields that a sample may lack.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        wanted: Sequence[tuple[str, ...]] | None,
        cache: Cache | Sequence[Cache | None] | None = None,
        keep_open: int | None = None,
        optional: Collection[int] = (),
    ) -> None:
        self.shards, self._wanted, self._optional = dataset.splits[split], wanted, optional
        parts = dataset.parts(split)
        self._roots = [part.root for part, _ in parts]
        self._renumber = [renumbering(dataset, part) for part, _ in parts]
        self._caches = list(cache) if isinstance(cache, Sequence) else [cache]
        self._part_ends = np.cumsum([len(shards) for _, shards in parts])
        self._sizes = np.array([shard.samples for shard in self.shards], np.int64)
        self._ends: NDArray[np.int64] = np.cumsum(self._sizes)
        self._keep_open = keep_open or max(8, min(256, open_files() // 4))
        self._open: OrderedDict[int, Future[ShardFile]] = OrderedDict()
        self._lock = threading.Lock()
        self._needed: set[int] = set()  # shards that a reader waits for
        self._threads: ThreadPoolExecutor | None = None
        self._stop = threading.Event()
        for one in filter(None, self._caches):
            one.stop = one.remote.stop = self._stop

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def numbers(self, ids: ArrayLike) -> NDArray[np.int64]:
        """The numbers of the shards that hold the samples `ids`."""
        return np.searchsorted(self._ends, ids, side="right")

    def locate(self, ids: ArrayLike) -> list[tuple[ShardFile, int]]:
        """For each sample the shard that holds it, and its row there. Raises what kept a shard from being opened."""
        numbers = self.numbers(ids)
        rows = np.asarray(ids) - self._ends[numbers] + self._sizes[numbers]
        opened = {number: self._shard(number) for number in dict.fromkeys(numbers.tolist())}
        return [(opened[number], row) for number, row in zip(numbers.tolist(), rows.tolist(), strict=True)]

    def _shard(self, number: int) -> ShardFile:
        with self._lock:
            future, expected = self._open.get(number) or Future(), number in self._open
            mine = not expected or (not future.done() and future.cancel())
            if mine:
                future = self._open[number] = Future()
                future.set_running_or_notify_cancel()
            self._open.move_to_end(number)
            if not future.done():
                self._needed.add(number)
        if mine:
            try:
                future.set_result(self._prepare(number, expected))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def expect(self, numbers: Sequence[int]) -> None:
        """Fetch or read ahead these shards in this order, in the background, and let go of all others."""
        with self._lock:
            if self._threads is None:
                self._stop.clear()
                remote = next(filter(None, self._caches), None)
                self._threads = ThreadPoolExecutor(STREAMS + 1 if remote else 1, thread_name_prefix="read-ahead")
                if remote:  # all caches have the same folder
                    self._threads.submit(self._yield_room, remote)
            for number in set(self._open).difference(numbers):
                self._open.pop(number).cancel()
            for number in numbers:
                if number not in self._open:
                    self._open[number] = self._threads.submit(self._prepare, number, True)

    def close(self, wait: bool = True) -> None:
        """End the background threads, break off downloads and close the shards, until `expect` is called again.

        A thread that waits for an answer of a server ends when it has one, or none for a minute.
        """
        self._stop.set()
        with self._lock:
            threads, self._threads = self._threads, None
            self._open.clear()
        if threads:
            threads.shutdown(wait, cancel_futures=True)

    def _prepare(self, number: int, ahead: bool) -> ShardFile:
        """Open a shard: fetched into the cache if it is remote, and read into memory if it is expected."""
        shard, part = self.shards[number], int(np.searchsorted(self._part_ends, number, side="right"))
        root, cache, renumber = self._roots[part], self._caches[part], self._renumber[part]
        path, descriptor = Path(root) / shard.name, -1
        if cache:
            path, descriptor = cache.open(shard, lambda: number in self._needed)
        about = shard, path, self._wanted, descriptor, self._optional
        opened = RenumberedShardFile(renumber, *about) if renumber else ShardFile(*about)
        if len(self._roots) > 1:
            opened.name = f"{root}/{shard.name}"
        if ahead:
            opened.read_ahead(self._stop)
        with self._lock:
            self._needed.discard(number)
            done = [other for other, future in self._open.items() if future.done()]
            for other in done[: max(0, len(done) + 1 - self._keep_open)]:
                del self._open[other]
        return opened

    def _yield_room(self, cache: Cache) -> None:
        """Let go of the shards that are not being read at the moment whenever a process of this node lacks room."""
        while not self._stop.wait(1):
            if cache.asked_to_let_go():
                with self._lock:
                    self._open = OrderedDict((n, future) for n, future in self._open.items() if not future.done())
