"""One of `pack`'s processes: reads and encodes images, writes whole shards and a record of each.

A shard is finished when its record is there: the tar is fsynced and renamed, indexed, and then recorded. The
tars are byte for byte what `webdataset.TarWriter(mtime=0)` writes; webdataset itself would load torch in each
process.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import re
import tarfile
import threading
from dataclasses import asdict, dataclass
from multiprocessing import connection
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.dataset import Shard
from ..data.tar_index import ShardIndex
from ..files import fsync_folder, write_durably
from .encode import encode
from .field_columns import FILES
from .field_files import FieldMaker
from .members import MOST_FORMS, Forms, add_forms
from .source_table import SourceTable

WRITE_BYTES = 1 << 20  # at a time
LONGEST_NAME = 100  # in a tar's plain header


class Task(NamedTuple):
    """One shard: images `first` to `last` of a split's order."""

    split: str
    number: int
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.split}/{self.number:06d}.tar"

    def record(self, work: Path) -> Path:
        return work / "done" / f"{self.split}-{self.number:06d}.npz"

    def finished(self, work: Path) -> bool:
        return self.record(work).exists() and (work / "dataset" / self.name).exists()


class Record(NamedTuple):
    """What a worker tells about a finished shard: the items (N,) in it, 64-bit hashes (N,) of what it stores."""

    shard: Shard
    damaged: list[dict[str, str]]  # path, split, error
    items: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    forms: list[Forms]  # of each further field
    files: list[str]  # that the samples of damaged images are made of


