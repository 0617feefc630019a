"""The front door for plain PyTorch: an epoch's batches at each iteration, and a state that fits any hardware.

loader = ShardLoader("data/mine", batch_size=256, crop=224)
for epoch in range(loader.epoch, 10):
    for batch in loader:
        loss = criterion(model(batch["image"].float()), batch["target"])
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Never

import torch

from ..errors import InputError
from ..machine import cache_folder
from ..terminal import say
from .batch import Batch
from .checks import check_settings, refuse_unknown
from .crop import Crop
from .fields.resolve import WantedFields, resolve_fields
from .loader import EpochLoader, SkipLog
from .opening import Balance, open_split, refuse_without_shuffle, shuffled
from .order import Order
from .place import Place
from .ranks import find_ranks
from .sampler import EvalSampler, TrainSampler
from .spread import processes_and_threads
from .training_order import check_cache
from .transform import Transform
from .trial import try_fields
from .worker import RING_SIZE, WorkerSpec


class ShardLoader:
    """Batches of a packed dataset.

    Each iteration is the next epoch. One that was left early goes on where it was left; after `load_state_dict` the
    first goes on in the middle of the saved epoch, at once. A batch counts as done when it is handed out, on every
    rank: take the state after the optimizer's step, and each sample comes once, on any number of ranks and with any
    batch size, whatever was killed. The last samples of an epoch, fewer than a step takes on all ranks, are left out.

    Args:
        path: folder that `pack` or `adopt` wrote, or its URL.
        batch_size: rows of a batch, on each rank: a step takes `batch_size` x `world_size` x `accumulation` samples.
        split: `train`, `val`, `test`.
        shuffle: None: of `train` alone. Without it a pass hands out every sample once in the order of its id, cropped
            from the centre; the last batch is filled up with rows whose id is -1 and whose `valid` is false.
        crop: side of the squares of pixels that are handed out; or a `Crop`, for how they are chosen.
        fields: what a sample holds: a mapping from names to fields, or a function of the dataset that gives one; None:
            what the dataset says.
        transform: changes each decoded sample of a shuffled pass, in the decoding processes.
        mixture: datasets to read together, with their shares; `path` is one of them. None: `path` alone.
        balance: how far to even out the classes, 0 to 1, or how many times an epoch shows some; None: each sample once.
        order: which sample comes at which position; None: shuffled by the settings around this one.
        seed: of the order and of all random crops.
        fraction: share of the samples to use; the same samples in every epoch.
        window_samples, window_bytes: samples that are mixed with each other at a time, and their bytes at most; None:
            4 GiB, at most a quarter of the memory.
        accumulation: batches between two steps of the optimizer: the state moves when all of them were handed out.
        rank, world_size: None: of torch.distributed or of torchrun, where there is one.
        workers: decoding threads; None: CPU cores / ranks on this host.
        device: where batches are wanted: to a CUDA device they are copied ahead, while it computes.
        max_skipped_fraction: raise RunError when more samples than this share of the split cannot be decoded. Fewer are
            rows whose `valid` is false.
        skipped_log: a file that gets a line of JSON for each of them.
        cache, cache_bytes: folder on this node's own disk for the shards of a URL, and the bytes it may hold.

    Attributes: `epoch` and `position`, where the next batch begins; `dataset`; `rank` and `world_size`. What cannot be
    used raises InputError, with a sentence.
    """

    def __init__(
        self,
        path: str | Path,
        batch_size: int,
        *,
        split: str = "train",
        shuffle: bool | None = None,
        crop: int | Crop = 224,
        fields: WantedFields = None,
        transform: Transform | None = None,
        mixture: Mapping[str, float] | None = None,
        balance: Balance | None = None,
        order: Order | None = None,
        seed: int = 0,
        fraction: float | None = None,
        window_samples: int | None = None,
        window_bytes: int | None = None,
        accumulation: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
        workers: int | None = None,
        device: torch.device | str | None = None,
        max_skipped_fraction: float = 0.01,
        skipped_log: str | Path | None = None,
        cache: str | Path | None = None,
        cache_bytes: int | None = None,
        **unknown: Never,
    ) -> None:
        refuse_unknown(type(self), unknown)
        check_settings(locals())
        self.dataset, shares = open_split(path, split, mixture)
        self._found, ranks = rank is None, find_ranks(rank, world_size)
        self.rank, self.world_size = ranks.rank, ranks.world
        count, shuffles = self.dataset.samples(split), split == "train" if shuffle is None else shuffle
        drawn = {"balance": balance, "fraction": fraction}
        drawn |= {"window_samples": window_samples, "window_bytes": window_bytes}
        kept = (Path(cache) if cache else cache_folder(), cache_bytes)
        processes, threads = processes_and_threads(self.dataset, split, workers, ranks.here)
        self._place: Place | None = None
        self._sampler: TrainSampler | EvalSampler
        if shuffles:
            order = shuffled(self.dataset, split, shares, order, seed, drawn)
            self._place = Place(self.dataset, split, order, batch_size * ranks.world * accumulation)
            self._sampler = TrainSampler(order, ranks.rank, ranks.world, batch_size, accumulation, (0, 0))
            check_cache(self.dataset, split, order, kept, (RING_SIZE + 1) * batch_size * ranks.world)
        else:
            refuse_without_shuffle({"order": order, **drawn, "accumulation": None if accumulation == 1 else 0})
            self._sampler = EvalSampler(count, ranks.rank, ranks.world, min(batch_size, count))
            processes, threads = 1, processes * threads
        cut, drawn_with = crop if isinstance(crop, Crop) else Crop(crop), seed if shuffles else None
        what = resolve_fields(self.dataset, fields)
        for part, _ in self.dataset.parts(split):
            try_fields(part, split, what, cut, seed, transform)
        job = WorkerSpec(self.dataset, split, cut, self._sampler.micro, drawn_with, threads, kept, what, transform)
        skipped = _Skipped(Path(skipped_log) if skipped_log else None, max_skipped_fraction * count / ranks.world)
        self._device = _device(device)
        self._epochs: EpochLoader | None = EpochLoader(job, self._sampler, skipped, self._device, processes)
        self._pass: object = None  # the newest

    @property
    def epoch(self) -> int:
        return self._place.epoch if self._place else 0

    @property
    def position(self) -> int:
        """In the epoch's order: how many of its samples were handed out, on all ranks together."""
        return self._place.position if self._place else 0

    def progress(self, epochs: int) -> float:
        """Share of a training of `epochs` epochs that was handed out, 0..1: for schedules that fit any hardware."""
        place = self._saved()
        return (place.epoch + place.position / len(place.order)) / max(1, epochs)

    def __len__(self) -> int:
        """Batches of a whole epoch, on each rank."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch. A pass ends with an error where another was begun, or a state was loaded."""
        epochs, place, sampler = self._epochs, self._place, self._sampler
        if epochs is None:
            raise InputError("this loader was closed: make another")
        if self._found and find_ranks() != find_ranks(self.rank, self.world_size):
            raise InputError(
                f"this loader was made for rank {self.rank} of {self.world_size}, but this is another of"
                " torch.distributed: make it after the process group, or give it rank and world_size"
            )
        self._pass = current = object()
        if place and isinstance(sampler, TrainSampler):
            sampler.start = place.epoch, place.position
            sampler.set_epoch(place.epoch)
        for number, batch in enumerate(epochs, 1):
            if place and isinstance(sampler, TrainSampler) and number % sampler.accumulation == 0:
                place.advance(place.step)
            yield batch if self._device is None else batch.to(self._device)
            if self._pass is not current:
                raise InputError("another pass over this loader was begun, or a state was loaded: end this one")

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, and what the order is made from: plain values, the same on every rank."""
        return self._saved().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there, on any number of ranks and with any batch size."""
        self._saved().load_state_dict(state)
        self._pass = None

    def close(self) -> None:
        """End the decoding processes, as the end of the program does."""
        if self._epochs:
            self._epochs.close()
        self._epochs = self._pass = None

    def _saved(self) -> Place:
        if self._place is None:
            raise InputError("a loader that does not shuffle has no state: each of its passes is whole")
        return self._place


class _Skipped(SkipLog):
    """Says once, where no file is kept, that there are samples which cannot be decoded."""

    told = False

    def add(self, entries: Sequence[dict[str, object]]) -> None:
        if entries and not self.path and not self.told:
            self.told = True
            first = entries[0]
            say(
                f"{first['shard']} {first['key']} cannot be decoded ({first['error']}): its row has valid = False, and"
                " so have others like it; skipped_log=FILE lists them",
                sys.stderr,
            )
        super().add(entries)


def _device(device: torch.device | str | None) -> torch.device | None:
    """None for the CPU. Raises InputError for a device that PyTorch does not know, or that is not there."""
    if device is None:
        return None
    try:
        place = torch.device(device)
        if place.type == "cuda" and place.index is None:
            place = torch.device("cuda", torch.cuda.current_device())
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise InputError(f"device {device} cannot be used: {str(error).splitlines()[0]}") from None
    return None if place.type == "cpu" else place
