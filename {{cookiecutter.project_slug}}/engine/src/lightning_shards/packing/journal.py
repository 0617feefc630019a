"""The passes over foreign tars that are done, as lines of a file: an interrupted `adopt` goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from ..data.dataset import Shard
from ..data.remote import Remote
from ..errors import InputError
from .field_columns import FieldColumn
from .members import ALWAYS_SEEN, NOT_OF_THIS_KIND, describe, width
from .survey import TASK_OF, UNREADABLE, Found, Members, survey

JOURNAL = ".adopting.jsonl"
_SHA256 = re.compile("[0-9a-f]{64}")


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
                found = _parse(line)
            except (*NOT_OF_THIS_KIND, AttributeError, InputError):
                continue
            if found.asked == str(tuple(asked)) and {one.name for one in asked} <= found.fields.keys():
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
        return survey(tar, name, digest, stat.st_mtime_ns, self.asked)

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
        return survey(Path(file.name), name, digest.hexdigest(), 0, asked)


def _parse(line: bytes) -> Found:
    """Of the journal, which may be anybody's. Raises for what is none whatever that leads to."""
    row = json.loads(line)
    shard, fields = Shard(**row["shard"]), {name: Members(**about) for name, about in row["fields"].items()}
    found = Found(**{**row, "shard": shard, "fields": fields})
    right = found.task in (*TASK_OF.values(), UNREADABLE, "")
    numbers = [shard.samples, shard.bytes, found.mtime_ns, found.images, *(m.samples for m in fields.values())]
    texts = [shard.name, shard.sha256, found.asked, found.task, *found.extensions, *found.lacking]
    texts += [text for members in fields.values() for text in (members.kind, members.damage, *members.names)]
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
