"""What is in a tar that others packed, by one pass over it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..data.box_text import fault, parse
from ..data.dataset import Shard
from ..data.decode import DecodeError, check_mask_size, image_size, mask_size
from ..data.file_names import IMAGE_FIELDS
from ..data.shard_file import save_index
from ..data.tar_index import ShardIndex
from ..errors import InputError
from .field_columns import LIKE_MASKS, FieldColumn
from .members import LAYOUTS, MOST_FORMS, NOT_OF_THIS_KIND, TO_SEE, Forms, add_forms, forms_of

CODE = {"pkl", "pickle", "pyd", "pth", "pt"}  # extensions of what other readers would execute
MOST_BYTES = 1 << 28  # of a member that is looked into
UNREADABLE = "unreadable"
_USABLE = re.compile(r"\w[\w.+-]*")  # of extensions: others are left alone
TASK_OF = {"class": "single_label", "labels": "multi_label", "numbers": "regression", "boxes": "detection"}
_SIMPLE_NAMES = {"txt": "text", "npy": "array"}
_KINDS = {"cls": "class", "txt": "text", "npy": "array", "json": "json", **dict.fromkeys(IMAGE_FIELDS, "image")}


@dataclass(frozen=True)
class Members:
    """What a shard has of one field."""

    kind: str
    names: list[str]  # extensions
    samples: int  # that have it
    forms: Forms
    damage: str  # of the first in which it is damaged, and which that is; empty where it is in none


@dataclass(frozen=True)
class Found:
    """What one pass over a shard has found."""

    shard: Shard
    mtime_ns: int
    asked: str  # the fields that were named
    extensions: list[str]
    images: int
    task: str  # of the target; empty where no sample has one, UNREADABLE where none can be read
    targets: Forms
    lacking: list[str]  # keys of samples without image, without a target where others have one, or with a damaged field
    fields: dict[str, Members]


def survey(tar: Path, name: str, digest: str, mtime_ns: int, asked: Sequence[FieldColumn]) -> Found:
    """Look into the shard `name`, which lies at `tar`; its sidecar is stored unless `mtime_ns` is 0.

    Raises InputError for what is no shard.
    """
    index = ShardIndex.build(tar)
    code = CODE.intersection(field.rpartition(".")[2] for field in index.fields)
    if code:
        raise InputError(f"{name} has members .{min(code)}, which hold code and not data; pack the shard without them")
    claimed = {column.column for column in asked}
    image_names = tuple(field for field in IMAGE_FIELDS if field not in claimed)
    images = index.pick(image_names)[0] >= 0
    lacking = ~images if images.any() else np.zeros(len(index), bool)
    with tar.open("rb") as file:
        look = _Look(file, name, index, lacking)
        target = next((field for field in ("cls", "json") if field in index.fields and field not in claimed), "")
        task, targets = look.targets(target) if target else ("", {})
        columns: list[tuple[FieldColumn, tuple[str, ...]]] = [(one, (one.column,)) for one in asked]
        if boxes := task == "detection":  # they are a field, as those of `boxes.json` are
            task, targets = "", {}
        if not asked and not (task and images.any()):  # else image and target are what it holds
            columns = columns_of(set(index.fields) - {target if task or boxes else ""})
        if boxes and "boxes" not in [column.name for column, _ in columns]:
            columns.append((FieldColumn("boxes", target, "boxes"), (target,)))
        fields = {column.name: look.members(column, names, image_names) for column, names in columns}
    if mtime_ns:
        save_index(index, tar)
    keys = [index.keys[row] for row in np.flatnonzero(lacking).tolist()]
    shard = Shard(name, len(index), index.stamp[0], digest)
    found = int(np.count_nonzero(images)), task, targets, keys, fields
    return Found(shard, mtime_ns, str(tuple(asked)), index.fields, *found)


def columns_of(extensions: Collection[str]) -> list[tuple[FieldColumn, tuple[str, ...]]]:
    """The fields that extensions name, but for the image: each with its kind, and its extensions."""
    found: dict[str, tuple[FieldColumn, tuple[str, ...]]] = {}
    for extension in sorted(filter(_USABLE.fullmatch, extensions)):
        first, dot, last = extension.rpartition(".")
        if not dot and extension in IMAGE_FIELDS:
            continue
        kind = kind_of(extension)
        name = "mask" if kind == "mask" else re.sub(r"\W", "_", first or _SIMPLE_NAMES.get(last, last))
        if name in found and found[name][0].kind == kind == "image":  # the same in another format
            found[name] = found[name][0], (*found[name][1], extension)
            continue
        if name in found or name in ("image", "target"):
            name = re.sub(r"\W", "_", extension)
        while name in found:
            name += "_"
        found[name] = FieldColumn(name, extension, kind), (extension,)
    return list(found.values())


def kind_of(extension: str) -> str:
    """The kind of a field whose members have this extension."""
    if extension in [f"{name}.png" for name in LIKE_MASKS]:
        return "mask"
    return "boxes" if extension == "boxes.json" else _KINDS.get(extension.rpartition(".")[2], "bytes")


class _Look:
    """Looks into the members of a shard's samples; a sample in which one is damaged goes into `lacking` (N,)."""

    def __init__(self, file: BinaryIO, shard: str, index: ShardIndex, lacking: Any) -> None:
        self._file, self._shard, self._index, self._lacking = file, shard, index, lacking

    def _read(self, offset: int, size: int) -> bytes:
        if size > MOST_BYTES:
            raise ValueError(f"is larger than {MOST_BYTES >> 20} MB")
        self._file.seek(offset)
        return self._file.read(size)

    def _where(self, row: int) -> str:
        return f"{self._shard}: sample {self._index.keys[row]!r}"

    def _contents(self, names: tuple[str, ...]) -> Iterator[tuple[int, int, int]]:
        offsets, sizes, _ = self._index.pick(names)
        for row in np.flatnonzero(offsets >= 0).tolist():
            yield row, int(offsets[row]), int(sizes[row])

    def targets(self, field: str) -> tuple[str, Forms]:
        """The task that most targets are of, and what they hold. JSON that is none makes no task."""
        found: dict[int, tuple[str, list[str]]] = {}
        damaged = list[int]()
        for row, offset, size in self._contents((field,)):
            try:
                found[row] = _target(field, self._read(offset, size))
            except NOT_OF_THIS_KIND:
                damaged.append(row)
        task = next(iter(Counter(task for task, _ in found.values() if task).most_common(1)), ("", 0))[0]
        forms: Forms = {}
        if task == "detection":
            return task, forms
        for row, (this, classes) in found.items():
            self._lacking[row] |= bool(task) and this != task
            add_forms(forms, classes if this == task else (), self._where(row))
        if task:
            self._lacking[self._index.pick((field,))[0] < 0] = True
            self._lacking[damaged] = True
        return task or (UNREADABLE if damaged and not found else ""), forms

    def members(self, column: FieldColumn, names: tuple[str, ...], image_names: tuple[str, ...]) -> Members:
        """What the samples have of a field; a mask or a box that does not lie in its image is damaged, too."""
        forms, samples, kind, damage = Forms(), 0, column.kind, ""
        places, sizes, _ = self._index.pick(image_names)
        for row, offset, size in self._contents(names):
            samples += 1
            if kind not in TO_SEE:
                continue
            try:
                data = self._read(offset, size)
                forms_here = forms_of(kind, data)
                if kind in ("mask", *LAYOUTS) and places[row] >= 0:
                    of_image = image_size(self._read(int(places[row]), int(sizes[row])))
                    if kind == "mask":
                        check_mask_size(mask_size(data), of_image)
                    elif why := fault(parse(json.loads(data), LAYOUTS[kind])[0], of_image):
                        raise DecodeError(why)
            except NOT_OF_THIS_KIND as error:
                self._lacking[row] = True
                damage = damage or f"{self._where(row)}: {str(error)[:200]}"
                continue
            add_forms(forms, forms_here, self._where(row), MOST_FORMS if kind == "array" else 0)
        return Members(kind, list(names), samples, forms, damage)


def _target(extension: str, data: bytes) -> tuple[str, list[str]]:
    """The task of a target and what it holds; no task for JSON that is no target."""
    kind, key = "class", None
    if extension == "json":
        content = json.loads(data)
        if isinstance(content, list) or (isinstance(content, Mapping) and {"boxes", "annotations"} & content.keys()):
            return TASK_OF["boxes"], forms_of("boxes", data)
        key = next((key for key in ("labels", "targets") if isinstance(content, Mapping) and key in content), None)
        if key is None:
            return "", []
        kind = "labels" if key == "labels" else "numbers"
    return TASK_OF[kind], forms_of(kind, data, key)
