"""Before a training begins: a look at a few samples, with fields or a transform that the team has named."""

from __future__ import annotations

from pathlib import Path

from .batcher import FIRST
from .crop import Crop
from .dataset import Dataset
from .fields import Fields, dataset_fields
from .sampler import EvalSampler
from .transform import Transform
from .worker import WorkerSpec


def try_fields(
    dataset: Dataset, split: str, fields: Fields, crop: Crop, seed: int, transform: Transform | None = None
) -> None:
    """Decode the first FIRST samples of a split in this process, where that may show a mistake.

    Fields of a dataset that describes none, without a transform, are not tried; nor is a dataset behind a URL, whose
    first shard would have to be fetched: its decoding processes find out.

    Raises InputError for a field that the tars lack, and for a transform that cannot be given to other processes, that
    makes something else than the field, or that raises with each of the samples.
    """
    job = WorkerSpec(dataset, split, crop, FIRST, seed, 1, (Path(), None), fields, transform)
    usual = not dataset.fields and fields == dataset_fields(dataset)
    if isinstance(dataset.root, str) or (usual and transform is None):
        return
    decoder, layout = job.decoder, job.layout
    first = EvalSampler(min(FIRST, dataset.samples(split)), 0, 1, FIRST)
    for _ in decoder.batches(first, lambda: (0, layout.arrays(bytearray(layout.bytes)))):
        pass
