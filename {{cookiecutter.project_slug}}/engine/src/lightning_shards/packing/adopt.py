"""`adopt`: make a dataset of shards that others packed, in one pass over them; nothing is copied.

Each tar is read once from its begin to its end: SHA-256, headers, what its members hold. Its sidecar is written at
once, and a line in `.adopting.jsonl`, so the same command goes on where it was stopped; `dataset.json` comes last.

Samples of an image and a target are a dataset like one that `pack` wrote. Where there is no target or no image, all
members are described as fields by their extensions; else those that are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.dataset import TARGET_FIELDS, Dataset, Shard
from ..data.fields import Field
from ..data.fields.plane import IGNORED
from ..data.fields.resolve import usual_fields
from ..errors import InputError
from .field_columns import FieldColumn
from .foreign_tars import chosen_split, find_tars, usual_split
from .journal import Journal
from .members import ALWAYS_SEEN, Forms, add_forms, describe, usual, width
from .survey import UNREADABLE, Found, Members, kind_of
from .target_classes import class_names


def adopt(
    source: str,
    dest: Path | None,
    splits: Mapping[str, str],
    names: list[str] | None,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    fields: Sequence[FieldColumn] = (),
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
        fields: what is handed out beside image and target, each by its extension in the tars.

    Returns what was found: samples and shards of each split, fields, samples lacking an image or a target.
    Raises InputError where there is no shard, or one cannot be used.
    """
    root, tars = find_tars(source)
    if dest is None and not isinstance(root, Path):
        raise InputError(f"{source} is remote: give a second argument, the local folder for its dataset.json")
    folder = dest or Path(root)
    if (folder / "dataset.json").exists():
        raise InputError(f"{folder} is a dataset already; remove its dataset.json to adopt it anew")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}): give another folder") from None
    asked, found = _with_kinds(fields), list[Found]()
    with Journal(folder, asked) as journal, ThreadPoolExecutor(workers) as pool:
        passes = [pool.submit(journal.look, root, folder, path) for path in tars]
        try:
            for one in passes:
                journal.add(one.result())
                found.append(one.result())
                progress(len(found), len(tars))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            for one in passes[len(found) :]:  # those that got through are kept, too
                if not one.cancelled() and not one.exception():
                    journal.add(one.result())
            raise
    dataset = Dataset(root, *_targets(found, names, asked), _assign(found, splits), {"by": "adopt", "source": source})
    described = _described(dataset, found, asked)
    if described:
        dataset = replace(dataset, fields={name: field.describe() for name, field in described.items()})
    dataset.save(dest)
    journal.remove()
    return _report(dataset, folder, found)


def _with_kinds(fields: Sequence[FieldColumn]) -> tuple[FieldColumn, ...]:
    """The same fields, with the kinds that their extensions say where none was given."""
    found = [replace(one, column=one.column.lower().lstrip(".")) for one in fields]
    return tuple(replace(one, kind=one.kind or kind_of(one.column)) for one in found)


def _targets(found: list[Found], names: list[str] | None, asked: Sequence[FieldColumn]) -> tuple[str, list[str]]:
    """(task, names of the targets) of the whole dataset."""
    tasks = {tar.task for tar in found if tar.task}
    unreadable, tasks = UNREADABLE in tasks, tasks - {UNREADABLE}
    if len(tasks) > 1 or (unreadable and not tasks):
        what = f"differ in their targets ({', '.join(sorted(tasks))})" if tasks else "have no target that can be read"
        raise InputError(f"the samples {what}; each needs .cls (a class number) or .json (labels or targets)")
    for task, field in TARGET_FIELDS.items() if not tasks and any(tar.images for tar in found) else ():
        forms = _sum(tar.fields[field].forms for tar in found if _has_field(tar, field))
        if set(forms) - ({"0", str(IGNORED)} if field == "mask" else set()):
            return task, class_names(describe(field, field, ["png"], True, forms), names)
    if not tasks:
        _check_untargeted(found, names, asked)
        return "", []
    task = tasks.pop()
    forms = _sum(tar.targets for tar in found)
    count = usual(forms) if task == "regression" else width(forms, len(names or ()))
    if names is not None and len(names) < count:
        raise InputError(f"{len(names)} names are too few: the targets need {count}")
    return task, names or [str(number) for number in range(count)]


def _has_field(tar: Found, name: str) -> bool:
    """Whether the samples have a mask or boxes which may be their target."""
    return name in tar.fields and tar.fields[name].kind.startswith(name)


