"""The front door for plain PyTorch: an epoch's batches at each iteration, and a state that fits any hardware.

loader = ShardLoader("data/mine", batch_size=256, crop=224)
for epoch in range(loader.epoch, 10):
    for batch in loader:
        loss = criterion(model(batch["image"].float()), batch["target"])
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import torch

from ..errors import InputError
from ..terminal import say
from .batch import Batch
from .crop import Crop
from .embedding import embedded_fields
from .fields.resolve import WantedFields, resolve_fields
from .loader import EpochLoader, SkipLog
from .order import Order
from .passes import Passes
from .ranks import find_ranks
from .sampler import TrainSampler
from .spread import processes_and_threads
from .training_order import Balance
from .transform import Transform
from .trial import try_fields
from .worker import WorkerSpec


class ShardLoader(Passes):
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
        balance: how far to even out the classes, 0 to 1; how many times an epoch shows some; or the name of a field
            that says so of each sample; None: each once.
        order: which sample comes at which position; None: shuffled by the settings around this one.
        seed: of the order and of all random crops.
        fraction: share of the samples to use; the same samples in every epoch.
        window_samples, window_bytes: samples that are mixed with each other at a time, and their bytes at most; None:
            4 GiB, at most a quarter of the memory, or what the state says that is loaded.
        accumulation: batches between two steps of the optimizer: the state moves when all of them were handed out.
        rank, world_size: None: of torch.distributed or of torchrun, where there is one.
        workers: decoding threads; None: CPU cores / ranks on this host.
        device: where batches are wanted: to a CUDA device they are copied ahead, while it computes.
        max_skipped_fraction: raise RunError when more samples than this share of the split cannot be decoded. Fewer are
            rows whose `valid` is false.
        skipped_log: a file that gets a line of JSON for each of them.
        cache, cache_bytes: folder on this node's own disk for the shards of a URL, and the bytes it may hold.
        decoded_bytes: of images of 96 pixels at most, decoded pixels that may be kept beside the tars; None: half of
            the disk that is free, and of the memory; 0 decodes them anew in each pass.
        features: what `embed` has made under this name, in place of the images: the field `features`.
        teacher: what `embed` has made under this name, beside the images: the field `teacher`.

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
        decoded_bytes: int | None = None,
        features: str | None = None,
        teacher: str | None = None,
        **unknown: Never,
    ) -> None:
        self._open(locals())
        self._found, shuffles, count = rank is None, self._place is not None, self.dataset.samples(split)
        processes, threads = processes_and_threads(self.dataset, split, workers, self._ranks.here)
        if not shuffles:
            processes, threads = 1, processes * threads
        cut, drawn_with = crop if isinstance(crop, Crop) else Crop(crop), seed if shuffles else None
        what = embedded_fields(self.dataset, resolve_fields(self.dataset, fields), features, teacher)
        for part, _ in self.dataset.parts(split):
            try_fields(part, split, what, cut, seed, transform)
        job = WorkerSpec(
            self.dataset, split, cut, self._sampler.micro, drawn_with, threads, self._cache, what, transform
        )
        plan, said = job.plan(decoded_bytes)
        job = replace(job, decoded=plan)
        if said and plan is None and self.rank == 0:
            say(said, sys.stderr)
        skipped = _Skipped(Path(skipped_log) if skipped_log else None, max_skipped_fraction * count / self.world_size)
        self._device = _device(device)
        self._epochs: EpochLoader | None = EpochLoader(job, self._sampler, skipped, self._device, processes)
        self._pass: object = None  # the newest

    def __len__(self) -> int:
        """Batches of a whole epoch, on each rank."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch. A pass ends with an error where another was begun, or a state was loaded."""
        epochs, place = self._epochs, self._place
        if epochs is None:
            raise InputError("this loader was closed: make another")
        if self._found and find_ranks() != find_ranks(self.rank, self.world_size):
            raise InputError(
                f"this loader was made for rank {self.rank} of {self.world_size}, but this is another of"
                " torch.distributed: make it after the process group, or give it rank and world_size"
            )
        self._pass = current = object()
        sampler = self._at_place()
        for number, batch in enumerate(epochs, 1):
            if place and isinstance(sampler, TrainSampler) and number % sampler.accumulation == 0:
                place.advance(place.step)
            yield batch if self._device is None else batch.to(self._device)
            if self._pass is not current:
                raise InputError("another pass over this loader was begun, or a state was loaded: end this one")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._pass = None

    def close(self) -> None:
        """End the decoding processes, as the end of the program does."""
        if self._epochs:
            self._epochs.close()
        self._epochs = self._pass = None


class _Skipped(SkipLog):
    """Says once, where no file is kept, that there are samples which cannot be decoded."""

    warned = False

    def add(self, entries: Sequence[dict[str, object]]) -> None:
        if entries and not self.path and not self.warned:
            self.warned = True
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
