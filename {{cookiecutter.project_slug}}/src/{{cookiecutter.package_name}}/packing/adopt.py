"""`index`: make a dataset of shards that others packed, in one pass over them; nothing is copied.

Each tar is read once from its begin to its end: SHA-256, headers, targets. Its sidecar is written at once, and a line
in `.indexing.jsonl`, so the same command goes on where it was stopped; `dataset.json` comes last.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np

from ..shards.dataset import Dataset, Shard
from ..shards.errors import InputError
from ..shards.index import ShardIndex

IMAGES = ("jpg", "jpeg", "png", "webp")
CODE = {"pkl", "pickle", "pyd", "pth", "pt"}  # fields that other readers would execute
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
JOURNAL = ".indexing.jsonl"


@dataclass(frozen=True)
class Found:
    """What one pass over a shard has found."""

    shard: Shard
    mtime_ns: int
    fields: list[str]
    kind: str  # single_label, multi_label, regression or "" where the samples have no target
    width: int  # classes needed, or numbers a sample
    lacking: list[str]  # keys of samples without image or without target


def adopt(
    source: str,
    splits: Mapping[str, str],
    names: list[str] | None,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Index the tars of `source` and write `dataset.json` beside them.

    Args:
        source: a folder, or a brace pattern of tars in one, such as `data/shard-{0000..0099}.tar`.
        splits: split -> pattern of the shards' names, such as {"val": "*-val-*.tar"}; other shards belong to the split
            that a folder in their path is named after, else to train.
        names: of the classes or numbers; None: their numbers.
        workers: shards read at a time.
        progress: is called with (bytes done, bytes in all).

    Returns what was found: samples and shards of each split, fields, samples lacking an image or a target.
    Raises InputError where there is no shard, or one cannot be used.
    """
    root, tars = _find(source)
    done = _journal(root)
    sizes = {tar: tar.stat().st_size for tar in tars}
    total, finished, found = sum(sizes.values()), 0, []
    with (root / JOURNAL).open("a") as journal, ThreadPoolExecutor(workers) as pool:
        try:
            for tar, facts in zip(tars, pool.map(lambda tar: _look(root, tar, done), tars), strict=True):
                if facts.shard.name not in done:
                    journal.write(json.dumps(asdict(facts)) + "\n")
                    journal.flush()
                found.append(facts)
                finished += sizes[tar]
                progress(finished, total)
        finally:
            pool.shutdown(cancel_futures=True)
    dataset = Dataset(root, *_targets(found, names), _assign(found, splits), {"by": "index", "source": source})
    dataset.save()
    (root / JOURNAL).unlink()
    lacking = [f"{facts.shard.name} {key}" for facts in found for key in facts.lacking]
    return {
        "dataset": str(root),
        "task": dataset.task,
        "targets": len(dataset.targets),
        "splits": {name: {"samples": dataset.samples(name), "shards": len(s)} for name, s in dataset.splits.items()},
        "fields": sorted({field for facts in found for field in facts.fields}),
        "lacking": len(lacking),
        "lacking_examples": lacking[:5],
    }


def _find(source: str) -> tuple[Path, list[Path]]:
    """The folder that all tars of `source` are in, and the tars, sorted by name."""
    if Path(source).is_dir():
        root = Path(source)
        tars = sorted(root.rglob("*.tar"))
    else:
        tars = [Path(name) for name in braceexpand.braceexpand(source)]
        missing = [tar for tar in tars if not tar.is_file()]
        if missing:
            raise InputError(
                f"there is no shard {missing[0]}; give a folder of tars, or a pattern like x-{{000..099}}.tar"
            )
        root = tars[0].parent
        if any(tar.parent != root for tar in tars):
            raise InputError(f"the shards of {source} lie in several folders; give the folder above them")
    if not tars:
        raise InputError(f"{source} holds no .tar file")
    if (root / "dataset.json").exists():
        raise InputError(f"{root} is a dataset already; remove its dataset.json to index it anew")
    return root, tars


