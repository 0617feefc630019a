"""Sample ids -> rows of batches: read, decoded and cropped by a pool of threads, into memory that they are given.

A sample that cannot be read or decoded becomes a row with `valid` false, filled with the pixels of a valid neighbour
(so that no zeros enter batch statistics), and a line for the skip log; the number of batches never changes.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .crop import Crop
from .decode import DecodeError, Pixels, target_decoder
from .sample_reader import SampleReader
from .uniforms import uniform

PADDING = -1  # the id of a row that stands for no sample
PREFETCH = 4  # batches in the making
CHUNK = 64  # rows that one thread decodes in one go: long enough to hide the hand-over, short enough to share a batch

Skipped = list[dict[str, object]]  # lines for the skip log
Chunks = list[Future[Skipped]]  # parts of a batch in the making


class Sampler(Protocol):
    """The ids of each batch of this rank, int64 (B,). Lightning calls `set_epoch` before each epoch.

    Batches are counted from where the iteration begins. `occurrences`: how often each sample of a batch has come before
    in the epoch; None where each comes once. `shards`: those to have at hand while the batches `first` to `last` are
    made, in the order of reading; None where samples are read in the order in which they are stored.
    """

    epoch: int
    micro: int  # B

    def set_epoch(self, epoch: int) -> None: ...
    def occurrences(self, batch: int) -> NDArray[np.int64] | None: ...
    def shards(self, first: int, last: int) -> Sequence[int] | None: ...
    def __iter__(self) -> Iterator[NDArray[np.int64]]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class EveryNth:
    """What one of `processes` that take turns makes of a sampler's epoch: every so many batches, from `first` on."""

    sampler: Sampler
    first: int
    processes: int

    @property
    def epoch(self) -> int:
        return self.sampler.epoch

    def occurrences(self, batch: int) -> NDArray[np.int64] | None:
        return self.sampler.occurrences(self.first + batch * self.processes)

    def shards(self, first: int, last: int) -> Sequence[int] | None:
        return self.sampler.shards(self.first + first * self.processes, self.first + last * self.processes)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return itertools.islice(self.sampler, self.first, None, self.processes)


class DecodedBatch(NamedTuple):
    """A decoded batch but for its pixels, which lie in `slot`."""

    slot: int
    ids: NDArray[np.int64]  # (B,); PADDING for rows that stand for no sample
    targets: NDArray[Any]  # int64 (B,) class numbers, or float32 (B, T)
    valid: NDArray[np.bool_]  # (B,)
    skipped: Skipped
    last: bool  # of the epoch


@dataclass
class _Making:
    rows: DecodedBatch
    pixels: Pixels
    chunks: Chunks


class _AtOnce(Executor):
    """Of one worker: the caller itself, which a thread beside it would only make wait for the interpreter lock."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **named))
        return future


@dataclass
class BatchDecoder:
    """Makes the batches of a split.

    Args:
        store: reads the split, with the fields IMAGE_FIELDS and the target's.
        crop: how a square of S pixels is cut from each image.
        task, targets: the kind and number of targets.
        seed: of the random crops; None takes the centred crop (validation, test).
        workers: threads.
    """

    store: SampleReader
    crop: Crop
    task: str
    targets: int
    seed: int | None
    workers: int

    def __post_init__(self) -> None:
        self.decode_target = target_decoder(self.task, self.targets)[1]

    def batches(self, sampler: Sampler | EveryNth, take: Callable[[], tuple[int, Pixels]]) -> Iterator[DecodedBatch]:
        """The batches of an epoch in the sampler's order, PREFETCH of them in the making (of one worker, 2).

        `take` gives the number and the memory, uint8 (B, S, S, 3), of a slot, and waits for one if need be. Breaking
        off ends the threads; an error in one of them is raised here.
        """
        pool = ThreadPoolExecutor(self.workers, "decode") if self.workers > 1 else _AtOnce()
        ahead = PREFETCH if self.workers > 1 else 2  # the last batch is known by there being no other
        pending: deque[_Making] = deque()
        expect = self._expecter(sampler)
        try:
            for number, ids in enumerate(sampler):
                expect(number - len(pending), number, np.append(pending[0].rows.ids, ids) if pending else ids)
                pending.append(self._begin(pool, ids, sampler.epoch, *take()))
                if len(pending) == ahead:
                    yield self._finish(pending.popleft(), False)
            while pending:
                yield self._finish(pending.popleft(), not pending)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            self.store.close()
            pool.shutdown(wait=True)

    def _expecter(self, sampler: Sampler | EveryNth) -> Callable[[int, int, NDArray[np.int64]], None]:
        """A function that tells the store which shards come next, given the numbers of the oldest and the newest batch
        in the making and the ids of both."""
        current: Sequence[int] = ()

        def expect(first: int, last: int, ids: NDArray[np.int64]) -> None:
            nonlocal current
            shards = sampler.shards(first, last)
            if shards is None:
                used = self.store.numbers(ids[ids != PADDING])
                shards = range(used.min(), min(used.max() + 2, len(self.store.shards))) if len(used) else current
            if shards != current:
                current = shards
                self.store.expect(shards)

        return expect

    def _begin(self, pool: Executor, ids: NDArray[np.int64], epoch: int, slot: int, pixels: Pixels) -> _Making:
        count, single = len(ids), self.task == "single_label"
        targets = np.zeros(count, np.int64) if single else np.zeros((count, self.targets), np.float32)
        making = _Making(DecodedBatch(slot, ids, targets, np.zeros(count, np.bool_), [], False), pixels[:count], [])
        draws = None if self.seed is None else uniform(self.seed, epoch, ids, self.crop.draws)
        step = count if self.workers == 1 else min(CHUNK, -(-count // self.workers))
        for first in range(0, count, step):
            chunk = range(first, min(first + step, count))
            making.chunks.append(pool.submit(self._decode, chunk, making.rows, making.pixels, draws, epoch))
        return making

    def _decode(
        self, chunk: range, rows: DecodedBatch, pixels: Pixels, draws: NDArray[np.float64] | None, epoch: int
    ) -> Skipped:
        """Fill some rows of a batch; what could not be decoded is returned as lines for the skip log."""
        skipped: Skipped = []
        ids = rows.ids[chunk.start : chunk.stop]
        ids = ids[ids != PADDING]  # the last rows of a split
        for row, number, (shard, place) in zip(chunk, ids.tolist(), self.store.locate(ids), strict=False):
            try:
                image, target = shard.read(place)
                rows.targets[row] = self.decode_target(target)
                self.crop(image, None if draws is None else draws[row], pixels[row])
                rows.valid[row] = True
            except (DecodeError, KeyError) as error:
                where = {"shard": shard.name, "key": shard.keys[place], "offset": shard.offset(place)}
                skipped.append({"id": number, "epoch": epoch, **where, "error": str(error.args[0])})
        return skipped

    def _finish(self, making: _Making, last: bool) -> DecodedBatch:
        """Wait for a batch's rows, and fill those that are not valid."""
        skipped = [line for chunk in making.chunks for line in chunk.result()]
        valid, pixels = making.rows.valid, making.pixels
        if not valid.all():
            good, bad = np.flatnonzero(valid), np.flatnonzero(~valid)
            pixels[bad] = pixels[good[bad % len(good)]] if len(good) else 0
        return making.rows._replace(skipped=skipped, last=last)
