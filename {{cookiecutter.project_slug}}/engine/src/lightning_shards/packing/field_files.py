"""A sample's further members, from what the listing says of its fields. Runs in `pack`'s worker processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..data.box_text import fault, parse
from ..data.decode import Unusable
from ..data.fields import Field
from ..data.fields.plane import IGNORED
from ..errors import InputError
from .encode import Encoded, encode, encode_mask
from .field_columns import INLINE, suffix_of
from .members import LAYOUTS, NOT_OF_THIS_KIND, TO_SEE, Forms, add_forms, describe, forms_of
from .source_table import SourceTable
from .target_classes import check_classes_of

SUFFIXES = {
    "numbers": ("json",), "text": ("txt",), "class": ("cls",), "labels": ("json",), "image": ("jpg", "png", "webp"),
    "mask": ("png",), "boxes": ("json",), "boxes_xywh": ("json",), "array": ("npy",), "json": ("json",),
}  # fmt: skip


class Member(NamedTuple):
    extension: str  # in the tar
    data: bytes
    forms: list[str]  # as `forms_of` gives them


def extensions(about: Mapping[str, Any]) -> list[str]:
    """Those that a field's members have in the tars."""
    return [f"{about['name']}.{suffix}" for suffix in SUFFIXES.get(about["kind"], about["suffixes"])]


class FieldMaker:
    """Makes the members of one field.

    Args:
        about: what `describe_listed` says of it.
        read: a file's bytes by its path; raises OSError or ValueError.
        short_side, quality: of images, as for `encode`.
        target: whether it is what a model is trained on: masks and boxes that are whole and cannot be used are
            refused then.
    """

    def __init__(
        self,
        about: Mapping[str, Any],
        read: Callable[[str], bytes],
        short_side: int | None,
        quality: int,
        target: bool = False,
    ) -> None:
        self.name, self.kind, self._target = about["name"], about["kind"], target
        self._read, self._settings = read, (short_side, quality)
        self._numbers = {name: number for number, name in enumerate(about["classes"])}

    def member(self, text: str, image: Encoded, path: str) -> Member:
        """From the listing's text; `image` is the sample's own, and lay at `path`.

        Raises OSError or ValueError for damage, InputError for a target that is whole and cannot be used.
        """
        suffix = SUFFIXES.get(self.kind, ("",))[0]
        where = f"the mask {text}" if self.kind == "mask" else f"the image {path}"
        try:
            if self.kind == "image":
                suffix, data, *_ = encode(self._read(text), *self._settings)
            elif self.kind == "mask":
                data = encode_mask(self._read(text), image)
            elif self.kind in INLINE:
                data = text.encode("utf-8", "surrogateescape") if text.lstrip()[:1] in "{[" else self._read(text)
                data = data if self.kind == "json" else self._boxes(data, image)
                json.loads(data)
            elif self.kind in ("array", "bytes"):
                data, suffix = self._read(text), suffix or suffix_of(text)
            else:
                data = self._plain(text).encode()
            forms = forms_of(self.kind, data) if self.kind in TO_SEE else []
            if self._target and self._numbers:
                ignored = IGNORED if self.kind == "mask" else None
                check_classes_of(where, forms, len(self._numbers), ignored)
        except Unusable as error:
            if self._target:
                raise InputError(f"{where}{'' if self.kind == 'mask' else ':'} {error}") from None
            raise ValueError(f"{self.name}: {error}"[:300]) from None
        except OSError as error:
            raise ValueError(f"{self.name}: {text} cannot be read ({error.strerror})") from None
        except NOT_OF_THIS_KIND as error:
            raise ValueError(f"{self.name}: {error}"[:300]) from None
        return Member(f"{self.name}.{suffix}", data, forms)

    def _plain(self, text: str) -> str:
        """Of a kind that the listing holds whole."""
        if self.kind == "class":
            return str(self._numbers[text])
        return json.dumps([self._numbers[name] for name in json.loads(text)]) if self.kind == "labels" else text

    def _boxes(self, data: bytes, image: Encoded) -> bytes:
        """Boxes in pixels of the image as it is stored; as a target left, top, right and bottom, whatever they were.

        Raises Unusable for a target's boxes that can be none.
        """
        if image.given == image.stored and not self._target:
            return data
        content = json.loads(data)
        boxes, labels = parse(content, LAYOUTS[self.kind])
        height, width = image.given
        if self._target:
            if why := fault(boxes, image.given) or ("a label is below 0" if (labels < 0).any() else ""):
                raise Unusable(why)
            boxes = boxes.clip(0, (width, height, width, height))
        down, across = (np.array(image.stored) / image.given).tolist()
        boxes *= (across, down, across, down)
        if LAYOUTS[self.kind] == "xywh":
            boxes[:, 2:] -= boxes[:, :2]
        kept = content if isinstance(content, dict) and "boxes" in content and not self._target else {}
        return json.dumps({**kept, "boxes": boxes.round(3).tolist(), "labels": labels.tolist()}).encode()


def listed_fields(listing: SourceTable, parts: Sequence[Sequence[Forms]]) -> dict[str, Field]:
    """The further fields of a listing's samples; `parts` say what the members hold. Raises InputError."""
    found = {}
    for number, about in enumerate(listing.fields):
        forms: Forms = {}
        for part in parts:
            add_forms(forms, part[number])
        settings = about["kind"], extensions(about), about["required"], forms, len(about["classes"])
        found[about["name"]] = describe(about["name"], *settings)
    return found
