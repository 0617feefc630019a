"""The class or the weight of every sample of a split in one file; a balanced order reads a shard's part at a time.

`pack` writes that of the classes beside `dataset.json`. Where it is missing it is made once from the tars, and stored
beside `dataset.json`, or in the user's cache where that cannot be written. Behind a URL it must be there already.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..files import replacing, save_array
from ..machine import cache_folder
from .balance import MOST_REPEATS, WEIGHT_STEPS, count_classes
from .dataset import Dataset, Shard
from .decode import DecodeError
from .fields.resolve import dataset_fields
from .fields.targets import Numbers
from .number_text import to_whole_number
from .remote import Remote
from .shard_file import load_index

READERS = 8
LONGEST = 1 << 20  # bytes of a member that has such a number


@dataclass(frozen=True)
class Column:
    """A whole number of each sample, -1 for none, from one of its members.

    Args:
        setting: that asks for it, for a sentence to the user.
        what: it is, for the same.
        label: of the file's name.
        names: extensions of the member, of which the first that a sample has is read.
        largest: number that there may be.
        read: the number of a member's first bytes, None where there is no member. Raises ValueError with what is wrong.
    """

    setting: str
    what: str
    label: str
    names: tuple[str, ...]
    largest: int
    read: Callable[[bytes | None], int]

    def file_name(self, dataset: Dataset, split: str) -> str:
        """With the fingerprint, so that the file of another version of the dataset is not taken for this one's."""
        return f"{split}.{dataset.fingerprint}.{self.label}.npy"

    def places(self, dataset: Dataset, split: str) -> list[Path]:
        """Where the file may be on this machine; the last place is the user's cache."""
        name = self.file_name(dataset, split)
        cached: Path = cache_folder() / "classes" / name
        return [cached] if isinstance(dataset.root, str) else [dataset.root / name, cached]


def classes_of(dataset: Dataset, setting: str = "data.balance") -> Column:
    """The class of each sample. Raises InputError where the dataset has no classes."""
    if dataset.task != "single_label":
        raise InputError(f"{setting} needs a class for each sample, and the targets of {dataset.root} are others")
    classes = len(dataset.targets)

    def read(data: bytes | None) -> int:
        try:
            number = to_whole_number(data or b"")
        except ValueError:
            return -1
        return number if 0 <= number < classes else -1

    return Column(setting, "the class", "classes", ("cls",), classes - 1, read)


def weights_of(dataset: Dataset, name: str) -> Column:
    """The weight of each sample, in steps of 1 / WEIGHT_STEPS: a number that the dataset has as its field `name`.

    Raises InputError where there is no such field.
    """
    setting, fields = "data.balance", dataset_fields(dataset)
    field = fields.get(name)
    if not isinstance(field, Numbers) or field.count != 1:
        numbers = [name for name, one in fields.items() if isinstance(one, Numbers) and one.count == 1]
        raise InputError(
            f"data.balance: {dataset.root} has no field {name!r} with one number a sample, its weight"
            + (f"; {' and '.join(numbers)} would do" if numbers else ": pack it with --field NAME=COLUMN")
        )

    def read(data: bytes | None) -> int:
        if data is None:
            raise ValueError("it has none")
        try:
            weight = float(field.decode(data, None, None)[0])
        except DecodeError:
            raise ValueError(f"it is {data[:40]!r}") from None
        if not 0 < weight <= MOST_REPEATS:
            raise ValueError(f"it is {weight:.6g}")
        return max(1, round(weight * WEIGHT_STEPS))

    told = zlib.crc32(json.dumps([name, field.describe()]).encode())  # another field, or member, is another file
    label = f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}-{told:08x}.weights"
    return Column(setting, "the weight", label, field.names, MOST_REPEATS * WEIGHT_STEPS, read)


