"""Images to predict, by number: of a file, a folder, a zip, a table of paths, or a split of a packed dataset."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from .. import machine
from ..data.cache import Cache
from ..data.crop import Crop
from ..data.dataset import Dataset
from ..data.decode import DecodeError, Pixels
from ..data.fields import Image
from ..data.file_names import IMAGE_FIELDS, is_image_file
from ..data.remote import open_dataset
from ..data.sample_reader import SampleReader
from ..data.transform import Transform, apply
from ..errors import InputError
from ..packing.image_files import ImageFiles, check_root, list_zip, walk
from ..packing.table_rows import PATHS, table_paths
from ..packing.tables import is_table

AHEAD = 2  # batches in the making


class Images(Protocol):
    """Images 0 to N - 1."""

    def __len__(self) -> int: ...

    def name(self, number: int) -> str: ...

    def read(self, number: int) -> bytes:
        """The image file. Raises OSError, ValueError or KeyError where it is missing or damaged."""

    def expect(self, first: int, last: int) -> None:
        """These are read next."""

    def close(self) -> None: ...


class Files:
    """Files below a folder, or in a zip."""

    def __init__(self, files: ImageFiles, names: Sequence[str]) -> None:
        self._files, self._names = files, names

    def __len__(self) -> int:
        return len(self._names)

    def name(self, number: int) -> str:
        return self._names[number]

    def read(self, number: int) -> bytes:
        return self._files.read(self._names[number])

    def expect(self, first: int, last: int) -> None:
        pass

    def close(self) -> None:
        self._files.close()


class Samples:
    """The samples of a split, in its order."""

    def __init__(self, dataset: Dataset, split: str, cache: tuple[Path, int | None]) -> None:
        if not dataset.splits.get(split):
            raise InputError(f"{dataset.root} has no split {split!r}; it has {', '.join(dataset.splits)}")
        copies = Cache(dataset.root, *cache) if isinstance(dataset.root, str) else None
        self._store = SampleReader(dataset, split, (IMAGE_FIELDS,), copies)

    def __len__(self) -> int:
        return len(self._store)

    def name(self, number: int) -> str:
        ((shard, row),) = self._store.locate([number])
        return f"{shard.name}/{shard.keys[row]}"

    def read(self, number: int) -> bytes:
        ((shard, row),) = self._store.locate([number])
        return shard.read(row)[0]

    def expect(self, first: int, last: int) -> None:
        shards = self._store.numbers([first, last]).tolist()
        self._store.expect(range(shards[0], min(shards[1] + 2, len(self._store.shards))))

    def close(self) -> None:
        self._store.close(wait=False)


def open_images(
    place: str, split: str | None, column: str | None, images: Path | None, settings: dict[str, Any]
) -> Images:
    """The images at `place`.

    Args:
        place: an image, a folder with images at any depth, a zip of one, a table of paths, or a packed
            dataset (folder or URL).
        split: of a dataset; None: test.
        column, images: of a table: which one has the paths (None: PATHS), and the folder or zip they lie in (None: the
            table's).
        settings: of `data`: the cache for the shards of a URL.

    Raises InputError where there are none, and for what is said of another kind of place.
    """
    try:
        found = _find(place, split, column, images, settings)
    except OSError as error:
        raise InputError(f"{place[:200]} cannot be read ({error.strerror}: {error.filename})") from None
    if not len(found):
        raise InputError(f"{place} has no images")
    return found


def _find(place: str, split: str | None, column: str | None, images: Path | None, settings: dict[str, Any]) -> Images:
    path = Path(place)
    packed = "://" in place or (path / "dataset.json").is_file()
    if not packed and not path.exists():
        raise InputError(f"{place} does not exist")
    table = not packed and is_table(path)
    for option, given, fits, kind in (
        ("--images is the folder of a table's images", images, table, "table"),
        ("--path-column is a column of a table", column, table, "table"),
        ("--split is a part of a packed dataset", split, packed, "such dataset"),
    ):
        if given is not None and not fits:
            raise InputError(f"{option}, and {place[:200]} is no {kind}: leave it out")
    if packed:
        folder = Path(cache) if (cache := settings.get("cache")) else machine.cache_folder()
        return Samples(open_dataset(place), split or "test", (folder, settings.get("cache_bytes")))
    if table:
        root = images or path.parent
        check_root(root)
        files = ImageFiles(root, list_zip(root)[1] if root.is_file() else None)
        return Files(files, list(table_paths(path, column or PATHS, root)))
    if path.is_dir():
        return Files(ImageFiles(path), [name for name, _ in walk(path) if _is_file_of_image(name)])
    if path.suffix.lower() == ".zip":
        names, members = list_zip(path)
        return Files(ImageFiles(path, members), [name for name in names if _is_file_of_image(name)])
    return Files(ImageFiles(Path()), [place])


def _is_file_of_image(name: str) -> bool:
    return not name.endswith("/") and is_image_file(name)


class Cropped(NamedTuple):
    """Images `first`, `first` + 1, ...: B of them."""

    first: int
    pixels: Pixels  # (B, S, S, 3); 0 where it could not be decoded
    errors: list[str]  # why not; empty where it could


def batches(images: Images, crop: Crop, size: int, transform: Transform | None) -> Iterator[Cropped]:
    """All `images` in batches of `size`, the centre of each, as in validation; by a thread for each CPU core.

    A `transform` changes each, as a sample that has an image only. Raises InputError where it gives no such image.
    """

    def fill(number: int, out: Pixels) -> str:
        try:
            crop(images.read(number), None, out)
            if transform:
                sample = {"image": out}
                apply(transform, sample, {"image": Image()}, number)
                out[:] = sample["image"]
        except (DecodeError, OSError, ValueError, KeyError) as error:
            return str(getattr(error, "strerror", None) or (error.args or ["cannot be read"])[0])
        return ""

    pool = ThreadPoolExecutor(machine.cpus(), "decode")
    pending: deque[tuple[int, Pixels, list[Future[str]]]] = deque()

    def finish() -> Cropped:
        first, pixels, filled = pending.popleft()
        return Cropped(first, pixels, [future.result() for future in filled])

    try:
        for first in range(0, len(images), size):
            numbers = range(first, min(first + size, len(images)))
            images.expect(pending[0][0] if pending else first, numbers[-1])
            pixels = np.zeros((len(numbers), crop.size, crop.size, 3), np.uint8)
            filled = [pool.submit(fill, number, out) for number, out in zip(numbers, pixels, strict=True)]
            pending.append((first, pixels, filled))
            if len(pending) == AHEAD:
                yield finish()
        while pending:
            yield finish()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        images.close()
