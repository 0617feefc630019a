"""Decoding in a process of its own, so that its threads and the trainer's never wait for one interpreter lock.

The pixels go through memory that both processes map. Over a socket go the sampler of each epoch and freed slots one
way, `DecodedBatch` or an error the other. The process ends when the socket does, however the trainer ended; signals
to all of a process group are for the trainer to obey. It is started like any program: it inherits no thread and no
device.
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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from ..errors import RunError
from .batcher import PREFETCH, BatchDecoder, DecodedBatch, EveryNth, Sampler
from .cache import Cache
from .crop import Crop
from .dataset import Dataset
from .decode import IMAGE_FIELDS, Pixels, target_decoder
from .sample_reader import SampleReader

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
    """

    dataset: Dataset
    split: str
    crop: Crop
    batch: int
    seed: int | None
    workers: int
    cache: tuple[Path, int | None]

    @property
    def decoder(self) -> BatchDecoder:
        data, task, targets = self.dataset, self.dataset.task, len(self.dataset.targets)
        cache = Cache(data.root, *self.cache) if isinstance(data.root, str) else None
        store = SampleReader(data, self.split, (IMAGE_FIELDS, target_decoder(task, targets)[0]), cache)
        return BatchDecoder(store, self.crop, task, targets, self.seed, self.workers)

    def slots(self, file: int) -> Pixels:
        """The memory behind a descriptor, uint8 (RING_SIZE, B, S, S, 3)."""
        shape = (RING_SIZE, self.batch, self.crop.size, self.crop.size, 3)
        return np.frombuffer(mmap.mmap(file, int(np.prod(shape))), np.uint8).reshape(shape)


class DecodeWorker:
    """The trainer's end. `begin` an epoch, `receive` its batches, `free` each slot once its pixels were used."""

    def __init__(self, job: WorkerSpec) -> None:
        self.busy = False  # in the middle of an epoch
        self._socket, there = socket.socketpair()
        file = _shared_file()
        os.ftruncate(file, RING_SIZE * job.batch * job.crop.size**2 * 3)
        command = [sys.executable, "-m", __name__, str(there.fileno()), str(file)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _TRAINERS)  # inherited, for until it ignores them
        self._process = subprocess.Popen(command, env=environment, pass_fds=(there.fileno(), file))
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        there.close()
        self.pixels = job.slots(file)
        os.close(file)
        self._connection = Connection(os.dup(self._socket.fileno()))
        self.close = weakref.finalize(self, _end, self._socket, self._process)
        self._connection.send(job)
        for slot in range(RING_SIZE):
            self.free(slot)

    def begin(self, sampler: Sampler | EveryNth) -> None:
        self.busy = True
        self._connection.send(sampler)

    def receive(self) -> DecodedBatch | None:
        """The next batch; None at the epoch's end. Raises what went wrong there."""
        if not self.busy:
            return None
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            status = self._process.wait(GRACE)
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise RunError(f"the process that decodes images {how}; is there memory enough?") from None
        if isinstance(answer, BaseException):
            raise answer
        self.busy = answer is not None and not answer.last
        return answer  # type: ignore[no-any-return]

    def free(self, slot: int) -> None:
        with suppress(OSError):  # where the process has ended, `receive` says so
            self._connection.send(slot)


def _shared_file() -> int:
    """A descriptor of memory that has no name: nothing is left of it when the last process is gone."""
    if hasattr(os, "memfd_create"):
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
    job: WorkerSpec = connection.recv()
    slots, free, epochs = job.slots(int(sys.argv[2])), queue.Queue[int](), queue.Queue[Sampler | EveryNth]()
    decoder = job.decoder
    threading.Thread(target=_listen, args=(connection, free, epochs, decoder.store), daemon=True).start()

    def take() -> tuple[int, Pixels]:
        slot = free.get()
        return slot, slots[slot]

    while True:
        sampler, rows = epochs.get(), None
        try:
            for rows in decoder.batches(sampler, take):
                connection.send(rows)
            if rows is None:
                connection.send(None)
        except BaseException as error:
            error.add_note(f"In the decoding process:\n{traceback.format_exc()}")
            with suppress(OSError):  # the trainer may have gone, which `_listen` notices
                connection.send(_portable(error))


def _portable(error: BaseException) -> BaseException:
    """The error, or its text where it would not survive the way."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
