"""The end of `pack`: from the shards' records to `dataset.json`, `damaged.jsonl` and a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.class_numbers import classes_of, save
from ..data.dataset import Dataset, Shard
from ..data.fields.resolve import usual_fields
from ..errors import RunError
from ..files import write_durably
from .field_files import listed_fields
from .members import Forms
from .source_table import SourceTable
from .spelling import SPLITS
from .target_classes import class_names, times_of_class
from .worker import Task, read_record


def finish(work: Path, listing: SourceTable, tasks: Sequence[Task], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the files beside the shards; return the report, which `dataset.json` keeps under `packed`."""
    shards: dict[str, list[Shard]] = {}
    items: dict[str, list[NDArray[np.int64]]] = {}
    hashes, damaged, forms = [], [], []
    held: dict[str, list[Forms]] = {}  # by the target of each split, where it is a field
    for task in tasks:
        record = read_record(work, task)
        damaged += record.damaged
        if not record.shard.samples:  # all damaged
            for path in (work / "dataset").glob(f"{task.name}*"):
                path.unlink()
            continue
        shards.setdefault(task.split, []).append(record.shard)
        items.setdefault(task.split, []).append(record.items)
        hashes.append(record.hashes)
        forms.append(record.forms)
        if listing.target_field:
            held.setdefault(task.split, []).append(record.forms[0])
    rows = {split: np.concatenate(parts) for split, parts in items.items()}
    if "train" not in rows:
        raise RunError("not one image to train on is whole: mend them")
    further, names = listed_fields(listing, forms), list(listing.names)
    if listing.target_field:
        names = class_names(further[listing.target_field], names)
        targets = times_of_class(held, names)
    else:
        targets = {split: _targets(listing, part) for split, part in rows.items()}
    if lost := [name for name, images in targets["train"].items() if listing.task == "single_label" and not images]:
        raise RunError(f"all images of class {lost[0]!r} to train on are damaged: mend them or remove the class")
    report = {
        "damaged": len(damaged),
        "ignored": listing.about["ignored"],
        "ignored_example": listing.about["ignored_example"],
        "duplicates": _duplicates(listing, rows, np.concatenate(hashes)),
        "targets": targets,
    }
    if damaged:
        lines = "".join(json.dumps(image) + "\n" for image in damaged)
        write_durably(work / "dataset" / "damaged.jsonl", lines.encode())
    if listing.fields:
        named = [about for about in listing.fields if about["classes"] and about["name"] != listing.target_field]
        report["classes"] = {about["name"]: about["classes"] for about in named}
    dataset = Dataset(work / "dataset", listing.task, names, shards, {**settings, **report})
    if further:
        found = {name: field.describe() for name, field in {**usual_fields(dataset), **further}.items()}
        dataset = replace(dataset, fields=found)
    if listing.task == "single_label":
        path = work / "dataset" / classes_of(dataset).file_name(dataset, "train")
        save(path, listing.values[rows["train"]], len(listing.names))
    dataset.save()
    splits = {
        split: {
            "images": dataset.samples(split),
            "shards": len(part),
            "bytes": sum(shard.bytes for shard in part),
        }
        for split, part in shards.items()
    }
    about = {"task": listing.task, "fingerprint": dataset.fingerprint, "fields": dataset.fields, "splits": splits}
    return {**about, **settings, **report}


def _targets(listing: SourceTable, items: NDArray[np.int64]) -> dict[str, Any]:
    """Images of each class; for regression the mean, least and greatest of each number."""
    if not listing.task:
        return {}
    if listing.task == "regression":
        numbers = listing.values.reshape(-1, len(listing.names))[items]
        columns = zip(listing.names, numbers.mean(0), numbers.min(0), numbers.max(0), strict=True)
        return {name: {"mean": float(m), "min": float(low), "max": float(high)} for name, m, low, high in columns}
    values: NDArray[Any] = listing.values
    if listing.task == "multi_label":
        chosen = np.zeros(len(listing), bool)
        chosen[items] = True
        values = values[np.repeat(chosen, np.diff(listing.value_ends, prepend=0))]
    else:
        values = values[items]
    return dict(zip(listing.names, np.bincount(values, minlength=len(listing.names)).tolist(), strict=True))


def _duplicates(
    listing: SourceTable, rows: Mapping[str, NDArray[np.int64]], hashes: NDArray[np.uint64]
) -> dict[str, Any]:
    """Images that are stored the same, by 64-bit hashes (of 100 million, the chance of an error is 0.03%)."""
    splits = np.concatenate([np.full(len(part), SPLITS.index(split), np.int8) for split, part in rows.items()])
    items = np.concatenate(list(rows.values()))
    order = np.lexsort((splits, hashes))
    same = hashes[order[1:]] == hashes[order[:-1]]
    other = splits[order[1:]] != splits[order[:-1]]
    across = np.flatnonzero(same & other)
    pairs = [[ascii(listing.path(int(items[order[i + step]])))[1:-1] for step in (0, 1)] for i in across[:5]]
    return {
        "across_splits": len(np.unique(hashes[order[across]])),
        "within_a_split": int(np.count_nonzero(same & ~other)),
        "examples": pairs,
    }
