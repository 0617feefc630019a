"""What a network made of each sample once, kept in arrays beside the tars: features of an image, scores of a teacher.

`embed` leaves `<name>.embedding.json` beside `dataset.json`, which says what was made and of what. A training names it,
and `embedded_fields` gives the fields that read it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import write_durably
from ..machine import cache_folder
from .array_file import record_type
from .array_plan import ArrayPlan
from .crop import View
from .dataset import Dataset
from .fields import Fields, from_description
from .fields.base import Field, in_plane

VALUES = "values"  # part of a record: float16 (views, length)
FEATURES, TEACHER = "features", "teacher"  # fields of a batch
MOST_VALUES, MOST_VIEWS, MOST_JSON = 1 << 20, 64, 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_FORMAT = 1


@dataclass(frozen=True)
class Embedding:
    """What a network made of the samples of a dataset.

    Attributes:
        name: by which a training calls it.
        network: what made it, and how it looked at the images: plain values.
        length: values of a view.
        views: how often each training image was looked at: 1 is its centre, more are random crops. Of all other
            splits the centre alone is kept.
        others: description of each further field whose values are kept: numbers of fixed shape, the target among them.
    """

    name: str
    network: Mapping[str, Any]
    length: int
    views: int
    others: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == "decoded":  # which pixels are called
            raise InputError(f"{self.name[:80]!r} cannot be an embedding's name: use letters, digits, '-' and '_'")
        if not 1 <= self.views <= MOST_VIEWS:
            raise InputError(f"{self.views} views of an image cannot be kept: 1 to {MOST_VIEWS} would do")

    @property
    def identity(self) -> str:
        """Of what made it: a hash."""
        return hashlib.sha256(json.dumps([self.network, self.length], sort_keys=True).encode()).hexdigest()[:16]

    def plan(self, dataset: Dataset, split: str) -> ArrayPlan:
        """The arrays of a split."""
        views = self.views if split == "train" else 1
        others = {name: from_description(about) for name, about in self.others.items()}
        record = record_type(
            {VALUES: (np.dtype(np.float16), (views, self.length)), **{n: _type(f) for n, f in others.items()}}
        )
        about = {"of": "what a network makes of images", "network": dict(self.network), "views": views}
        about |= {"length": self.length, "fields": {name: dict(one) for name, one in self.others.items()}}
        return ArrayPlan(dataset.root, self.name, about, record)

    def save(self, dataset: Dataset) -> Path:
        """Write down that all of it is there: beside `dataset.json`, or in the cache where that cannot be written."""
        content = {"format": _FORMAT, "dataset": dataset.fingerprint, "network": self.network, "length": self.length}
        text = json.dumps({**content, "views": self.views, "fields": self.others}, indent=1).encode()
        for path in _places(dataset, self.name):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_durably(path, text)
                return path
            except OSError as error:
                failed = error
        raise failed

    def remove(self, dataset: Dataset, successor: Embedding) -> None:
        """Remove its arrays, but for those of splits that its `successor` has taken over as they are."""
        for split, shards in dataset.splits.items():
            plan, next_plan = self.plan(dataset, split), successor.plan(dataset, split)
            for shard in shards:
                for path in {*plan.places(shard)}.difference(next_plan.places(shard)):
                    path.unlink(missing_ok=True)

    @classmethod
    def find(cls, dataset: Dataset, name: str) -> Embedding | None:
        """The embedding of this dataset by name. Raises InputError for one of another dataset, or a damaged one."""
        for path in _places(dataset, name):
            try:
                with path.open("rb") as file:
                    content = json.loads(file.read(MOST_JSON))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, RecursionError) as error:
                raise InputError(f"{path} cannot be read ({str(error)[:80]}): embed again with --force") from None
            return _checked(cls, dataset, name, path, content)
        return None


def _checked(make: type[Embedding], dataset: Dataset, name: str, path: Path, content: Any) -> Embedding:
    try:
        if content["format"] != _FORMAT:
            raise InputError(f"{path} is of another version: embed again with --force")
        if content["dataset"] != dataset.fingerprint:
            raise InputError(f"{path} was made of another dataset than {dataset.root}: embed again with --force")
        counts = [(content["length"], MOST_VALUES), (content["views"], MOST_VIEWS)]
        if not all(type(value) is int and 1 <= value <= most for value, most in counts):
            raise ValueError
        found = make(name, dict(content["network"]), content["length"], content["views"], dict(content["fields"]))
        found.plan(dataset, "train")
        return found
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{path} does not say what was embedded: embed again with --force") from None


def _places(dataset: Dataset, name: str) -> list[Path]:
    file = f"{name}.embedding.json"
    cached = cache_folder() / "arrays" / f"{dataset.fingerprint[:32]}.{file}"
    return [cached] if isinstance(dataset.root, str) else [dataset.root / file, cached]


def _type(field: Field) -> tuple[np.dtype[Any], tuple[int, ...]]:
    return np.dtype(field.dtype), tuple(field.shape or ())


def can_keep(field: Field) -> bool:
    """Whether a field's values may lie beside an embedding: numbers of a fixed shape that is not the image's."""
    return field.shape is not None and not in_plane(field) and hasattr(field, "describe")


@dataclass(frozen=True)
class Embedded:
    """A field whose rows are read from the arrays of an embedding: no member of the tar holds it.

    Attributes:
        embedding: what was made.
        part: of a record: VALUES, or the name of another field.
        shape, dtype: of a row.
    """

    embedding: Embedding
    part: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    names: tuple[str, ...] = ()
    required: bool = True

    def decode(self, data: bytes, view: View | None, out: NDArray[Any] | None) -> Any:
        raise NotImplementedError("an embedded field has no bytes of its own")

    def describe(self) -> dict[str, Any]:
        return {"kind": "embedded", "name": self.embedding.name, "part": self.part}


def embedded_fields(dataset: Dataset, fields: Fields, features: str | None, teacher: str | None) -> dict[str, Field]:
    """The fields of a training that reads embeddings.

    Args:
        fields: without them.
        features: name of an embedding that takes the place of the image, and of all else that is no number of fixed
            shape: `features`, float16 (length,). Nothing is read from the tars then.
        teacher: name of an embedding to have beside: `teacher`, float16 (length,).

    Raises InputError for an embedding that is not there, is another dataset's, or lacks a field.
    """
    found: dict[str, Field] = dict(fields)
    if features is not None:
        embedding = _wanted(dataset, features, "features")
        found = {FEATURES: _values(embedding)}
        for name, field in fields.items():
            if can_keep(field) and not isinstance(field, Embedded):
                if embedding.others.get(name) != field.describe():  # type: ignore[attr-defined]
                    raise InputError(
                        f"the embedding {features!r} of {dataset.root} was made without the field {name!r} as it is"
                        " now: embed again with --force"
                    )
                dtype, shape = _type(field)
                found[name] = Embedded(embedding, name, shape, dtype)
    if teacher is not None:
        found[TEACHER] = _values(_wanted(dataset, teacher, "teacher"))
    return found


def _values(embedding: Embedding) -> Embedded:
    return Embedded(embedding, VALUES, (embedding.length,), np.dtype(np.float16))


def _wanted(dataset: Dataset, name: str, setting: str) -> Embedding:
    if len(dataset.parts("train")) > 1:
        raise InputError(f"{setting} works with one dataset, not with a mixture: leave one of the two out")
    if found := Embedding.find(dataset, name):
        return found
    raise InputError(f"{setting}: {dataset.root} has no embedding {name!r}; make it with `embed NETWORK DATASET`")


def identities(fields: Fields) -> dict[str, str]:
    """Of the embeddings that `fields` read, by field: the same where the same network looked in the same way."""
    return {name: one.embedding.identity for name, one in fields.items() if isinstance(one, Embedded)}
