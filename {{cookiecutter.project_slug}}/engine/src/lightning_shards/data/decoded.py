"""Whether the pixels of a split are kept beside its tars once they are decoded, and as what.

Small images cost more to decode than to keep: where every one fits a square of MOST_SIDE pixels, the first pass over a
split writes each sample's pixels and target into an array beside its tar (`ArrayFile`), and later passes read those.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..machine import cache_folder, memory_bytes
from ..terminal import in_bytes
from .array_file import record_type
from .array_plan import ArrayPlan
from .dataset import Dataset
from .decode import DecodeError, decode_image
from .fields import Fields, Image
from .fields.base import in_plane
from .sample_reader import SampleReader
from .spread import SMALL
from .transform import Transform

MOST_SIDE = 96  # pixels
STEP = 16  # to which the side is rounded up where images differ in size
LOOKED_AT = 8  # shards, and samples of each, by which the size of the images is told
LEAST_BYTES = 1 << 20  # less is decoded in no time
VERSION = 1
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
SIZE = "size"  # part of a record: (height, width) of the image in its room


@dataclass(frozen=True)
class DecodedPlan(ArrayPlan):
    """What is kept of each sample of a split: the pixels, (height, width) of the image as `size`, and other fields.

    Attributes:
        image: name of the field with the pixels.
        height, width: of the room for them.
        others: the other fields.
    """

    image: str
    height: int
    width: int
    others: Fields


def plan_decoded(
    dataset: Dataset,
    split: str,
    fields: Fields,
    transform: Transform | None,
    reader: SampleReader,
    limit: int | None,
) -> tuple[DecodedPlan | None, str]:
    """What to keep of a split, or None, and a sentence for a person, "" where there is nothing to say.

    Args:
        fields: of a sample.
        transform: changes each decoded sample of this pass; None: none does.
        reader: of the split.
        limit: bytes that may be kept; None: half of what is free on the disk, and of the memory; 0 keeps nothing.
    """
    if limit == 0:
        return None, ""
    plan = possible_plan(dataset, split, fields, transform, reader)
    if isinstance(plan, str):
        return None, f"data.decoded_bytes plays no part for {split}: {plan}" if limit else ""
    needed = plan.needed(dataset.splits[split])
    if limit is None and needed < LEAST_BYTES:
        return None, ""
    there = plan.open(dataset.splits[split][0]) is not None
    allowed = default_bytes(dataset, there) if limit is None else limit
    if needed > allowed:
        return None, (
            f"images of {split} are decoded in each epoch: to keep them takes {in_bytes(needed)}, and"
            f" data.decoded_bytes allows {in_bytes(allowed)}"
        )
    where = "beside the tars" if isinstance(dataset.root, Path) else f"in {cache_folder()}"
    what = f"read decoded, from {where}" if there else f"decoded once and kept {where} for later epochs"
    return plan, f"images of {split} are {what} ({in_bytes(needed)}; data.decoded_bytes: 0 decodes them in each epoch)"


def possible_plan(
    dataset: Dataset, split: str, fields: Fields, transform: Transform | None, reader: SampleReader
) -> DecodedPlan | str:
    """What can be kept of a split, or why nothing can. The arguments are those of `plan_decoded`."""
    why = _unfit(dataset, split, fields) or ("a transform changes each decoded sample" if transform else "")
    sizes = list[tuple[int, int]]()
    for size in () if why else _sizes(dataset, split, fields, reader):
        sizes.append(size)
        if max(size) > MOST_SIDE:
            return f"images are larger than {MOST_SIDE} pixels"
    if not sizes:
        return why or "no image was found to tell their size by"
    return _plan(dataset, fields, *_room(sizes))


def _unfit(dataset: Dataset, split: str, fields: Fields) -> str:
    """Why the samples of a split cannot be kept."""
    images = [name for name, one in fields.items() if isinstance(one, Image)]
    others = [one for name, one in fields.items() if name not in images]
    if len(dataset.parts(split)) > 1:
        return "a mixture is read from its tars"
    room = SMALL if isinstance(dataset.root, str) else 4 * MOST_SIDE**2  # not to fetch a shard of photos for a look
    if sum(shard.bytes for shard in dataset.splits[split]) > room * dataset.samples(split):
        return "samples have more bytes than small images"
    if not all(_CHECKSUM.fullmatch(shard.sha256) for shard in dataset.splits[split]):
        return "dataset.json does not have the SHA-256 of each shard"
    if len(images) != 1 or not fields[images[0]].required:
        return "samples have not one image each"
    if any(one.shape is None or in_plane(one) or not hasattr(one, "describe") for one in others):
        return "samples hold more than an image and numbers"
    if taken := {SIZE, "there"}.intersection(fields):
        return f"a field is called {taken.pop()}"
    return ""


def _sizes(dataset: Dataset, split: str, fields: Fields, reader: SampleReader) -> Iterator[tuple[int, int]]:
    """(height, width) of some images, from all over the split; behind a URL from its first shard."""
    shards = dataset.splits[split]
    place = [isinstance(one, Image) for one in fields.values()].index(True)
    looked_at = {0} if isinstance(dataset.root, str) else set(np.linspace(0, len(shards) - 1, LOOKED_AT, dtype=int))
    ends = np.cumsum([shard.samples for shard in shards])
    for number in sorted(map(int, looked_at)):
        first, rows = ends[number] - shards[number].samples, np.linspace(0, shards[number].samples - 1, LOOKED_AT)
        for shard, row in reader.locate(sorted({int(first + row) for row in rows}) if shards[number].samples else []):
            try:
                height, width = decode_image(shard.read(row)[place]).shape[:2]
            except (DecodeError, KeyError, IndexError):
                continue
            yield height, width


def _room(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Height and width of the room for an image: theirs where all have the same, else a square."""
    if len(set(sizes)) == 1:
        return sizes[0]
    side = min(MOST_SIDE, -(-max(map(max, sizes)) // STEP) * STEP)
    return side, side


def _plan(dataset: Dataset, fields: Fields, height: int, width: int) -> DecodedPlan:
    image = next(name for name, one in fields.items() if isinstance(one, Image))
    others = {name: one for name, one in fields.items() if name != image}
    shapes = {name: (np.dtype(one.dtype), tuple(one.shape or ())) for name, one in others.items()}
    byte = np.dtype(np.uint8)
    record = record_type({image: (byte, (height, width, 3)), **shapes, SIZE: (byte, (2,))})
    described = {name: one.describe() for name, one in others.items()}
    about = {"of": "decoded images", "version": VERSION, image: [height, width], "fields": described}
    return DecodedPlan(dataset.root, "decoded", about, record, image, height, width, others)


def default_bytes(dataset: Dataset, there: bool) -> int:
    """Bytes that may be kept where nothing is set; what is there already takes no more of the disk."""
    memory = memory_bytes() // 2
    return memory if there else min(memory, free_bytes(dataset) // 2)


def free_bytes(dataset: Dataset) -> int:
    """Of the disk where the arrays go."""
    places = [dataset.root] if isinstance(dataset.root, Path) else []
    for place in (*places, *(folder for folder in (cache_folder(), *cache_folder().parents) if folder.exists())):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return sys.maxsize