def _check_untargeted(found: list[Found], names: list[str] | None, asked: Sequence[FieldColumn]) -> None:
    """Raise InputError where samples have no target, but seem to have one that is not seen."""
    extensions = {extension for tar in found for extension in tar.extensions} - {one.column for one in asked}
    dotted = sorted(one for one in extensions if "." in one and (one.endswith(".cls") or not one[0].isalpha()))
    if dotted and not any(tar.images for tar in found):
        raise InputError(
            f"the samples have no image and no target, but the field {dotted[0]!r}: a sample's key ends at the first "
            "dot of the file's name; write the tars anew with keys that have no dots"
        )
    if not any(tar.shard.samples for tar in found):
        raise InputError("the tars hold no samples: files with an extension, and no hidden ones")
    if names is not None:
        raise InputError("the samples have no target that --names could name; leave it out")


def _sum(parts: Iterable[Forms]) -> Forms:
    forms: Forms = {}
    for part in parts:
        add_forms(forms, part)
    return forms


def _described(dataset: Dataset, found: list[Found], asked: Sequence[FieldColumn]) -> dict[str, Field]:
    """The fields for `dataset.json`: none where the samples are an image and a target, and nothing else is asked for.

    Raises InputError for what is asked for and cannot be described.
    """
    images, fields = any(tar.images for tar in found), usual_fields(dataset)
    target = TARGET_FIELDS.get(dataset.task, "")  # which is among what the shards hold
    fields.pop(target, None)
    if images and dataset.task and not target and not asked:
        return {}
    if not images:
        del fields["image"]
    parts: dict[tuple[str, str], list[Members]] = {}
    for tar in found:
        for name, members in tar.fields.items():
            parts.setdefault((name, members.kind), []).append(members)
    total = sum(tar.shard.samples for tar in found)
    for (name, kind), these in parts.items():
        names = list(dict.fromkeys(extension for part in these for extension in part.names))
        samples, forms = sum(part.samples for part in these), _sum(part.forms for part in these)
        if not samples:
            there = ", ".join(sorted({one for tar in found for one in tar.extensions})[:50])
            raise InputError(f"--field {name}: no sample has .{names[0]}; the samples have {there}")
        if kind in ALWAYS_SEEN and not forms:
            raise InputError(
                f"no .{names[0]} of the samples can be read as {kind}: mend them, or say of which kind it is by --field"
                f" ({next((part.damage for part in these if part.damage), '')})"
            )
        predicted = name == target
        settings = names, predicted or samples == total, forms, len(dataset.targets) if predicted else 0
        fields[f"{name}_{kind}" if name in fields else name] = describe(name, kind, *settings)
    return fields


def _assign(found: list[Found], patterns: Mapping[str, str]) -> dict[str, list[Shard]]:
    """The shards of each split, train first."""
    splits: dict[str, list[Shard]] = {"train": [], "val": [], "test": []}
    taken = set()
    for tar in found:
        chosen = chosen_split(tar.shard.name, patterns)
        taken.add(chosen)
        splits[chosen or usual_split(tar.shard.name)].append(tar.shard)
    for split, pattern in patterns.items():
        if split not in taken:
            raise InputError(f"--{split} {pattern} is left no shard; they have names such as {found[0].shard.name}")
    if not splits["train"]:
        raise InputError("no shard is left for train; choose the patterns of --val and --test more narrowly")
    return {name: shards for name, shards in splits.items() if shards}


def _report(dataset: Dataset, folder: Path, found: list[Found]) -> dict[str, Any]:
    lacking, examples = 0, list[str]()
    for tar in found:
        keys = list(tar.lacking)
        count = len(keys)
        if dataset.task == "regression":
            for numbers, (samples, first) in tar.targets.items():
                if int(numbers) != len(dataset.targets):
                    count, keys = count + samples, [*keys, first.rpartition(": sample ")[2].strip("'")]
        other = dataset.task and tar.task != dataset.task
        if target := TARGET_FIELDS.get(dataset.task):
            other = not _has_field(tar, target)
            count += 0 if other else tar.shard.samples - tar.fields[target].samples
        if other or (not tar.images and any(one.images for one in found)):
            count, keys = tar.shard.samples, ["(all of its samples)"]
        lacking += count
        examples += [f"{tar.shard.name} {key}" for key in keys[:5]]
    return {
        "dataset": str(folder),
        "task": dataset.task,
        "targets": len(dataset.targets),
        "splits": {name: {"samples": dataset.samples(name), "shards": len(s)} for name, s in dataset.splits.items()},
        "fields": sorted({extension for tar in found for extension in tar.extensions}),
        "described": dict(dataset.fields),
        "lacking": lacking,
        "lacking_examples": examples[:5],
    }