def numbers_file(dataset: Dataset, split: str, column: Column) -> Path:
    """The file with a number of each of the split's samples, whole numbers (N,), -1 for none; made if need be.

    Raises InputError for a number that cannot be, or where they would have to be read through the network.
    """
    if (found := at_hand(dataset, split, column)) is not None:
        return found
    places = column.places(dataset, split)
    if isinstance(dataset.root, str):
        return _fetch(dataset.root, places[-1], dataset, split, column)
    numbers = _read(dataset.root, dataset.splits[split], column)
    for path in places:
        try:
            return save(path, numbers, column.largest + 1)
        except OSError as error:
            why = error.strerror
    raise InputError(f"{column.setting}: {path} cannot be written ({why}), where {column.what} of each sample is kept")


def at_hand(dataset: Dataset, split: str, column: Column) -> Path | None:
    """The same file where there is one on this machine already; else None."""
    return next((path for path in column.places(dataset, split) if _fits(path, dataset, split, column)), None)


def save(path: Path, numbers: ArrayLike, kinds: int) -> Path:
    """Write numbers below `kinds`, all or nothing, in as few bytes as they need. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_array(temporary, np.asarray(numbers).astype(np.int16 if kinds <= np.iinfo(np.int16).max else np.int32))
    return path


def class_counts(file: Path, dataset: Dataset, split: str, shards: Sequence[int]) -> NDArray[np.int64]:
    """Samples of each class, (C,), in the split's shards of these numbers; `file` is that of the classes."""
    numbers, classes = np.load(file, mmap_mode="r"), len(dataset.targets)
    ends = np.cumsum([0, *(shard.samples for shard in dataset.splits[split])])
    parts = (count_classes(numbers[ends[shard] : ends[shard + 1]], classes) for shard in shards)
    return sum(parts, np.zeros(classes, np.int64))


def _fits(path: Path, dataset: Dataset, split: str, column: Column) -> bool:
    """Whether `path` is such a file, for so many samples and numbers."""
    try:
        numbers = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    right = numbers.dtype in (np.int16, np.int32) and numbers.shape == (dataset.samples(split),)
    return right and numbers.min(initial=0) >= -1 and numbers.max(initial=0) <= column.largest


def _fetch(url: str, path: Path, dataset: Dataset, split: str, column: Column) -> Path:
    try:
        content = Remote(url).read(path.name)
    except InputError:
        raise InputError(
            f"{column.setting} needs {column.what} of each sample beforehand, and {url} has no {path.name}: upload that"
            " file too; `pack` writes that of the classes, and a training on a copy of the dataset makes either"
        ) from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"{column.setting}: {path} cannot be written ({error.strerror})") from None
    if not _fits(path, dataset, split, column):
        raise InputError(f"{url}/{path.name} does not fit dataset.json beside it: pack the dataset again")
    return path


def _read(root: Path, shards: Sequence[Shard], column: Column) -> NDArray[np.int32]:
    """The numbers in the tars below `root`."""
    with ThreadPoolExecutor(READERS) as pool:
        parts = pool.map(lambda shard: _read_shard(root / shard.name, shard, column), shards)
        return np.concatenate([np.empty(0, np.int32), *parts])


def _read_shard(path: Path, shard: Shard, column: Column) -> NDArray[np.int32]:
    """Raises InputError, with the sample's name, for a member that has no such number."""
    index = load_index(path, shard)
    offsets, sizes, _ = index.pick(column.names)
    numbers = np.full(len(index), -1, np.int32)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for row, (offset, size) in enumerate(zip(offsets.tolist(), sizes.tolist(), strict=True)):
            text = os.pread(descriptor, min(size, LONGEST), offset) if offset >= 0 else None
            try:
                numbers[row] = column.read(text)
            except ValueError as error:
                raise InputError(
                    f"{column.setting}: {column.what} of {index.keys[row]} in {path} must be above 0 and at most"
                    f" {MOST_REPEATS}, {error}"
                ) from None
    finally:
        os.close(descriptor)
    return numbers
