"""`adopt`: make a dataset of shards that others packed, in one pass over them; nothing is copied.

Each tar is read once from its begin to its end: SHA-256, headers, targets. Its sidecar is written at once, and a line
in `.adopting.jsonl`, so the same command goes on where it was stopped; `dataset.json` comes last.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np

from ..data.dataset import Dataset, Shard
from ..data.file_names import IMAGE_FIELDS
from ..data.remote import Remote
from ..data.shard_file import save_index
from ..data.tar_index import ShardIndex
from ..errors import InputError
from .spelling import split_of

CODE = {"pkl", "pickle", "pyd", "pth", "pt"}  # fields that other readers would execute
MOST_UNSEEN = 10_000  # class numbers that no sample has
JOURNAL = ".adopting.jsonl"


@dataclass(frozen=True)
class Found:
    """What one pass over a shard has found."""

    shard: Shard
    mtime_ns: int
    fields: list[str]
    kind: str  # single_label, multi_label, regression or "" where the samples have no target
    sizes: dict[str, list[Any]]  # class number, or how many numbers a sample has -> [samples, the first one's key]
    lacking: list[str]  # keys of samples without image or without target


def adopt(
    source: str,
    dest: Path | None,
    splits: Mapping[str, str],
    names: list[str] | None,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Read the tars of `source` and write `dataset.json`.

    Args:
        source: a folder or URL, or a brace pattern of tars in one, such as `data/shard-{0000..0099}.tar`.
        dest: folder for `dataset.json`; None: beside the tars, which must be a local folder then.
        splits: split -> pattern of the shards' names, such as {"val": "*-val-*.tar"}; other shards belong to the split
            that a folder in their path or a word in their name says, else to train.
        names: of the classes or numbers; None: their numbers.
        workers: shards read at a time.
        progress: is called with (shards done, shards in all).

    Returns what was found: samples and shards of each split, fields, samples lacking an image or a target.
    Raises InputError where there is no shard, or one cannot be used.
    """
    root, tars = _find(source)
    if dest is None and not isinstance(root, Path):
        raise InputError(f"{source} is remote: give a second argument, the local folder for its dataset.json")
    folder = dest or Path(root)
    if (folder / "dataset.json").exists():
        raise InputError(f"{folder} is a dataset already; remove its dataset.json to adopt it anew")
    folder.mkdir(parents=True, exist_ok=True)
    done, found = _journal(folder), []
    with (folder / JOURNAL).open("a") as journal, ThreadPoolExecutor(workers) as pool:
        try:
            for facts in pool.map(lambda tar: _look(root, folder, tar, done), tars):
                if facts.shard.name not in done:
                    journal.write(json.dumps(asdict(facts)) + "\n")
                    journal.flush()
                found.append(facts)
                progress(len(found), len(tars))
        finally:
            pool.shutdown(cancel_futures=True)
    dataset = Dataset(root, *_targets(found, names), _assign(found, splits), {"by": "adopt", "source": source})
    dataset.save(dest)
    (folder / JOURNAL).unlink()
    lacking = [f"{facts.shard.name} {key}" for facts in found for key in facts.lacking]
    return {
        "dataset": str(folder),
        "task": dataset.task,
        "targets": len(dataset.targets),
        "splits": {name: {"samples": dataset.samples(name), "shards": len(s)} for name, s in dataset.splits.items()},
        "fields": sorted({field for facts in found for field in facts.fields}),
        "lacking": len(lacking),
        "lacking_examples": lacking[:5],
    }


def _find(source: str) -> tuple[Path | str, list[str]]:
    """The folder or URL that all tars of `source` are in, and their names there, sorted."""
    if "{" in source:
        tars = list(braceexpand.braceexpand(source))
        place = tars[0].rpartition("/")[0] or "."
        if any((tar.rpartition("/")[0] or ".") != place for tar in tars):
            raise InputError(f"the shards of {source} lie in several folders; give the folder above them")
        found = [tar.rpartition("/")[2] for tar in tars]
    else:
        place, found = source, []
    root = place.rstrip("/") if "://" in place else Path(place).absolute()
    if isinstance(root, str):
        found, missing = found or Remote(root).tars(), list[str]()
    else:
        found = found or sorted(tar.relative_to(root).as_posix() for tar in root.rglob("*.tar"))
        missing = [name for name in found if not (root / name).is_file()]
    if not found or missing:
        what = f"there is no shard {missing[0]} in {root}" if missing else f"{source} holds no .tar file"
        raise InputError(f"{what}; give a folder of tars, or a brace pattern of them")
    return root, found


def _journal(folder: Path) -> dict[str, Found]:
    """What an earlier, interrupted pass has finished; a torn last line is left out."""
    done = {}
    path = folder / JOURNAL
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            found = Found(**{**row, "shard": Shard(**row["shard"])})
        except (ValueError, TypeError, KeyError):
            continue
        done[found.shard.name] = found
    return done


