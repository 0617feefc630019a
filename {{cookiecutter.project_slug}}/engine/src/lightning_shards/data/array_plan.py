"""What the arrays beside the tars of a dataset hold, and where each lies."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .array_cache import cached_arrays, make_room, used
from .array_file import ArrayFile, Made, PartialFile, left_behind, place_while_made
from .dataset import Shard


@dataclass(frozen=True)
class ArrayPlan:
    """Arrays with a record for each sample of a split.

    Attributes:
        root: of the dataset.
        name: in the files' names: `<tar>.<name>-<hash of what it is>.npy`.
        about: what the records are and what made them, but for the shard: plain values.
        record: of a sample: its parts, then `there`.
    """

    root: Path | str
    name: str
    about: Made
    record: np.dtype[Any] = field(compare=False)

    @property
    def digest(self) -> str:
        """Of `about`."""
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:8]

    def needed(self, shards: Iterable[Shard]) -> int:
        """Bytes of the arrays of these shards, but for a few KB each."""
        return self.record.itemsize * sum(shard.samples for shard in shards)

    def made(self, shard: Shard) -> dict[str, Any]:
        """What the array of a shard is made from: a tar of the same bytes, in whatever dataset, has the same."""
        return {**self.about, "sha256": shard.sha256}

    def places(self, shard: Shard) -> list[Path]:
        """Where the array of a shard may lie: beside the tar, or in the user's cache where that cannot be written."""
        name = f"{self.name}-{self.digest}.npy"
        cached = cached_arrays() / f"{hashlib.sha256(shard.sha256.encode()).hexdigest()[:32]}.{name}"
        if isinstance(self.root, str):
            return [cached]
        beside = self.root / shard.name
        return [beside.with_name(f"{beside.name}.{name}"), cached]

    def open(self, shard: Shard) -> ArrayFile | None:
        """The array of a shard, mapped, where it is there and fits, and so does the tar in its folder."""
        if isinstance(self.root, Path):
            try:
                if (self.root / shard.name).stat().st_size != shard.bytes:
                    return None
            except OSError:  # whoever reads the tar says what is wrong
                return None
        for path in self.places(shard):
            if found := ArrayFile.open(path, self.record, shard.samples, self.made(shard)):
                used(path)
                return found
        return None

    def finish(self, shard: Shard) -> ArrayFile | None:
        """The same, where need be out of a file in the making that has all records, and that nobody writes any more.

        Raises OSError.
        """
        found = self.open(shard)
        for path in () if found else self.places(shard):
            if place_while_made(path).exists():
                PartialFile(path, self.record, shard.samples, self.made(shard)).finish()
        return found or self.open(shard)

    def left(self, shard: Shard) -> ArrayFile | None:
        """What an earlier process of this machine has written of it."""
        found = (left_behind(path, self.record, shard.samples, self.made(shard)) for path in self.places(shard))
        return next((file for file in found if file), None)

    def begin(self, shard: Shard, limit: int | None = None) -> ArrayFile | PartialFile:
        """The array of a shard while it is made, or as another process has finished it meanwhile. Raises OSError.

        `limit`: bytes of such arrays that may lie in the user's cache; None: any number.
        """
        failed = OSError()
        for path in self.places(shard):
            try:
                if limit is not None and path.parent == cached_arrays():
                    make_room(path, self.name, self.needed([shard]), limit)
                begun = PartialFile(path, self.record, shard.samples, self.made(shard))
            except OSError as error:
                failed = failed if failed.errno == errno.ENOSPC else error
                continue
            finished = self.open(shard)
            if finished:
                begun.place.unlink(missing_ok=True)
            return finished or begun
        raise failed
