"""What the loader hands out: the rows of one micro-batch, field by field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

Values = Tensor | list[Any]  # of a field: a row each


class NoField(InputError, KeyError):
    """A field that a model asks for and the data do not have."""

    __str__ = Exception.__str__  # KeyError's puts the sentence in quotes


@dataclass(eq=False)  # not frozen: with a precision such as bf16-true, Lightning makes a copy and sets its fields
class Batch:
    """B rows.

    Attributes:
        fields: by name; a Tensor (B, ...), or for a ragged field a list of B values. `batch["image"]` is the short
            way: images are uint8 (B, 3, S, S), channels_last in memory; `target` is int64 (B,) class numbers, or
            float32 (B, T).
        ids: int64 (B,), sample ids; -1 is padding.
        seeds: int64 (B,), where all random choices for the sample are hashed from.
        valid: bool (B,), false for padding and for samples that could not be decoded: such rows count nowhere.
    """

    fields: Mapping[str, Values]
    ids: Tensor
    seeds: Tensor
    valid: Tensor

    def __getitem__(self, name: str) -> Any:
        """The values of a field. Raises NoField, a KeyError, with the names that there are."""
        try:
            return self.fields[name]
        except KeyError:
            raise NoField(
                f"the batch has no field {name!r}, it has {', '.join(self.fields)}: fields come from the dataset, from"
                " data.features and from data.teacher"
            ) from None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same rows on another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same rows with each tensor, in ragged fields too, replaced by what `change` makes of it."""
        fields = {name: _map(values, change) for name, values in self.fields.items()}
        return Batch(fields, *(change(tensor) for tensor in (self.ids, self.seeds, self.valid)))

    def rows(self, mask: Tensor) -> Batch:
        """The rows where `mask`, bool (B,), is true. Waits for the device where it is a GPU."""
        chosen = mask.nonzero().flatten()
        numbers: list[int] = []
        if any(isinstance(values, list) for values in self.fields.values()):
            numbers = chosen.tolist()
        fields = {
            name: values[chosen] if isinstance(values, Tensor) else [values[number] for number in numbers]
            for name, values in self.fields.items()
        }
        return Batch(fields, self.ids[chosen], self.seeds[chosen], self.valid[chosen])


def _map(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, list):
        return [_map(value, change) for value in values]
    return {name: _map(value, change) for name, value in values.items()} if isinstance(values, dict) else values
