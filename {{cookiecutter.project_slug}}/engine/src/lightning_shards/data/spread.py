"""How many processes decode for a rank, and with how many threads each."""

from __future__ import annotations

from ..machine import cpus
from .dataset import Dataset

SMALL = 8192  # bytes of an image on average
MOST_PROCESSES = 4  # that take turns: each hands out thousands of images a second, of small ones tens of thousands


def small_images(dataset: Dataset, split: str = "train") -> bool:
    return sum(shard.bytes for shard in dataset.splits[split]) < SMALL * dataset.samples(split)


def processes_and_threads(dataset: Dataset, split: str, workers: int | None, ranks: int) -> tuple[int, int]:
    """(processes, threads of each) that decode for each of `ranks` on this host.

    Threads of one process wait for each other's interpreter lock: beyond four of them that costs more than a process,
    and for images of a few KB, which take less time to decode than Python takes around it, with two. Behind a URL there
    is one process: several, which are not quite at the same place, would fetch shards again where the cache is as small
    as it may be.

    Args:
        workers: threads in all; None: CPU cores / ranks.
    """
    workers = workers or max(1, cpus() // ranks)
    remote = any(isinstance(part.root, str) for part, _ in dataset.parts(split))
    most = 1 if remote else MOST_PROCESSES
    if small_images(dataset, split):
        return min(workers, most), 1
    threads = -(-workers // most)
    return -(-workers // threads), threads
