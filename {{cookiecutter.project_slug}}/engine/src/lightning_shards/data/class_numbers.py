"""The class of every sample of a split in one file, which a balanced order reads a shard's part of at a time.

`pack` writes it beside `dataset.json`. Where it is missing it is made once from the tars, and stored beside
`dataset.json`, or in the user's cache where that cannot be written. Behind a URL it must be there already.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..files import replacing
from ..machine import cache_folder
from .dataset import Dataset, Shard
from .number_text import to_whole_number
from .remote import Remote
from .shard_file import load_index

READERS = 8


def class_numbers(dataset: Dataset, split: str) -> Path:
    """The file with the class numbers of the split's samples, whole numbers (N,), -1 for none; made if need be.

    Raises InputError where the dataset has no classes, or where they would have to be read through the network.
    """
    if dataset.task != "single_label":
        raise InputError(f"data.balance needs a class for each sample, and the targets of {dataset.root} are others")
    name = file_name(dataset, split)
    cached: Path = cache_folder() / "classes" / name
    places = [cached] if isinstance(dataset.root, str) else [dataset.root / name, cached]
    for path in places:
        if _fits(path, dataset, split):
            return path
    if isinstance(dataset.root, str):
        return _fetch(dataset.root, name, cached, dataset, split)
    numbers = _read(dataset.root, dataset.splits[split], len(dataset.targets))
    for path in places:
        try:
            return save(path, numbers, len(dataset.targets))
        except OSError as error:
            why = error.strerror
    raise InputError(f"data.balance: {cached} cannot be written ({why}); pack the dataset again, then it is not needed")


def file_name(dataset: Dataset, split: str) -> str:
    """With the fingerprint, so that the file of another version of the dataset is not taken for this one's."""
    return f"{split}.{dataset.fingerprint}.classes.npy"


def save(path: Path, numbers: ArrayLike, classes: int) -> Path:
    """Write the class numbers, all or nothing, in as few bytes as they need. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.asarray(numbers).astype(np.int16 if classes <= np.iinfo(np.int16).max else np.int32))
    return path


def _fits(path: Path, dataset: Dataset, split: str) -> bool:
    """Whether `path` is such a file, for so many samples and classes."""
    try:
        numbers = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    right = numbers.dtype in (np.int16, np.int32) and numbers.shape == (dataset.samples(split),)
    return right and numbers.min(initial=0) >= -1 and numbers.max(initial=0) < len(dataset.targets)


def _fetch(url: str, name: str, path: Path, dataset: Dataset, split: str) -> Path:
    try:
        content = Remote(url).read(name)
    except InputError:
        raise InputError(
            f"data.balance needs the class of each sample beforehand, and {url} has no {name}: pack the dataset again"
            " and upload that file too, or balance a copy on this machine"
        ) from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"data.balance: {path} cannot be written ({error.strerror})") from None
    if not _fits(path, dataset, split):
        raise InputError(f"{url}/{name} does not fit dataset.json beside it: pack the dataset again")
    return path


def _read(root: Path, shards: Sequence[Shard], classes: int) -> NDArray[np.int32]:
    """The class numbers in the tars below `root`."""
    with ThreadPoolExecutor(READERS) as pool:
        parts = pool.map(lambda shard: _read_shard(root / shard.name, shard, classes), shards)
        return np.concatenate([np.empty(0, np.int32), *parts])


def _read_shard(path: Path, shard: Shard, classes: int) -> NDArray[np.int32]:
    index = load_index(path, shard)
    offsets, sizes, _ = index.pick(("cls",))
    numbers = np.full(len(index), -1, np.int32)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for row, (offset, size) in enumerate(zip(offsets.tolist(), sizes.tolist(), strict=True)):
            text = os.pread(descriptor, min(size, 64), offset) if offset >= 0 else b""
            with suppress(ValueError):
                number = to_whole_number(text)
                numbers[row] = number if 0 <= number < classes else -1
    finally:
        os.close(descriptor)
    return numbers
