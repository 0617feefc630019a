"""What is in a tar that others packed: one pass over it, and the journal of the passes that are done."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..data.dataset import Shard
from ..data.file_names import IMAGE_FIELDS
from ..data.remote import Remote
from ..data.shard_file import save_index
from ..data.tar_index import ShardIndex
from ..errors import InputError
from .field_columns import LIKE_MASKS, FieldColumn
from .members import ALWAYS_SEEN, MOST_FORMS, NOT_OF_THIS_KIND, TO_SEE, Forms, add_forms, describe, forms_of, width

CODE = {"pkl", "pickle", "pyd", "pth", "pt"}  # extensions of what other readers would execute
MOST_BYTES = 1 << 28  # of a member that is looked into
JOURNAL = ".adopting.jsonl"
UNREADABLE = "unreadable"
_SHA256 = re.compile("[0-9a-f]{64}")
_USABLE = re.compile(r"\w[\w.+-]*")  # of extensions: others are left alone
_TASKS = {"class": "single_label", "labels": "multi_label", "numbers": "regression"}
_SIMPLE_NAMES = {"txt": "text", "npy": "array"}
_KINDS = {"cls": "class", "txt": "text", "npy": "array", "json": "json", **dict.fromkeys(IMAGE_FIELDS, "image")}


@dataclass(frozen=True)
class Members:
    """What a shard has of one field."""

    kind: str
    names: list[str]  # extensions
    samples: int  # that have it
    forms: Forms


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

    @classmethod
    def parse(cls, line: bytes) -> Found:
        """Of the journal, which may be anybody's. Raises for what is none whatever that leads to."""
        row = json.loads(line)
        shard, fields = Shard(**row["shard"]), {name: Members(**about) for name, about in row["fields"].items()}
        found = cls(**{**row, "shard": shard, "fields": fields})
        right = found.task in (*_TASKS.values(), UNREADABLE, "")
        numbers = [shard.samples, shard.bytes, found.mtime_ns, found.images, *(m.samples for m in fields.values())]
        texts = [shard.name, shard.sha256, found.asked, found.task, *found.extensions, *found.lacking]
        texts += [text for members in fields.values() for text in (members.kind, *members.names)]
        lists = [found.extensions, found.lacking, *(members.names for members in fields.values())]
        forms = [found.targets, *(members.forms for members in fields.values())]
        right &= all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
        right &= _SHA256.fullmatch(shard.sha256) is not None
        right &= all({*m.names} & {*found.extensions} for m in fields.values() if m.samples)
        right &= all(isinstance(text, str) for text in texts) and all(isinstance(one, list) for one in lists)
        for count, first in (entry for part in forms for entry in part.values()):
            right &= type(count) is int and isinstance(first, str)
        needs = [(found.task in ("single_label", "regression"), found.targets)]
        needs += [(bool(m.samples) and m.kind in ALWAYS_SEEN, m.forms) for m in fields.values()]
        if not right or any(seen and not forms for seen, forms in needs):
            raise ValueError("something in it is missing, or of another type")
        width(found.targets)
        for name, members in fields.items():
            describe(name, members.kind, members.names, True, members.forms)
        return found


