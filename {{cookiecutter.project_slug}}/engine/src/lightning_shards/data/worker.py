"""Decoding in a process of its own, so that its threads and the trainer's never wait for one interpreter lock.

Rows with a shape go through memory that both processes map. Over a socket go the sampler of each epoch and freed
slots one way, `DecodedBatch` or an error the other. The process ends when the socket does, however the trainer ended;
signals to all of a process group are for the trainer to obey. It is started like any program: it inherits no thread
and no device.
"""

from __future__ import annotations

import mmap
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import InputError, RunError
from ..terminal import in_bytes
from .batcher import PREFETCH, BatchDecoder, DecodedBatch, EveryNth, Sampler
from .cache import Cache
from .crop import Crop
from .dataset import Dataset
from .decoded import DecodedPlan, plan_decoded, possible_plan
from .decoded_rows import DecodedRows
from .embedded_rows import embedded_rows
from .embedding import Embedded
from .fields import Fields, dataset_fields
from .fields.resolve import in_decoding_order
from .sample_reader import SampleReader
from .slots import Arrays, SlotLayout
from .transform import Transform, check_portable

RING_SIZE = PREFETCH + 1  # one is copied while the others are filled
_TRAINERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # the trainer's to obey
GRACE = 10  # seconds in which the process breaks off downloads


@dataclass(frozen=True)
class WorkerSpec:
    """What a decoding process is to do.

    Args:
        dataset, split: what to read.
        crop: how a square of S pixels is cut from each image.
        batch: rows of a batch at most, B.
        seed: of the random crops; None takes the centred crop (validation, test).
        workers: threads.
        cache: folder and capacity in bytes for the shards of a URL.
        fields: what a sample holds; empty: what the dataset says.
        transform: changes each decoded sample, in training, or always where its attribute `evaluation` is true.
        decoded: what is kept of each sample once it is decoded; None: nothing.

    Raises InputError for fields or a transform that a decoding process cannot be given.
    """

    dataset: Dataset
    split: str
    crop: Crop
    batch: int
    seed: int | None
    workers: int
    cache: tuple[Path, int | None]
    fields: Fields = field(default_factory=dict)
    transform: Transform | None = None
    decoded: DecodedPlan | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", self.fields or dataset_fields(self.dataset))
        for name, one in self.fields.items():
            check_portable(f"the field {name!r}", one)
        if self.transform is not None:
            check_portable("the transform", self.transform)

    def plan(self, limit: int | None) -> tuple[DecodedPlan | None, str]:
        """What to keep once it is decoded, `limit` bytes at most, and a sentence about it (`plan_decoded`)."""
        decoder = self.decoder
        try:
            return plan_decoded(self.dataset, self.split, decoder.fields, decoder.transform, decoder.store, limit)
        finally:
            decoder.store.close()

    def possible_plan(self) -> DecodedPlan | str:
        """What could be kept once it is decoded, or why nothing can."""
        decoder = self.decoder
        try:
            return possible_plan(self.dataset, self.split, decoder.fields, decoder.transform, decoder.store)
        finally:
            decoder.store.close()

    @property
    def decoder(self) -> BatchDecoder:
        data = self.dataset
        fields = in_decoding_order({n: one for n, one in self.fields.items() if not isinstance(one, Embedded)})
        roots = [part.root for part, _ in data.parts(self.split)]
        caches = [Cache(root, *self.cache) if isinstance(root, str) else None for root in roots]
        optional = [number for number, one in enumerate(fields.values()) if not one.required]
        wanted = [one.names for one in fields.values()] or None
        store = SampleReader(data, self.split, wanted, caches, optional=optional)
        transform = self.transform
        if self.seed is None and not getattr(transform, "evaluation", False):
            transform = None
        kept = DecodedRows(self.decoded, data, self.split, self.crop) if self.decoded and transform is None else None
        embedded = embedded_rows(data, self.split, self.fields)
        return BatchDecoder(store, fields, self.crop, self.seed, self.workers, transform, kept, embedded)

    @property
    def layout(self) -> SlotLayout:
        """Of the largest squares."""
        return SlotLayout(self.fields, self.crop.size, self.batch)

    def memory(self, file: int) -> mmap.mmap:
        """The memory behind a descriptor, room for RING_SIZE slots."""
        return mmap.mmap(file, RING_SIZE * self.layout.bytes)

    def slots(self, memory: mmap.mmap, side: int | None) -> list[dict[str, NDArray[Any]]]:
        """Of each slot the arrays (B, ...) of the fields, with squares of `side`, at most as large as the crop's."""
        layout = SlotLayout(self.fields, side or self.crop.size, self.batch)
        return [layout.arrays(memory, slot) for slot in range(RING_SIZE)]


