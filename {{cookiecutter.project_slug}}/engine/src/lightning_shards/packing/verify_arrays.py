"""The array of a shard beside what its tar decodes to, for `verify`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.array_cache import cached_arrays
from ..data.array_file import HERE, ArrayFile
from ..data.crop import Crop
from ..data.dataset import Dataset, Shard
from ..data.decoded import SIZE, DecodedPlan
from ..data.worker import WorkerSpec
from ..errors import InputError, RunError
from ..machine import cache_folder

WHAT_TO_DO = "delete it: it is made anew when it is needed"


class ArrayCheck:
    """Sample by sample, the arrays of one shard: beside the tar, and in the user's cache."""

    def __init__(self, plan: DecodedPlan | None, shard: Shard) -> None:
        self._plan, self._wrong = plan, dict[Path, list[str]]()
        self._files: list[ArrayFile] = []
        self.unusable: list[Path] = []
        for path in filter(Path.exists, plan.places(shard) if plan else []):
            assert plan
            file = ArrayFile.open(path, plan.record, shard.samples, plan.made(shard))
            if file:
                self._files.append(file)
                self._wrong[path] = []
            else:
                self.unusable.append(path)

    def compare(self, row: int, key: str, values: Mapping[str, Any] | None) -> None:
        """Of a sample, what its members decode to; None where they do not."""
        for file in self._files:
            if row < len(file.there) and file.there[row] == HERE and not (values and self._same(file, row, values)):
                self._wrong[file.path].append(key)

    def _same(self, file: ArrayFile, row: int, values: Mapping[str, Any]) -> bool:
        plan = self._plan
        assert plan
        record, image = file.rows[row].view(plan.record)[0], values[plan.image]
        height, width = image.shape[:2]
        if record[SIZE].tolist() != [height, width] or not np.array_equal(record[plan.image][:height, :width], image):
            return False
        for name, one in plan.others.items():
            expected = np.broadcast_to(np.asarray(values.get(name, getattr(one, "missing", 0))), one.shape or ())
            if not np.array_equal(record[name], expected.astype(one.dtype), equal_nan=one.dtype.kind == "f"):
                return False
        return True

    def findings(self, root: Path | str) -> Iterator[tuple[str, str]]:
        """(name of an array, what is wrong with it)."""
        for path in self.unusable:
            yield _name(path, root), f"was made from something else, is cut short or damaged; {WHAT_TO_DO}"
        for path, keys in self._wrong.items():
            if keys:
                error = f"{len(keys)} of its records are not what the tar holds, the first is {keys[0]}; {WHAT_TO_DO}"
                yield _name(path, root), error


def plans(dataset: Dataset) -> dict[str, DecodedPlan]:
    """What arrays of the splits would hold, where there may be any."""
    found = {}
    if isinstance(dataset.root, Path) or cached_arrays().exists():
        for split in dataset.splits:
            try:
                plan = WorkerSpec(dataset, split, Crop(1), 1, None, 1, (cache_folder(), None)).possible_plan()
            except (InputError, RunError, OSError):  # of a tar, whose damage is named where it is read
                continue
            if not isinstance(plan, str):
                found[split] = plan
    return found


def _name(path: Path, root: Path | str) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