def read_record(work: Path, task: Task) -> Record:
    with np.load(task.record(work), allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        shard = Shard(**about["shard"])
        parts = about["damaged"], arrays["items"], arrays["hashes"], about["forms"], about.get("files", [])
        return Record(shard, *parts)


@dataclass(frozen=True)
class Worker:
    """What each process holds. `work` has `listing/`, `<split>.npy` (its order), `done/` and `dataset/`."""

    work: Path
    short_side: int | None
    quality: int
    stop: Event
    done: Synchronized[int]  # images, for the progress bar

    def start(self) -> None:
        """Initializer of the process."""
        global _worker, _source, _makers
        _worker, _source = self, SourceTable(self.work / "listing")
        settings, target = (_source.read, self.short_side, self.quality), _source.target_field
        _makers = [FieldMaker(about, *settings, about["name"] == target) for about in _source.fields]
        cv2.setNumThreads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the decoders' own complaints; ours go back as exceptions
        threading.Thread(target=_end_with_parent, daemon=True).start()


_worker: Worker
_source: SourceTable
_makers: list[FieldMaker]  # of the further fields


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its workers: they must see it themselves."""
    parent = multiprocessing.parent_process()
    if parent:
        connection.wait([parent.sentinel])
        os._exit(1)


def _sample(item: int, place: int, forms: list[Forms]) -> tuple[dict[str, bytes], int]:
    """Members of one sample, and a 64-bit hash of its image as stored; what its fields hold goes into `forms`.

    Raises OSError or ValueError for damage, InputError for a target that is whole and cannot be used.
    """
    path = _source.path(item)
    image = encode(_source.read(path), _worker.short_side, _worker.quality)
    target = _source.target(item)
    fields = {image.kind: image.data}
    if _source.task == "single_label":
        fields["cls"] = str(target[0]).encode()
    elif _source.task in ("multi_label", "regression"):
        fields["json"] = json.dumps({"labels" if _source.task == "multi_label" else "targets": target}).encode()
    texts = [_source.text(number, item) for number in range(len(_makers))]
    further = [maker.member(text, image, path) if text else None for maker, text in zip(_makers, texts, strict=True)]
    for of_field, maker, member in zip(forms, _makers, further, strict=True):
        if member:
            fields[member.extension] = member.data
            add_forms(of_field, member.forms, path, MOST_FORMS if maker.kind == "array" else 0)
    slug = re.sub(r"[^A-Za-z0-9_-]", "_", path.rpartition(".")[0] or path)
    key = f"{place:08d}_"
    key += slug[-min(60, LONGEST_NAME - len(key) - 1 - max(map(len, fields))) :]
    members = {f"{key}.{field}": fields[field] for field in sorted(fields)}
    return members, int.from_bytes(hashlib.sha256(image.data).digest()[:8], "big")


def _files(item: int) -> list[str]:
    """The paths of what a sample is made of."""
    texts = [_source.text(number, item) for number, maker in enumerate(_makers) if maker.kind in FILES]
    return [_source.path(item), *(text for text in texts if text and text.lstrip()[:1] not in "{[")]


def no_forms() -> list[Forms]:
    """Of each further field."""
    return [{} for _ in _makers]


def estimate(items: list[int]) -> tuple[list[int], list[str], list[list[Forms]]]:
    """Bytes that the samples take in a tar, what is wrong with those that are damaged, and what their fields hold."""
    sizes, errors, forms = list[int](), list[str](), no_forms()
    for item in items:
        try:
            members, _ = _sample(item, 0, forms)
            sizes.append(sum(len(_member(name, data)) for name, data in members.items()))
        except (OSError, ValueError) as error:
            errors.append(f"{_source.path(item)} {describe(error)}")
    return sizes, errors, [forms]


def describe(error: OSError | ValueError) -> str:
    """What a person reads about a damaged image."""
    return f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)


def _blank_header() -> tuple[bytes, int]:
    """As TarWriter writes it, without name and size, and the sum of its bytes while the place of the sum is blank."""
    info = tarfile.TarInfo()
    info.mode, info.uname, info.gname = 0o444, "bigdata", "bigdata"
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return header, sum(header[:148]) + sum(header[156:]) + 8 * ord(" ")


_HEADER, _HEADER_SUM = _blank_header()


def _member(name: str, data: bytes) -> bytes:
    """One file of a tar: header, content, padding. `name` is ASCII and not longer than 100."""
    header, path, size = bytearray(_HEADER), name.encode("ascii"), b"%011o" % len(data)
    header[: len(path)], header[124:135] = path, size
    header[148:154] = b"%06o" % (_HEADER_SUM + sum(path) + sum(size) - 11 * ord("0"))
    return b"".join((header, data, bytes(-len(data) % tarfile.BLOCKSIZE)))


def write_shard(task: Task) -> None:
    """Write the shard, its index and its record; nothing if told to stop. Raises OSError for a full disk."""
    path = _worker.work / "dataset" / task.name
    temporary = path.with_suffix(".tmp")
    order = np.load(_worker.work / f"{task.split}.npy", mmap_mode="r")
    kept, hashes, damaged, digest = list[int](), list[int](), list[dict[str, str]](), hashlib.sha256()
    forms, files = no_forms(), list[str]()
    try:
        with temporary.open("wb", WRITE_BYTES) as file:
            for place, item in enumerate(order[task.first : task.last].tolist(), task.first):
                if _worker.stop.is_set():
                    return
                with _worker.done.get_lock():
                    _worker.done.value += 1
                try:
                    members, fingerprint = _sample(item, place, forms)
                except (OSError, ValueError) as error:
                    damaged.append({"path": _source.path(item), "split": task.split, "error": describe(error)})
                    files += _files(item)
                    continue
                content = b"".join(_member(name, data) for name, data in members.items())
                digest.update(content)
                file.write(content)
                kept.append(item)
                hashes.append(fingerprint)
            size = file.tell() + 2 * tarfile.BLOCKSIZE
            end = bytes(2 * tarfile.BLOCKSIZE + -size % tarfile.RECORDSIZE)
            digest.update(end)
            file.write(end)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)
    ShardIndex.build(path).save(path.with_name(path.name + ".index"))
    shard = Shard(task.name, len(kept), path.stat().st_size, digest.hexdigest())
    about = json.dumps({"shard": asdict(shard), "damaged": damaged, "forms": forms, "files": files})
    record = io.BytesIO()
    np.savez(record, items=np.array(kept, np.int64), hashes=np.array(hashes, np.uint64), about=about)
    write_durably(task.record(_worker.work), record.getvalue())
