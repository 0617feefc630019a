"""Several datasets read as one: the training shards of each behind those of the one before.

The first one decides what there is to learn. The others' targets are found in it by name, and their numbers replaced
when a sample is read: two datasets may have their classes in another order, or the others only some of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..errors import InputError
from .dataset import TARGET_FIELDS, Dataset, Shard
from .number_text import to_whole_number, to_whole_numbers
from .shard_file import ShardFile


@dataclass(frozen=True)
class Renumbering:
    """Replaces the target numbers of a sample: `numbers[i]` is the first dataset's number of this one's target i."""

    task: str
    numbers: tuple[int, ...]

    def __call__(self, data: bytes) -> bytes:
        """The target's bytes with the first dataset's numbers; bytes that are no target come back as they are, and
        numbers that no target has become -1: the decoder refuses both."""
        try:
            if self.task == "single_label":
                return str(self._number(to_whole_number(data))).encode()
            content = json.loads(data)
            if self.task == "multi_label":
                content["labels"] = list(map(self._number, to_whole_numbers(content["labels"]).tolist()))
            else:
                values: list[Any] = [None] * len(self.numbers)
                for number, value in zip(self.numbers, content["targets"], strict=True):
                    values[number] = value
                content["targets"] = values
            return json.dumps(content).encode()
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return data if self.task != "single_label" else b"-1"

    def _number(self, number: int) -> int:
        return self.numbers[number] if 0 <= number < len(self.numbers) else -1

    @property
    def member(self) -> str:
        """The extension that it is for."""
        return "cls" if self.task == "single_label" else "json"


@dataclass(frozen=True)
class JoinedDataset(Dataset):
    """`members` in one: their training shards, and for the rest the first one's."""

    members: Sequence[Dataset] = ()

    def parts(self, split: str) -> Sequence[tuple[Dataset, Sequence[Shard]]]:
        members = self.members if split == "train" else self.members[:1]
        return [(member, member.splits[split]) for member in members]


def join(members: Sequence[Dataset]) -> JoinedDataset:
    """Raises InputError where a dataset has other targets than the first."""
    first = members[0]
    for other in members[1:]:
        renumbering(first, other)
        if other.fields != first.fields:
            raise InputError(f"data.mixture: the samples of {first.root} and {other.root} have other fields")
    about = {one.name: getattr(first, one.name) for one in fields(Dataset)}
    train = [shard for member in members for shard in member.splits["train"]]
    return JoinedDataset(**about | {"splits": {**first.splits, "train": train}}, members=tuple(members))


def renumbering(first: Dataset, other: Dataset) -> Renumbering | None:
    """What makes the targets of `other` those of `first`; None where they are already."""
    if other.task != first.task:
        raise InputError(f"data.mixture: {other.root} is for {other.task}, {first.root} for {first.task}")
    known = {name: number for number, name in enumerate(first.targets)}
    strange = [name for name in other.targets if name not in known]
    if first.task == "regression" and not strange:
        strange = [name for name in first.targets if name not in other.targets]
    if strange:
        raise InputError(
            f"data.mixture: {first.root} and {other.root} differ in their targets: only one has {strange[0]!r};"
            " pack them with the same names"
        )
    numbers = tuple(known[name] for name in other.targets)
    if first.task in TARGET_FIELDS and other.targets != first.targets:
        raise InputError(
            f"data.mixture: {first.root} and {other.root} number the classes of their {first.target_field} differently:"
            " pack both with the same --names"
        )
    return None if numbers == tuple(range(len(numbers))) else Renumbering(first.task, numbers)


class RenumberedShardFile(ShardFile):
    """A shard of another dataset than the first, read with the first one's target numbers."""

    def __init__(self, renumber: Renumbering, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._renumber = renumber

    def read(self, row: int) -> list[bytes]:
        contents = super().read(row)
        for place, names in enumerate(self._wanted):
            if self._renumber.member in names:
                contents[place] = self._renumber(contents[place])
        return contents