class Journal:
    """The shards that earlier, interrupted passes have finished. What is torn or somebody else's is left out."""

    def __init__(self, folder: Path, asked: Sequence[FieldColumn]) -> None:
        self._path, self.asked, self._done = folder / JOURNAL, asked, dict[str, Found]()
        if self._path.is_symlink() or (self._path.exists() and not self._path.is_file()):
            raise InputError(f"{self._path} is no plain file: remove it")
        try:
            lines = self._path.read_bytes().splitlines() if self._path.exists() else []
            self._file: BinaryIO = self._path.open("ab")
        except OSError as error:
            raise InputError(f"{self._path} cannot be written ({error.strerror}): give another folder") from None
        for line in lines:
            try:
                found = Found.parse(line)
            except (*NOT_OF_THIS_KIND, AttributeError, InputError):
                continue
            if found.asked == str(tuple(asked)):
                self._done[found.shard.name] = found

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def look(self, root: Path | str, folder: Path, name: str) -> Found:
        """The pass over a shard, unless it was made before. Raises InputError for what is no shard."""
        before = self._done.get(name)
        if isinstance(root, str):
            return before or _fetch_and_look(Remote(root), folder, name, self.asked)
        tar = root / name
        try:
            stat = tar.stat()
            if before and (before.shard.bytes, before.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
                return before
            with tar.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{tar} cannot be read ({error.strerror})") from None
        return _survey(tar, name, digest, stat.st_mtime_ns, self.asked)

    def add(self, found: Found) -> None:
        if self._done.get(found.shard.name) is not found:
            self._file.write(json.dumps(asdict(found)).encode() + b"\n")
            self._file.flush()

    def remove(self) -> None:
        self._path.unlink()


def _fetch_and_look(remote: Remote, folder: Path, name: str, asked: Sequence[FieldColumn]) -> Found:
    """One pass over a remote tar, through a file that is gone afterwards."""
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".adopting-", suffix=".tar") as file:
        for piece in remote.pieces(name):
            digest.update(piece)
            file.write(piece)
        file.flush()
        return _survey(Path(file.name), name, digest.hexdigest(), 0, asked)


def _survey(tar: Path, name: str, digest: str, mtime_ns: int, asked: Sequence[FieldColumn]) -> Found:
    index = ShardIndex.build(tar)
    code = CODE.intersection(field.rpartition(".")[2] for field in index.fields)
    if code:
        raise InputError(f"{name} has members .{min(code)}, which hold code and not data; pack the shard without them")
    claimed = {column.column for column in asked}
    images = index.pick(tuple(field for field in IMAGE_FIELDS if field not in claimed))[0] >= 0
    lacking = ~images if images.any() else np.zeros(len(index), bool)
    with tar.open("rb") as file:
        look = _Look(file, name, index, lacking)
        target = next((field for field in ("cls", "json") if field in index.fields and field not in claimed), "")
        task, targets = look.targets(target) if target else ("", {})
        columns: list[tuple[FieldColumn, tuple[str, ...]]] = [(one, (one.column,)) for one in asked]
        if not asked and not (task and images.any()):  # else image and target are what it holds
            columns = columns_of(set(index.fields) - {target if task else ""})
        fields = {column.name: look.members(column, names) for column, names in columns}
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
        for row, (this, classes) in found.items():
            self._lacking[row] |= bool(task) and this != task
            add_forms(forms, classes if this == task else (), self._where(row))
        if task:
            self._lacking[self._index.pick((field,))[0] < 0] = True
            self._lacking[damaged] = True
        return task or (UNREADABLE if damaged and not found else ""), forms

    def members(self, column: FieldColumn, names: tuple[str, ...]) -> Members:
        forms, samples, kind = Forms(), 0, column.kind
        for row, offset, size in self._contents(names):
            samples += 1
            if kind in TO_SEE:
                try:
                    forms_here = forms_of(kind, self._read(offset, size))
                except NOT_OF_THIS_KIND:
                    self._lacking[row] = True
                    continue
                add_forms(forms, forms_here, self._where(row), MOST_FORMS if kind == "array" else 0)
        return Members(kind, list(names), samples, forms)


def _target(extension: str, data: bytes) -> tuple[str, list[str]]:
    """The task of a target and what it holds; no task for JSON that is no target."""
    kind, key = "class", None
    if extension == "json":
        content = json.loads(data)
        key = next((key for key in ("labels", "targets") if isinstance(content, Mapping) and key in content), None)
        if key is None:
            return "", []
        kind = "labels" if key == "labels" else "numbers"
    return _TASKS[kind], forms_of(kind, data, key)
