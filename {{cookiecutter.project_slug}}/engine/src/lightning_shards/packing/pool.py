"""The worker processes of `pack`, and how they are started, watched and stopped."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from .. import machine
from ..errors import InputError, RunError
from .field_files import listed_fields
from .members import Forms
from .source_table import SourceTable
from .worker import Task, Worker, estimate, read_record, write_shard

TRIED, TRIED_AGAIN = 48, 2048  # images, to see how large they are and what they hold
MIN_SHARDS = 8  # of train, where there are enough images: something to shuffle and to share among ranks
Progress = Callable[[int, int], None]  # images done, images in all


class Stopped(RunError):
    """A signal came; the finished shards are kept."""


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """What asks the command to end is noted in the list instead of raising somewhere."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    numbers = machine.stop_signals()
    before = [signal.signal(number, lambda n, _: seen.append(n)) for number in numbers]
    try:
        yield seen
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _unseen_signals() -> Iterator[None]:
    """Processes that start here never see what asks the command to end: this process tells them to stop."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _mended(listing: SourceTable, work: Path, task: Task) -> bool:
    """Whether a file without which an image was left out of a shard is another one now, or may only have been out of
    reach."""
    record, moment = read_record(work, task), task.record(work).stat().st_mtime
    away = any("cannot be read (" in image["error"] and os.strerror(errno.ENOENT) not in image["error"]
               for image in record.damaged)  # fmt: skip
    return away or any(listing.changed(file, moment) for file in record.files)


class Pool:
    """The worker processes."""

    def __init__(self, work: Path, short_side: int | None, quality: int, workers: int) -> None:
        self.work, self.workers = work, workers
        context = multiprocessing.get_context("spawn")
        with _unseen_signals():  # the first event starts a process that looks after all of them
            self.worker = Worker(work, short_side, quality, context.Event(), context.Value("q", 0))
        self.executor = ProcessPoolExecutor(workers, context, initializer=self.worker.start)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.stop.set()
        self.executor.shutdown(cancel_futures=True)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        with _unseen_signals():
            return self.executor.submit(function, *arguments)

    def _look(self, count: int) -> tuple[list[int], list[str], list[list[Forms]]]:
        """What `estimate` says of the first images to train on."""
        items = np.load(self.work / "train.npy", mmap_mode="r")[:count].tolist()
        shares = [items[first :: self.workers] for first in range(self.workers)]  # so that all processes start
        found = zip(*(future.result() for future in [self.submit(estimate, share) for share in shares]), strict=True)
        sizes, errors, forms = (list(chain.from_iterable(parts)) for parts in found)
        return sizes, errors, forms

    def tasks(self, listing: SourceTable, sizes: Mapping[str, int], shard_bytes: int) -> list[Task]:
        """The shards: about equal in size, judged by the first images to train on.

        Raises InputError where not one of these can be read, or a field that they have cannot be described.
        """
        sample_bytes, errors, forms = self._look(TRIED)
        if not sample_bytes:
            raise InputError(f"not one of {len(errors)} images tried can be read; the first: {errors[0]}")
        try:
            listed_fields(listing, forms)
        except InputError:  # a few may not show it: masks without the class that is rare
            listed_fields(listing, self._look(TRIED_AGAIN)[2])
        tasks = []
        for split, size in sizes.items():
            least = min(MIN_SHARDS, size // 64) if split == "train" else 1
            count = max(1, least, round(size * fmean(sample_bytes) / shard_bytes))
            tasks += [Task(split, n, size * n // count, size * (n + 1) // count) for n in range(count)]
        return tasks

    def write(self, listing: SourceTable, tasks: list[Task], max_damaged_fraction: float, progress: Progress) -> int:
        """Write the shards that are not finished, or whose damaged images have been mended since; returns how many
        images the others hold.

        Raises RunError for too many damaged images, Stopped for a signal.
        """
        for task in tasks:
            if task.finished(self.work) and _mended(listing, self.work, task):
                task.record(self.work).unlink()
        total = sum(task.last - task.first for task in tasks)
        queue = [task for task in tasks if not task.finished(self.work)]
        before = total - sum(task.last - task.first for task in queue)
        kept = [task for task in tasks if task.finished(self.work)]
        damaged = [image for task in kept for image in read_record(self.work, task).damaged]
        waiting, running = iter(queue), dict[Future[None], Task]()
        with noted_signals() as stopped:
            while True:
                for task in islice(waiting, 2 * self.workers - len(running)):
                    running[self.submit(write_shard, task)] = task
                if len(damaged) > max_damaged_fraction * total:
                    raise RunError(
                        f"{len(damaged)} of {total} images are damaged or no images, such as "
                        + ", ".join(f"{image['path']} ({image['error']})" for image in damaged[:3])
                        + ": mend or remove them, or allow more with --max-damaged-fraction; finished shards are kept"
                    )
                if not running:
                    return before
                for future in wait(running, 0.2, FIRST_COMPLETED).done:
                    future.result()
                    damaged += read_record(self.work, running.pop(future)).damaged
                progress(before + self.worker.done.value, total)
                if stopped:
                    finished = sum(task.finished(self.work) for task in tasks)
                    raise Stopped(
                        f"stopped; {finished} of {len(tasks)} shards are finished and kept: "
                        "run the same command again to go on"
                    )
