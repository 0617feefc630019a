"""Batches of decoded samples, made ahead of the trainer by a pool of threads.

    sampler (ids of each batch) -> rows decoded in parallel -> Batch, copied to the device, in the sampler's order

A sample that cannot be read or decoded becomes a row with `valid` false, filled with the pixels of a valid neighbour
(so that no zeros enter batch statistics), and a line in the skip log; the number of batches never changes.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..fetching.store import Store
from ..shards.errors import RunError
from .decode import Crop, DecodeError, decode_image, target_decoder
from .order import sample_keys, uniform
from .sampler import PADDING, Sampler

CHUNK = 64  # rows that one thread decodes in one go: long enough to hide the hand-over, short enough to share a batch
PREFETCH = 4  # batches made ahead
Skipped = list[dict[str, object]]  # lines for the skip log
Chunks = list[Future[Skipped]]  # parts of a batch in the making


class Batch(NamedTuple):
    """B rows. Shape suffixes: B batch, S image side, T targets."""

    images: Tensor  # uint8 (B, 3, S, S), channels_last in memory
    targets: Tensor  # int64 (B,) class numbers, or float32 (B, T)
    ids: Tensor  # int64 (B,) sample ids; -1 is padding
    keys: Tensor  # int64 (B,) where all random choices for the sample are hashed from
    valid: Tensor  # bool (B,) false for padding and for samples that could not be decoded


class SkipLog:
    """One line of JSON in `path` for each sample that was skipped; ends the run when they become too many.

    Args:
        path: the file, appended to; None keeps no file.
        limit: skipped rows in one pass above which RunError is raised.
    """

    def __init__(self, path: Path | None, limit: float) -> None:
        self.path, self.limit = path, limit
        self.in_pass = 0

    def add(self, entries: Sequence[dict[str, object]]) -> None:
        self.in_pass += len(entries)
        if self.path and entries:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write("".join(json.dumps(entry) + "\n" for entry in entries))
        if self.in_pass > self.limit:
            raise RunError(
                f"{self.in_pass} samples of this pass could not be decoded, more than data.max_skipped_fraction allows"
                f" ({self.limit:.0f}); the last: {entries[-1]['shard']} {entries[-1]['key']}: {entries[-1]['error']}"
            )


class ShardLoader:
    """Iterate over one epoch's batches of one rank.

    Args:
        store: reads the split, with the fields IMAGE_FIELDS and the target's.
        sampler: which ids make each batch.
        crop: how a square is cut from each image.
        task, targets: the kind and number of targets.
        seed: of the random crops; None takes the centred crop (validation, test).
        workers: decoding threads.
        skipped: where skipped samples are noted.
        prefetch: batches made ahead.
        device: where batches are wanted: to a CUDA device they are copied ahead, from page-locked memory on a stream of
            their own, while it computes.
    """

    batch_sampler = None  # Lightning looks for it beside `sampler`

    def __init__(
        self,
        store: Store,
        sampler: Sampler,
        crop: Crop,
        task: str,
        targets: int,
        seed: int | None,
        workers: int,
        skipped: SkipLog,
        prefetch: int = PREFETCH,
        device: torch.device | None = None,
    ) -> None:
        self.store, self.sampler, self.crop, self.seed, self.skipped = store, sampler, crop, seed, skipped
        self.workers, self.prefetch = workers, prefetch
        self._device = device if device and device.type == "cuda" else None
        self._decode_target = target_decoder(task, targets)[1]
        self._target_shape: tuple[int, ...] = () if task == "single_label" else (targets,)
        self._target_type = torch.int64 if task == "single_label" else torch.float32
        self.wait_seconds = 0.0  # time that the trainer has waited for batches, in total

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches. Breaking off ends the threads; an error in one of them is raised here."""
        epoch = self.sampler.epoch
        self.skipped.in_pass = 0
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        last = ThreadPoolExecutor(1, thread_name_prefix="finish")
        stream = torch.cuda.Stream(self._device) if self._device else None
        pending: deque[tuple[NDArray[np.int64], Future[tuple[Batch, Skipped]]]] = deque()
        expect = self._expecter()
        try:
            for ids in self.sampler:
                expect(pending[0][0] if pending else ids, ids)
                batch, chunks = self._submit(pool, ids, epoch)
                pending.append((ids, last.submit(self._finish, batch, chunks, stream)))
                if len(pending) > self.prefetch:
                    yield self._take(pending.popleft()[1], stream)
            while pending:
                yield self._take(pending.popleft()[1], stream)
        finally:
            for threads in (pool, last):
                threads.shutdown(wait=False, cancel_futures=True)
            self.store.close()
            for threads in (pool, last):
                threads.shutdown(wait=True)

    def _expecter(self) -> Callable[[NDArray[np.int64], NDArray[np.int64]], None]:
        """A function that tells the store, of the oldest and the newest batch in the making, which shards come next:
        those of their windows, of the windows in between and of the one after."""
        windows = self.sampler.windows() or [np.array([number]) for number in range(len(self.store.shards))]
        window_of = np.zeros(len(self.store.shards), np.int64)
        for number, shards in enumerate(windows):
            window_of[shards] = number
        current = (-1, -1)

        def expect(oldest: NDArray[np.int64], newest: NDArray[np.int64]) -> None:
            nonlocal current
            first, last = (window_of[self.store.numbers(ids[ids != PADDING])] for ids in (oldest, newest))
            if len(first) and len(last) and (first.min(), last.max()) != current:
                current = first.min(), last.max()
                self.store.expect(np.concatenate(windows[current[0] : current[1] + 2]).tolist())

        return expect

    def _submit(self, pool: ThreadPoolExecutor, ids: NDArray[np.int64], epoch: int) -> tuple[Batch, Chunks]:
        size, rows = self.crop.size, len(ids)
        images = torch.empty((rows, size, size, 3), dtype=torch.uint8, pin_memory=self._device is not None)
        targets = torch.zeros((rows, *self._target_shape), dtype=self._target_type)
        keys = torch.from_numpy(sample_keys(self.seed or 0, epoch, ids))
        valid = torch.zeros(rows, dtype=torch.bool)
        batch = Batch(images.permute(0, 3, 1, 2), targets, torch.from_numpy(ids), keys, valid)
        draws = None if self.seed is None else uniform(self.seed, epoch, ids, self.crop.draws)
        step = max(1, min(CHUNK, -(-rows // self.workers)))
        chunks = [range(first, min(first + step, rows)) for first in range(0, rows, step)]
        return batch, [pool.submit(self._decode_rows, chunk, batch, draws, epoch) for chunk in chunks]

    def _decode_rows(self, rows: range, batch: Batch, draws: NDArray[np.float64] | None, epoch: int) -> Skipped:
        """Fill the rows of a batch; what could not be decoded is returned as lines for the skip log."""
        images, targets, valid = batch.images.permute(0, 2, 3, 1).numpy(), batch.targets.numpy(), batch.valid.numpy()
        skipped: Skipped = []
        ids = batch.ids[rows.start : rows.stop].numpy()
        ids = ids[ids != PADDING]  # the last rows of a split
        for row, number, (shard, place) in zip(rows, ids.tolist(), self.store.locate(ids), strict=False):
            try:
                image, target = shard.read(place)
                targets[row] = self._decode_target(target)
                self.crop(decode_image(image), None if draws is None else draws[row], images[row])
                valid[row] = True
            except (DecodeError, KeyError) as error:
                where = {"shard": shard.name, "key": shard.keys[place], "offset": shard.offset(place)}
                skipped.append({"id": number, "epoch": epoch, **where, "error": str(error.args[0])})
        return skipped

    def _finish(self, batch: Batch, chunks: Chunks, stream: torch.cuda.Stream | None) -> tuple[Batch, Skipped]:
        """Wait for a batch's rows, fill those that are not valid, and begin to copy it to the device."""
        skipped = [entry for chunk in chunks for entry in chunk.result()]
        images, valid = batch.images.permute(0, 2, 3, 1).numpy(), batch.valid.numpy()
        if not valid.all():
            good, bad = np.flatnonzero(valid), np.flatnonzero(~valid)
            images[bad] = images[good[bad % len(good)]] if len(good) else 0
        if stream:
            with torch.cuda.stream(stream):
                batch = Batch(*(tensor.to(self._device, non_blocking=True) for tensor in batch))
            stream.synchronize()  # this thread's wait: the batch is handed over when it has arrived
        return batch, skipped

    def _take(self, finished: Future[tuple[Batch, Skipped]], stream: torch.cuda.Stream | None) -> Batch:
        began = time.perf_counter()
        batch, skipped = finished.result()
        self.wait_seconds += time.perf_counter() - began
        self.skipped.add(skipped)
        if stream:
            for tensor in batch:  # its memory belongs to the other stream and must outlive what this one does with it
                tensor.record_stream(torch.cuda.current_stream(self._device))
        return batch