class DecodeWorker:
    """The trainer's end. `begin` an epoch, `receive` its batches, `free` each slot once its rows were used."""

    python = sys.executable  # what runs the other end

    def __init__(self, job: WorkerSpec) -> None:
        self.busy = False  # in the middle of an epoch
        self._side = job.crop.size
        file, size = _shared_file(), RING_SIZE * job.layout.bytes
        try:
            os.ftruncate(file, size)
            self._job, self._memory = job, job.memory(file)
            self.slots = job.slots(self._memory, None)
        except (OSError, OverflowError):
            os.close(file)
            raise InputError(
                f"{RING_SIZE} batches of {job.batch} samples take {in_bytes(size)} of memory, more than can be had:"
                " take smaller images or batches"
            ) from None
        self._socket, there = socket.socketpair()
        command = [self.python, "-m", __name__, str(there.fileno()), str(file)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _TRAINERS)  # inherited, for until it ignores them
        try:
            self._process = subprocess.Popen(command, env=environment, pass_fds=(there.fileno(), file))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        there.close()
        os.close(file)
        self._connection = Connection(os.dup(self._socket.fileno()))
        self.close = weakref.finalize(self, _end, self._socket, self._process)
        self._send(job)
        for slot in range(RING_SIZE):
            self.free(slot)

    def begin(self, sampler: Sampler | EveryNth) -> None:
        """Start an epoch; all slots of the one before are free."""
        self.busy = True
        if sampler.side and sampler.side != self._side:
            self.slots, self._side = self._job.slots(self._memory, sampler.side), sampler.side
        self._send(sampler)

    def receive(self) -> DecodedBatch | None:
        """The next batch; None at the epoch's end. Raises what went wrong there."""
        if not self.busy:
            return None
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            try:
                status = self._process.wait(GRACE)
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            except subprocess.TimeoutExpired:  # on a machine that is busy with others
                how = f"has closed its end and not ended in {GRACE} seconds"
            raise RunError(f"the process that decodes images {how}; is there memory enough?") from None
        if isinstance(answer, BaseException):
            raise answer
        self.busy = answer is not None and not answer.last
        return answer  # type: ignore[no-any-return]

    def free(self, slot: int) -> None:
        self._send(slot)

    def _send(self, message: WorkerSpec | Sampler | EveryNth | int) -> None:
        with suppress(OSError):  # where the process has ended, `receive` says so
            self._connection.send(message)


def _shared_file() -> int:
    """A descriptor of memory that has no name: nothing is left of it when the last process is gone."""
    with suppress(AttributeError, OSError):  # macOS has none; a container may forbid it
        return os.memfd_create("lightning-shards")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _end(end: socket.socket, process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _listen(
    connection: Connection, free: queue.Queue[int], epochs: queue.Queue[Sampler | EveryNth], store: SampleReader
) -> None:
    """Sort what the trainer sends; end the process when the trainer has closed its end, or has ended."""
    with suppress(EOFError, OSError):
        while True:
            message = connection.recv()
            if isinstance(message, int):
                free.put(message)
            else:
                epochs.put(message)
    store.close()
    os._exit(0)


def main() -> None:
    """The other end."""
    for number in _TRAINERS:
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    job = _receive_job(connection)
    memory, free, epochs = job.memory(int(sys.argv[2])), queue.Queue[int](), queue.Queue[Sampler | EveryNth]()
    slots, side = job.slots(memory, None), job.crop.size
    try:
        decoder = job.decoder
    except Exception as error:  # such as of a cache that cannot be written
        error.add_note(f"In the decoding process:\n{traceback.format_exc()}")
        with suppress(OSError):  # the trainer may have gone
            connection.send(_portable(error))
        sys.exit(2)
    threading.Thread(target=_listen, args=(connection, free, epochs, decoder.store), daemon=True).start()

    def take() -> tuple[int, Arrays]:
        slot = free.get()
        return slot, slots[slot]

    while True:
        sampler, rows = epochs.get(), None
        if sampler.side and sampler.side != side:
            slots, side = job.slots(memory, sampler.side), sampler.side
        try:
            for rows in decoder.batches(sampler, take):
                connection.send(rows)
            if rows is None:
                connection.send(None)
        except BaseException as error:
            error.add_note(f"In the decoding process:\n{traceback.format_exc()}")
            with suppress(OSError):  # the trainer may have gone, which `_listen` notices
                connection.send(_portable(error))


def _receive_job(connection: Connection) -> WorkerSpec:
    """What to do; where the team's own classes in it cannot be imported here, the trainer is told and this ends."""
    try:
        return connection.recv()  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:
        connection.send(
            InputError(
                f"the decoding processes cannot import the fields or the transform ({error}): write them in a module"
                " that can be imported from anywhere"
            )
        )
        sys.exit(2)


def _portable(error: BaseException) -> BaseException:
    """The error, or its text where it would not survive the way."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
