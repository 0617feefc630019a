"""webdataset's sample dictionaries in our order and with our state, for its own stages and torch's DataLoader.

    samples = ShardSamples("data/mine", batch_size=64)
    pipeline = wds.DataPipeline(samples, wds.decode("torchrgb"), wds.to_tuple("jpg;png", "cls"), wds.batched(64))
    for images, targets in samples.counted(DataLoader(pipeline, batch_size=None, num_workers=3)):

Worker w of W makes every W-th batch, from the w-th on, and the DataLoader asks its workers in turn: so the batches come
in the order of positions, and the process that trains knows the place by counting them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Never, TypeVar

from torch.utils.data import IterableDataset, get_worker_info

from ..errors import InputError, RunError
from .batcher import PADDING
from .cache import Cache
from .order import Order
from .passes import Passes
from .sample_reader import SampleReader
from .sampler import EvalSampler, TrainSampler
from .training_order import Balance

CODE = ("pyd", "pickle", "pkl", "pth", "pt")  # pickles, which run code when they are decoded
Item = TypeVar("Item")


class ShardSamples(Passes, IterableDataset[dict[str, Any]]):
    """A split's samples: dictionaries of `__key__`, `__url__`, `__position__` in the order, and bytes by extension.

    Args:
        path, split, shuffle, mixture, balance, order, seed, fraction, window_samples, window_bytes, accumulation, rank,
            world_size, cache, cache_bytes: as for `ShardLoader`. Without shuffling nothing is padded: the last batch is
            shorter, and on some ranks there may be none.
        batch_size: samples of a batch on each rank: what the pipeline's last stage, or the DataLoader, puts together.

    A DataLoader over them cannot have `persistent_workers`, whose processes never learn where the next epoch begins. A
    shard with pickles in it is refused: webdataset's `decode` would run what is in them.
    """

    _passed = False  # in a process of a DataLoader

    def __init__(
        self,
        path: str | Path,
        batch_size: int,
        *,
        split: str = "train",
        shuffle: bool | None = None,
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
        cache: str | Path | None = None,
        cache_bytes: int | None = None,
        **unknown: Never,
    ) -> None:
        self._open(locals())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The samples of this process's batches, from the place on. It does not move: `counted` does that."""
        worker = get_worker_info()
        if worker:
            if self._passed:
                raise InputError(
                    "a DataLoader's process that stays would hand out one epoch again: no persistent_workers"
                )
            self._passed = True
        first, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        sampler, roots = self._at_place(), [part.root for part, _ in self.dataset.parts(self.split)]
        caches = [Cache(root, *self._cache) if isinstance(root, str) else None for root in roots]
        reader = SampleReader(self.dataset, self.split, None, caches)
        try:
            at_hand: list[int] = []
            for number, ids in itertools.islice(enumerate(sampler), first, None, workers):
                kept = ids[ids != PADDING]
                shards = sampler.shards(number, number)
                wanted = list(dict.fromkeys(reader.numbers(kept).tolist() if shards is None else shards))
                if wanted != at_hand:
                    reader.expect(at_hand := wanted)
                position = self._first_position(sampler, number)
                for row, (shard, place) in enumerate(reader.locate(kept)):
                    if code := [name for name in shard.extensions if name.rpartition(".")[2] in CODE]:
                        raise InputError(
                            f"{shard.name} has .{code[0]} members, Python pickles, which run code when they are"
                            " decoded: pack the dataset again without them"
                        )
                    about = {"__key__": shard.keys[place], "__url__": shard.name, "__position__": position + row}
                    yield {**about, **shard.members(place)}
        finally:
            reader.close()

    def counted(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches of a DataLoader over these samples, and move the place: a batch counts as done when it is
        handed out. Each call is the next epoch, or goes on where the last one was left.

        Raises RunError at the end where there were more or fewer batches than the samples make: some stage drops or
        adds samples, and the place, which counts batches, would be wrong.
        """
        sampler, number = self._at_place(), 0
        expected = sampler.remaining(sampler.begin) if isinstance(sampler, TrainSampler) else None
        for number, batch in enumerate(batches, 1):
            if expected is not None and number > expected:
                break
            if self._place and isinstance(sampler, TrainSampler) and number % sampler.accumulation == 0:
                self._place.advance(self._place.step)
            yield batch
        if expected is not None and number != expected:
            raise RunError(
                f"the pipeline made {'more' if number > expected else number} batches of {expected} x"
                f" {self.batch_size} samples: its last stage must batch {self.batch_size}, and none may drop or add any"
            )

    def _first_position(self, sampler: TrainSampler | EvalSampler, number: int) -> int:
        begin = sampler.begin if isinstance(sampler, TrainSampler) else 0
        return begin + (number * self.world_size + self.rank) * sampler.micro