def _journal(root: Path) -> dict[str, Found]:
    """What an earlier, interrupted pass has finished; a torn last line is left out."""
    done = {}
    path = root / JOURNAL
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            found = Found(**{**row, "shard": Shard(**row["shard"])})
        except (ValueError, TypeError, KeyError):
            continue
        done[found.shard.name] = found
    return done


def _look(root: Path, tar: Path, done: Mapping[str, Found]) -> Found:
    name, stat = tar.relative_to(root).as_posix(), tar.stat()
    before = done.get(name)
    if before and (before.shard.bytes, before.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return before
    with tar.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    index = ShardIndex.build(tar)
    code = CODE.intersection(field.rpartition(".")[2] for field in index.fields)
    if code:
        raise InputError(f"{tar} has members .{min(code)}, which hold code and not data; pack the shard without them")
    kind, width, without = _survey(tar, index)
    index.save(tar.with_name(tar.name + ".index"))
    shard = Shard(name, len(index), stat.st_size, digest)
    return Found(shard, stat.st_mtime_ns, index.fields, kind, width, without)


def _survey(tar: Path, index: ShardIndex) -> tuple[str, int, list[str]]:
    """(kind of target, classes or numbers, keys that lack image or target) of one shard."""
    kind, width = "", 0
    field = "cls" if "cls" in index.fields else "json"
    offsets, sizes, _ = index.pick((field,))
    lacking = (index.pick(IMAGES)[0] < 0) | (offsets < 0)
    with tar.open("rb") as file:
        for row in np.flatnonzero(offsets >= 0):
            file.seek(int(offsets[row]))
            try:
                this, number = _target(field, file.read(int(sizes[row])))
            except (ValueError, KeyError, TypeError):
                lacking[row] = True
                continue
            kind, width = kind or this, max(width, number)
            lacking[row] |= this != kind
    return kind, width, [index.keys[row] for row in np.flatnonzero(lacking)]


def _target(field: str, data: bytes) -> tuple[str, int]:
    """The kind of a target, and how many classes or numbers it needs."""
    if field == "cls":
        return "single_label", int(data) + 1
    content = json.loads(data)
    if "labels" in content:
        return "multi_label", max(content["labels"], default=-1) + 1
    return "regression", len(content["targets"])


def _targets(found: list[Found], names: list[str] | None) -> tuple[str, list[str]]:
    """(task, names of the targets) of the whole dataset."""
    kinds = {facts.kind for facts in found if facts.kind}
    if len(kinds) != 1:
        what = (
            "have no target that can be read" if not kinds else f"differ in their targets ({', '.join(sorted(kinds))})"
        )
        raise InputError(f"the samples {what}; each needs .cls (a class number) or .json (labels or targets)")
    width = max(facts.width for facts in found)
    if names is not None and len(names) < width:
        raise InputError(f"{len(names)} names are too few: the targets need {width}")
    return kinds.pop(), names or [str(number) for number in range(width)]


def _assign(found: list[Found], patterns: Mapping[str, str]) -> dict[str, list[Shard]]:
    """The shards of each split, train first."""
    splits: dict[str, list[Shard]] = {"train": [], "val": [], "test": []}
    for facts in found:
        splits[_split(facts.shard.name, patterns)].append(facts.shard)
    if not splits["train"]:
        raise InputError("no shard is left for train; choose the patterns of --val and --test more narrowly")
    return {name: shards for name, shards in splits.items() if shards}


def _split(name: str, patterns: Mapping[str, str]) -> str:
    chosen: Iterator[str] = (split for split, pattern in patterns.items() if fnmatch.fnmatch(name, pattern))
    folders = (SPLITS[part] for part in Path(name).parts[:-1] if part in SPLITS)
    return next(chosen, None) or next(folders, "train")
