"""Which fields a training has: those that the team names, else those that the dataset describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...errors import InputError
from ..box_text import fault
from ..dataset import Dataset
from ..decode import DecodeError, check_mask_size
from .base import Field, Fields, in_plane, is_field
from .free import Array, Bytes, Json, Text
from .plane import Boxes, Image, Mask
from .targets import ClassIndex, MultiHot, Numbers

_KINDS: dict[str, Callable[..., Field]] = {
    kind.kind: kind for kind in (Array, Boxes, Bytes, ClassIndex, Image, Json, Mask, MultiHot, Numbers, Text)
}
WantedFields = Mapping[str, Field] | Callable[[Dataset], Mapping[str, Field]] | None


def from_description(description: Mapping[str, Any]) -> Field:
    """The field that `Field.describe` described. Raises InputError for what is none."""
    if not isinstance(description, Mapping):
        raise InputError(f"a field is described by its kind and settings, not by {str(description)[:80]!r}")
    settings = dict(description)
    kind = settings.pop("kind", None)
    make = _KINDS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise InputError(f"there is no field of the kind {str(kind)[:80]!r}; there are {', '.join(sorted(_KINDS))}")
    if "names" in settings and not isinstance(settings["names"], list | tuple):
        raise InputError(f"a field's names are a list of extensions, not {str(settings['names'])[:80]!r}")
    try:
        return make(**settings)
    except TypeError as error:
        raise InputError(f"a field of the kind {kind} has other settings ({str(error)[:200]})") from None


def target_field(dataset: Dataset) -> Field:
    """The target that a dataset's task names: a class number, several classes, numbers, classes of pixels, or boxes."""
    makes: dict[str, Callable[[int], Field]] = {
        "single_label": ClassIndex, "multi_label": MultiHot, "regression": Numbers, "segmentation": Mask,
        "detection": Boxes,
    }  # fmt: skip
    return makes[dataset.task](len(dataset.targets))


def usual_fields(dataset: Dataset) -> dict[str, Field]:
    """An image, and the target where the dataset has one."""
    return {"image": Image(), **({dataset.target_field: target_field(dataset)} if dataset.task else {})}


def dataset_fields(dataset: Dataset) -> dict[str, Field]:
    """What the samples of a dataset hold: what its `dataset.json` describes, else an image and a target."""
    if not dataset.fields:
        return usual_fields(dataset)
    found = {}
    for name, description in dataset.fields.items():
        try:
            found[name] = from_description(description)
        except InputError as error:
            raise InputError(f"{dataset.root}/dataset.json: field {name!r}: {error}") from None
    return found


def resolve_fields(dataset: Dataset, wanted: WantedFields = None) -> dict[str, Field]:
    """The fields of a training: `wanted`, or what it says of the dataset, or with None what the dataset holds.

    Raises InputError where it names no fields.
    """
    found = wanted(dataset) if callable(wanted) else wanted
    if found is None:
        return dataset_fields(dataset)
    if not isinstance(found, Mapping) or not found or not all(isinstance(name, str) and name for name in found):
        raise InputError(f"fields is a mapping from names to fields, not {str(found)[:80]!r}")
    for name, field in found.items():
        if not is_field(field):
            raise InputError(
                f"the field {name!r} is {str(field)[:80]!r}: a field has names, shape, dtype, required and decode"
            )
    return dict(found)


def check_sample(
    fields: Fields, members: Mapping[str, bytes], values: dict[str, Any] | None = None
) -> Iterator[tuple[str, str]]:
    """What is wrong with a sample: (field, why), for `verify`.

    `members` holds each field's bytes, where the sample has them; what they decode to goes into `values`.
    """
    size: tuple[int, int] | None = None
    values = {} if values is None else values
    for name, field in in_decoding_order(fields).items():
        if name not in members:
            if field.required:
                yield name, f"the sample has no {'/'.join(field.names)}"
            continue
        try:
            value = values[name] = field.decode(members[name], None, None)
            if in_plane(field):
                size = size or value.shape[:2]
                if not isinstance(field, Image):
                    check_mask_size(value.shape, size)
            elif isinstance(field, Boxes) and (why := fault(value["boxes"], size)):
                yield name, why
        except DecodeError as error:
            yield name, str(error.args[0])


def in_decoding_order(fields: Fields) -> dict[str, Field]:
    """Numbers first, which cost little; then images, which give the view its size; what needs a view last."""

    def turn(name: str) -> int:
        field = fields[name]
        if isinstance(field, Image):
            return 1
        return 0 if field.shape is not None and not in_plane(field) else 2 if in_plane(field) else 3

    return {name: fields[name] for name in sorted(fields, key=turn)}
