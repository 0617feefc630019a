"""Sample ids -> rows of batches: read and decoded by a pool of threads, into memory that they are given.

A sample that cannot be read or decoded becomes a row with `valid` false, filled with the pixels of a valid neighbour
(so that no zeros enter batch statistics), and a line for the skip log; the number of batches never changes.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .crop import Crop
from .decode import DecodeError
from .fields.base import Fields
from .rows import BatchRows
from .sample_reader import SampleReader
from .shard_file import ShardFile
from .slots import Arrays
from .transform import Transform
from .uniforms import draw, sample_seeds

if TYPE_CHECKING:
    from .decoded_rows import DecodedRows
    from .embedded_rows import EmbeddedRows

PADDING = -1  # the id of a row that stands for no sample
PREFETCH = 4  # batches in the making
FIRST = 16  # samples without one that is right, after which a fault is looked for that they share
CHUNK = 64  # rows that one thread decodes in one go: long enough to hide the hand-over, short enough to share a batch

Skipped = list[dict[str, object]]  # lines for the skip log
Chunks = list[Future[Skipped]]  # parts of a batch in the making


class Sampler(Protocol):
    """The ids of each batch of this rank, int64 (B,). Lightning calls `set_epoch` before each epoch.

    Batches are counted from where the iteration begins. `occurrences`: how often each sample of a batch has come before
    in the epoch; None where each comes once. `shards`: those to have at hand while the batches `first` to `last` are
    made, in the order of reading; None where samples are read in the order in which they are stored. `side`: of the
    squares in this epoch, in pixels; None: that of the loader's crop.
    """

    epoch: int
    micro: int  # B

    @property
    def side(self) -> int | None: ...
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

    @property
    def side(self) -> int | None:
        return self.sampler.side

    def occurrences(self, batch: int) -> NDArray[np.int64] | None:
        return self.sampler.occurrences(self.first + batch * self.processes)

    def shards(self, first: int, last: int) -> Sequence[int] | None:
        return self.sampler.shards(self.first + first * self.processes, self.first + last * self.processes)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return itertools.islice(self.sampler, self.first, None, self.processes)


class DecodedBatch(NamedTuple):
    """A decoded batch but for the fields whose rows have a shape, which lie in `slot`."""

    slot: int
    ids: NDArray[np.int64]  # (B,); PADDING for rows that stand for no sample
    seeds: NDArray[np.int64]  # (B,)
    valid: NDArray[np.bool_]  # (B,)
    ragged: dict[str, list[Any]]  # B values of each other field
    skipped: Skipped
    last: bool  # of the epoch


@dataclass
class _Making:
    slot: int
    ids: NDArray[np.int64]
    seeds: NDArray[np.int64]
    epoch: int
    rows: BatchRows
    chunks: Chunks
    skipped: Skipped


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
        store: reads the members of `fields` in the split.
        fields: of a sample, in the order in which they are decoded; without those that are embedded.
        crop: how a square of S pixels is cut from each image.
        seed: of the random crops; None takes the centred crop (validation, test).
        workers: threads.
        transform: changes each sample; None: none does.
        decoded: the arrays that hold what was decoded before, and take what is now; None: all comes from the tars.
        embedded: the arrays that hold further fields.
    """

    store: SampleReader
    fields: Fields
    crop: Crop
    seed: int | None
    workers: int
    transform: Transform | None = None
    decoded: DecodedRows | None = None
    embedded: Sequence[EmbeddedRows] = ()

    def __post_init__(self) -> None:
        self._first_look = FirstLook()

    def batches(self, sampler: Sampler | EveryNth, take: Callable[[], tuple[int, Arrays]]) -> Iterator[DecodedBatch]:
        """The batches of an epoch in the sampler's order, PREFETCH of them in the making (of one worker, 2).

        `take` gives the number and the memory, arrays (B, ...) by field, of a slot, and waits for one if need be.
        Breaking off ends the threads; an error in one of them is raised here.
        """
        if sampler.side:
            self._resize(sampler.side)
        pool = ThreadPoolExecutor(self.workers, "decode") if self.workers > 1 else _AtOnce()
        ahead = PREFETCH if self.workers > 1 else 2  # the last batch is known by there being no other
        pending: deque[_Making] = deque()
        expect = self._expecter(sampler)
        try:
            for number, ids in enumerate(sampler):
                expect(number - len(pending), number, np.append(pending[0].ids, ids) if pending else ids)
                pending.append(self._begin(pool, ids, sampler.occurrences(number), sampler.epoch, *take()))
                if len(pending) == ahead:
                    yield self._finish(pending.popleft(), False)
            while pending:
                yield self._finish(pending.popleft(), not pending)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            self.store.close()
            pool.shutdown(wait=True)
            if self.decoded:
                self.decoded.close()

    def _resize(self, side: int) -> None:
        """Cut squares of another size in this pass."""
        self.crop = replace(self.crop, size=side)
        if self.decoded:
            self.decoded.crop = self.crop

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
                for one in self.embedded:
                    one.expect(shards)
                wanted = self.decoded.expect(shards) if self.decoded else shards
                self.store.expect(wanted if self.fields else ())

        return expect

    def _begin(
        self,
        pool: Executor,
        ids: NDArray[np.int64],
        occurrences: NDArray[np.int64] | None,
        epoch: int,
        slot: int,
        arrays: Arrays,
    ) -> _Making:
        count, seed = len(ids), self.seed
        seeds = sample_seeds(seed or 0, epoch, ids, occurrences)
        rows = BatchRows(self.fields, arrays, count, self.crop, seeds, self.transform, bool(self.decoded))
        making = _Making(slot, ids, seeds, epoch, rows, [], [])
        left: Sequence[int] = range(count)
        drawn = None if seed is None else seeds
        if self.decoded:
            left = self.decoded.fill(ids, drawn, arrays, rows.valid).tolist()
        elif not self.fields:
            rows.valid[:], left = ids != PADDING, []
        if self.embedded:
            left = self._embed(making, drawn, arrays, left)
        rows.draws = None if seed is None or not left else draw(seeds, self.crop.draws)
        step = len(left) if self.workers == 1 else min(CHUNK, -(-len(left) // self.workers))
        for first in range(0, len(left), max(1, step)):
            making.chunks.append(pool.submit(self._decode, left[first : first + step], making))
        return making

    def _embed(
        self, making: _Making, seeds: NDArray[np.int64] | None, arrays: Arrays, left: Sequence[int]
    ) -> Sequence[int]:
        """Fill the fields that are embedded. Returns which of the rows `left` are still wanted."""
        lacking = dict[int, str]()
        for one in self.embedded:
            lacking |= dict.fromkeys(one.fill(making.ids, seeds, arrays).tolist(), one.name)
        if not lacking:
            return left
        making.rows.valid[list(lacking)] = False
        located = self.store.locate(making.ids[list(lacking)])
        for name, row, (shard, place) in zip(lacking.values(), lacking, located, strict=True):
            error = DecodeError(f"could not be decoded when {name!r} was embedded")
            making.skipped.append(_line(making, row, shard, place, error))
        return [row for row in left if row not in lacking]

    def _decode(self, chunk: Sequence[int], making: _Making) -> Skipped:
        """Fill some rows of a batch; what could not be decoded is returned as lines for the skip log."""
        skipped: Skipped = []
        rows, ids = making.rows, making.ids[list(chunk)]
        ids = ids[ids != PADDING]  # the last rows of a split
        keeper = self.decoded.keeper(ids, rows.arrays) if self.decoded else None
        for number, (row, (shard, place)) in enumerate(zip(chunk, self.store.locate(ids), strict=False)):
            try:
                whole = rows.decode(row, shard.read(place))
                if keeper:
                    keeper.keep(number, row, whole)
            except (DecodeError, KeyError) as error:
                if keeper:
                    keeper.keep(number, row, None)
                self._first_look.failed(error, shard)
                skipped.append(_line(making, row, shard, place, error))
        if self.decoded and keeper:
            self.decoded.keep(keeper)
        return skipped

    def _finish(self, making: _Making, last: bool) -> DecodedBatch:
        """Wait for a batch's rows, and fill those that are not valid."""
        skipped = [*making.skipped, *(line for chunk in making.chunks for line in chunk.result())]
        rows = making.rows
        rows.fill(name for one in self.embedded for name in one.values)
        self._first_look.judge(bool(rows.valid.any()), last)
        return DecodedBatch(making.slot, making.ids, making.seeds, rows.valid, rows.ragged, skipped, last)


def _line(making: _Making, row: int, shard: ShardFile, place: int, error: DecodeError | KeyError) -> dict[str, object]:
    """Of the skip log."""
    where = {"shard": shard.name, "key": shard.keys[place], "offset": shard.offset(place, getattr(error, "member", 0))}
    return {"id": int(making.ids[row]), "epoch": making.epoch, **where, "error": str(error.args[0])}


class FirstLook:
    """Tells what is wrong with the fields or the transform themselves from what is wrong with samples.

    That is so where each of the first samples fails in the same way; after a sample that is right there is no more to
    look for.
    """

    def __init__(self) -> None:
        self._causes: list[str] | None = []

    def failed(self, error: DecodeError | KeyError, shard: ShardFile) -> None:
        causes = self._causes  # which another thread may set to None meanwhile
        if causes is not None:
            cause = ""
            if isinstance(error, KeyError):
                cause = f"{error.args[0]}; the tars hold {', '.join(f'.{name}' for name in shard.extensions[:20])}"
            elif error.transform:
                cause = f"{error.args[0]}, with every sample"
            causes.append(cause)

    def judge(self, proven: bool, last: bool) -> None:
        """Raises InputError where FIRST samples, or all of the epoch, failed and it is not they that are damaged."""
        causes = self._causes
        if causes is None or proven:
            self._causes = None
        elif causes and (last or len(causes) >= FIRST) and all(causes):
            raise InputError(causes[-1])