def _look(root: Path | str, folder: Path, name: str, done: Mapping[str, Found]) -> Found:
    before = done.get(name)
    if isinstance(root, str):
        return before or _fetch_and_look(Remote(root), folder, name)
    tar = root / name
    stat = tar.stat()
    if before and (before.shard.bytes, before.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return before
    with tar.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _facts(tar, name, digest, stat.st_mtime_ns)


def _fetch_and_look(remote: Remote, folder: Path, name: str) -> Found:
    """One pass over a remote tar, through a file that is gone afterwards."""
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".adopting-", suffix=".tar") as file:
        for piece in remote.pieces(name):
            digest.update(piece)
            file.write(piece)
        file.flush()
        return _facts(Path(file.name), name, digest.hexdigest(), 0)


def _facts(tar: Path, name: str, digest: str, mtime_ns: int) -> Found:
    index = ShardIndex.build(tar)
    code = CODE.intersection(field.rpartition(".")[2] for field in index.fields)
    if code:
        raise InputError(f"{name} has members .{min(code)}, which hold code and not data; pack the shard without them")
    kind, sizes, without = _survey(tar, index)
    if mtime_ns:
        save_index(index, tar)
    return Found(Shard(name, len(index), index.stamp[0], digest), mtime_ns, index.fields, kind, sizes, without)


def _survey(tar: Path, index: ShardIndex) -> tuple[str, dict[str, list[Any]], list[str]]:
    """(kind of target, `Found.sizes`, keys that lack image or target) of one shard."""
    field = "cls" if "cls" in index.fields else "json"
    offsets, sizes, _ = index.pick((field,))
    lacking = (index.pick(IMAGE_FIELDS)[0] < 0) | (offsets < 0)
    targets: dict[int, tuple[str, list[int]]] = {}
    with tar.open("rb") as file:
        for row in np.flatnonzero(offsets >= 0).tolist():
            file.seek(int(offsets[row]))
            try:
                targets[row] = _target(field, file.read(int(sizes[row])))
            except (ValueError, KeyError, TypeError, RecursionError):
                lacking[row] = True
    kind = next(iter(Counter(kind for kind, _ in targets.values()).most_common(1)), ("", 0))[0]
    found: dict[str, list[Any]] = {}
    for row, (this, numbers) in targets.items():
        lacking[row] |= this != kind
        for number in numbers if this == kind else ():
            found.setdefault(str(number), [0, index.keys[row]])[0] += 1
    return kind, found, [index.keys[row] for row in np.flatnonzero(lacking).tolist()]


def _target(field: str, data: bytes) -> tuple[str, list[int]]:
    """The kind of a target, and its classes, or how many numbers it has. Raises ValueError, KeyError or TypeError."""
    if field == "cls":
        kind, numbers = "single_label", [int(data)]
    else:
        content = json.loads(data)
        kind = "multi_label" if "labels" in content else "regression"
        numbers = content["labels"] if kind == "multi_label" else [len(np.array(content["targets"], np.float64))]
    if not all(type(number) is int and 0 <= number < 1 << 31 for number in numbers):
        raise ValueError("is no class number")
    return kind, numbers


def _targets(found: list[Found], names: list[str] | None) -> tuple[str, list[str]]:
    """(task, names of the targets) of the whole dataset."""
    kinds = {facts.kind for facts in found if facts.kind}
    if not kinds and (dotted := sorted({f for facts in found for f in facts.fields if f.endswith((".cls", ".json"))})):
        raise InputError(
            f"the samples have no target, but the field {dotted[0]!r}: a sample's key ends at the first dot of "
            "the file's name; write the tars anew with keys that have no dots"
        )
    if len(kinds) != 1:
        what = (
            "have no target that can be read" if not kinds else f"differ in their targets ({', '.join(sorted(kinds))})"
        )
        raise InputError(f"the samples {what}; each needs .cls (a class number) or .json (labels or targets)")
    kind = kinds.pop()
    width = _width(found) if kind != "regression" else _most_common(found)
    if names is not None and len(names) < width:
        raise InputError(f"{len(names)} names are too few: the targets need {width}")
    return kind, names or [str(number) for number in range(width)]


def _width(found: list[Found]) -> int:
    """Classes needed. Raises InputError for a class number far above all others: it decides the size of nothing."""
    keys = {int(size): f"{f.shard.name}: sample {key!r}" for f in found for size, (_, key) in f.sizes.items()}
    for below, number in enumerate(sorted(keys)):
        if number >= MOST_UNSEEN + 100 * below:
            raise InputError(
                f"{keys[number]} has the class {number:,}, and only {below} classes are below it: mend or remove it"
            )
    return max(keys, default=-1) + 1


def _most_common(found: list[Found]) -> int:
    """How many numbers most samples have; others are named, and masked in training."""
    counts: Counter[int] = Counter()
    for facts in found:
        for size, (count, _) in facts.sizes.items():
            counts[int(size)] += count
    width = counts.most_common(1)[0][0]
    for facts in found:
        facts.lacking.extend(key for size, (_, key) in facts.sizes.items() if int(size) != width)
    return width


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
    words = [*Path(name).parts[:-1], *re.split(r"[^A-Za-z]+", Path(name).stem)]  # test/000.tar, test-000.tar
    folders: Iterator[str] = filter(None, map(split_of, words))
    return next(chosen, None) or next(folders, "train")
