"""Batches of decoded samples on the trainer's device, ahead of the trainer.

sampler (ids of each batch) -> rows, decoded in other processes -> Batch, copied to the device, in order
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import RunError
from ..files import append
from ..terminal import say
from .batch import Batch, Values
from .batcher import EveryNth, Sampler, Skipped
from .fields.base import Field, in_plane
from .worker import RING_SIZE, DecodeWorker, WorkerSpec

AHEAD = 2  # batches that wait for the trainer, on its device
QUICK = 1 << 20  # bytes of a batch up to which the trainer copies it itself: to wait for a thread would take longer


class SkipLog:
    """One line of JSON in `path` for each sample that was skipped; ends the run when they become too many.

    Args:
        path: the file, appended to; None keeps no file.
        limit: skipped rows in one pass above which RunError is raised.
    """

    def __init__(self, path: Path | None, limit: float) -> None:
        self.path, self.limit = path, limit
        self.in_pass = 0
        self._lines: list[str] = []  # not yet written

    def add(self, entries: Sequence[dict[str, object]]) -> None:
        self.in_pass += len(entries)
        if self.path and entries:
            self._write(self.path, entries)
        if self.in_pass > self.limit:
            raise RunError(
                f"{self.in_pass} samples of this pass could not be decoded, more than data.max_skipped_fraction allows"
                f" ({self.limit:.0f}); the last: {entries[-1]['shard']} {entries[-1]['key']}: {entries[-1]['error']}"
            )

    def _write(self, path: Path, entries: Sequence[dict[str, object]]) -> None:
        """Append to the file; where that fails, say so, and try again with the next ones."""
        waiting = bool(self._lines)
        self._lines += [json.dumps(entry) + "\n" for entry in entries]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            append(path, "".join(self._lines).encode())
            self._lines = []
        except OSError as error:
            if not waiting:
                say(
                    f"{path} could not be written ({error.strerror}): the samples skipped since are not listed",
                    sys.stderr,
                )


class EpochLoader:
    """Iterate over one epoch's batches of one rank.

    Args:
        job: what a decoding process does. They are started by the first epoch and kept for the others.
        sampler: which ids make each batch.
        skipped: where skipped samples are noted.
        processes: how many decode; they take turns.
        device: where batches are wanted: to a CUDA device they are copied ahead, from page-locked memory on a stream of
            their own, while it computes.
    """

    batch_sampler = None  # Lightning looks for it beside `sampler`

    def __init__(
        self,
        job: WorkerSpec,
        sampler: Sampler,
        skipped: SkipLog,
        device: torch.device | None = None,
        processes: int = 1,
    ) -> None:
        self.job, self.sampler, self.skipped, self.processes = job, sampler, skipped, processes
        self.wait_seconds = 0.0  # time that the trainer has waited for batches, in total
        self._device = device if device and device.type == "cuda" else None
        self._stream: torch.cuda.Stream | None = None  # one for all epochs: memory is reused on its own stream only
        self._decoding: list[DecodeWorker] = []
        self._thread: ThreadPoolExecutor | None = None  # receives the newest pass's batches

    @property
    def made_ahead(self) -> int:
        """Batches at most that are there, or in the making, before the trainer asks."""
        return self.processes * RING_SIZE + AHEAD

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches. Breaking off ends the decoding processes; an error in one is raised here."""
        self.skipped.in_pass = 0
        self._break_off()
        decoding = self._decoding = self._decoding or [DecodeWorker(self.job) for _ in range(self.processes)]
        for number, process in enumerate(decoding):
            process.begin(EveryNth(self.sampler, number, self.processes))
        turns = itertools.cycle(decoding)
        if self._device and not self._stream:
            self._stream = torch.cuda.Stream(self._device)
        stream = self._stream
        thread = self._thread = ThreadPoolExecutor(1, thread_name_prefix="receive")
        ahead = 0 if self._device is None and self.job.layout.bytes <= QUICK else AHEAD
        try:
            pending = deque(thread.submit(self._receive, next(turns), stream) for _ in range(ahead))
            while True:
                began = time.perf_counter()
                received = pending.popleft().result() if ahead else self._receive(next(turns), stream)
                self.wait_seconds += time.perf_counter() - began
                if received is None:
                    return
                batch, skipped = received
                self.skipped.add(skipped)
                if stream:
                    _outlive(batch, torch.cuda.current_stream(self._device))
                if ahead:
                    pending.append(thread.submit(self._receive, next(turns), stream))
                yield batch
        finally:
            if self._thread is thread:  # else another pass has begun, perhaps with the same processes
                self._break_off()

    def close(self) -> None:
        """End the decoding processes; the next epoch starts others."""
        for process in self._decoding:
            process.close()
        self._decoding = []

    def _break_off(self) -> None:
        """End what is left of the newest pass: processes that are in the middle of it, and the thread behind them."""
        if any(process.busy for process in self._decoding):
            self.close()
        if self._thread:
            self._thread.shutdown(cancel_futures=True)
        self._thread = None

    def _receive(self, process: DecodeWorker, stream: torch.cuda.Stream | None) -> tuple[Batch, Skipped] | None:
        """Take over the next batch; None at the epoch's end."""
        rows = process.receive()
        if rows is None:
            return None
        count, arrays = len(rows.ids), process.slots[rows.slot]
        fields: dict[str, Values] = {
            name: _as_tensors(rows.ragged[name]) if field.shape is None else self._taken(arrays[name][:count], field)
            for name, field in self.job.fields.items()
        }
        process.free(rows.slot)
        batch = Batch(fields, *(torch.from_numpy(array) for array in (rows.ids, rows.seeds, rows.valid)))
        if stream and self._device:
            with torch.cuda.stream(stream):
                batch = batch.to(self._device, non_blocking=True)
            stream.synchronize()  # in this thread, which has nothing else to do: what is handed over has arrived
        return batch, rows.skipped

    def _taken(self, rows: NDArray[Any], field: Field) -> torch.Tensor:
        """A copy of rows of the memory that the process will use again; channels come second, but stay last in it."""
        if self._device is None:  # fresh memory from NumPy comes in huge pages, and is filled several times as fast
            tensor = torch.from_numpy(np.array(rows))
        else:
            tensor = torch.empty(rows.shape, dtype=torch.from_numpy(rows[:0]).dtype, pin_memory=True)
            tensor.numpy()[:] = rows
        return tensor.permute(0, 3, 1, 2) if in_plane(field) and tensor.ndim == 4 else tensor


def _as_tensors(value: Any) -> Any:
    """The arrays in ragged values as tensors."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, list):
        return [_as_tensors(one) for one in value]
    return {name: _as_tensors(one) for name, one in value.items()} if isinstance(value, dict) else value


def _outlive(batch: Batch, stream: torch.cuda.Stream) -> None:
    """Made on another stream, the memory of a batch must outlive what `stream` does with it."""

    def note(tensor: torch.Tensor) -> torch.Tensor:
        tensor.record_stream(stream)
        return tensor

    batch.map(note)
