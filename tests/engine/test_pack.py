"""`pack`: the same dataset from every kind of source, splits and order, memory."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tracemalloc
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.tar_index import ShardIndex
from lightning_shards.packing.pack import pack
from lightning_shards.packing.sources import TableColumns, list_source
from lightning_shards.packing.splits import plan

from .samples import (
    CLASSES,
    KEEP,
    class_files,
    fingerprint,
    jpeg,
    members,
    split_files,
    write_csv,
    write_tree,
    write_zip,
)


def test_every_source_gives_the_same_dataset(tmp_path: Path) -> None:
    files = split_files()
    tree = write_tree(tmp_path / "tree", {**files, "README.txt": b"x", "train/notes.md": b"y", ".hidden": b"z"})
    rows = [{"path": n, "class": n.split("/")[1], "split": n.split("/")[0]} for n in sorted(files)]
    table = TableColumns(targets=("class",), split="split", images=tree)
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    archive = write_zip(tmp_path / "plain.zip", files)
    sources: list[tuple[Path, TableColumns]] = [
        (tree, TableColumns()),
        (archive, TableColumns()),
        (write_zip(tmp_path / "lead.zip", files, "photos/", zipfile.ZIP_DEFLATED), TableColumns()),
        (write_csv(tmp_path / "t.csv", rows), table),
        (tmp_path / "t.parquet", replace(table, images=archive)),
    ]
    reports = [pack(s, tmp_path / f"d{i}", replace(KEEP, columns=c), 1) for i, (s, c) in enumerate(sources)]
    assert len({report["fingerprint"] for report in reports}) == 1
    assert [report["ignored"] for report in reports] == [2, 0, 0, 0, 0]
    assert {split: facts["images"] for split, facts in reports[0]["splits"].items()} == {
        "train": 12,
        "val": 6,
        "test": 6,
    }
    assert Dataset.open(tmp_path / "d0").targets == list(CLASSES)


def test_webdataset_and_gnu_tar_read_what_is_written(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    files = class_files(4)
    pack(write_tree(tmp_path / "tree", files), tmp_path / "d", replace(KEEP, val=0, test=0), 1)
    shard = tmp_path / "d" / "train" / "000000.tar"
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert {sample["jpg"]: CLASSES[int(sample["cls"])] for sample in samples} == {
        data: name.split("/")[0] for name, data in files.items()
    }
    listing = subprocess.run(["tar", "-tf", shard], capture_output=True, text=True, check=True).stdout.split()
    assert len(listing) == 24
    assert listing[1].split(".")[0] == samples[0]["__key__"]
    stream = io.BytesIO()  # the reference writer gives the same bytes
    with webdataset.TarWriter(stream, mtime=0, encoder=False) as writer:
        for sample in samples:
            writer.write({name: sample[name] for name in ("__key__", "jpg", "cls")})
    assert stream.getvalue() == shard.read_bytes()


def test_each_shard_has_an_index_and_the_right_checksum(tmp_path: Path) -> None:
    pack(write_tree(tmp_path / "tree", class_files(40)), tmp_path / "d", replace(KEEP, shard_bytes=30_000), 2)
    dataset = Dataset.open(tmp_path / "d")
    assert len(dataset.splits["train"]) > 3
    for shard in (shard for shards in dataset.splits.values() for shard in shards):
        path = tmp_path / "d" / shard.name
        index = ShardIndex.load(path.with_name(path.name + ".index"))
        assert index is not None
        assert (len(index), index.fields) == (shard.samples, ["cls", "jpg"])
        assert index.stamp[1] == path.stat().st_mtime_ns
        assert (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) == (
            shard.bytes,
            shard.sha256,
        )


def test_multi_label_and_regression_targets(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "images", {f"{i}.jpg": jpeg(i) for i in range(12)})
    rows = [{"path": f"{i}.jpg", "tags": ("b|a", "", "c")[i % 3], "x": i / 2, "y": -i} for i in range(12)]
    table = write_csv(root / "t.csv", rows)
    plain = replace(KEEP, val=0, test=0)
    pack(table, tmp_path / "m", replace(plain, task="multi_label", columns=TableColumns(targets=("tags",))), 1)
    pack(table, tmp_path / "r", replace(plain, task="regression", columns=TableColumns(targets=("x", "y"))), 1)
    labels = Counter(data for name, data in members(tmp_path / "m", "train").items() if name.endswith("json"))
    assert labels == {b'{"labels": [0, 1]}': 4, b'{"labels": []}': 4, b'{"labels": [2]}': 4}
    assert Dataset.open(tmp_path / "m").targets == ["a", "b", "c"]
    assert Dataset.open(tmp_path / "r").targets == ["x", "y"]
    found = members(tmp_path / "r", "train")
    for name in (name for name in found if name.endswith("json")):
        number = int(name.split(".")[0].split("_")[1])
        assert json.loads(found[name]) == {"targets": [number / 2, -number]}


def test_whole_numbers_as_classes_keep_their_order(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", {f"{name}/{i}.jpg": jpeg(i) for name in (0, 1, 2, 10) for i in range(2)})
    pack(root, tmp_path / "d", KEEP, 1)
    assert Dataset.open(tmp_path / "d").targets == ["0", "1", "2", "10"]


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", {"a/x/y/1.jpg": jpeg(1), "a/2.jpg": jpeg(2), "b/3.jpg": jpeg(3)})
    assert pack(root, tmp_path / "d", replace(KEEP, val=0, test=0), 1)["targets"]["train"] == {"a": 2, "b": 1}


def test_splits_are_stratified_seeded_and_disjoint(tmp_path: Path) -> None:
    root = write_tree(
        tmp_path / "tree",
        {f"{c}/{i}.jpg": jpeg(i) for c, n in (("a", 60), ("b", 20), ("c", 1)) for i in range(n)},
    )
    reports = {seed: pack(root, tmp_path / f"d{seed}", replace(KEEP, seed=seed), 1) for seed in (0, 1)}
    for report in reports.values():
        targets = report["targets"]
        assert sum(sum(part.values()) for part in targets.values()) == 81
        assert targets["train"]["c"] == 1
        for split in ("val", "test"):
            assert abs(targets[split]["a"] - 6) <= 1
            assert abs(targets[split]["b"] - 2) <= 1
        assert report["taken_from_train"] == {"val": 0.1, "test": 0.1}
    sources = [
        {name.split(".")[0].split("_", 1)[1] for name in members(tmp_path / "d0", split)}
        for split in ("train", "val", "test")
    ]
    assert sum(map(len, sources)) == len(set.union(*sources)) == 81
    assert reports[0]["fingerprint"] != reports[1]["fingerprint"]


def test_only_the_split_that_is_missing_is_taken_from_train(tmp_path: Path) -> None:
    files = {
        f"{split}/{c}/{i}.jpg": jpeg(i) for split, n in (("train", 40), ("test", 5)) for c in "ab" for i in range(n)
    }
    report = pack(write_tree(tmp_path / "tree", files), tmp_path / "d", replace(KEEP, val=0.25, test=0.5), 1)
    assert {split: facts["images"] for split, facts in report["splits"].items()} == {
        "train": 60,
        "val": 20,
        "test": 10,
    }
    assert report["taken_from_train"] == {"val": 0.25}


def test_limit_keeps_proportions_and_every_class(tmp_path: Path) -> None:
    root = write_tree(
        tmp_path / "tree",
        {f"{c}/{i}.jpg": jpeg(i) for c, n in (("a", 60), ("b", 30), ("c", 1)) for i in range(n)},
    )
    report = pack(root, tmp_path / "d", replace(KEEP, val=0, test=0, limit=16), 1)
    assert sum(report["targets"]["train"].values()) == 16
    assert report["targets"]["train"]["c"] == 1
    assert abs(report["targets"]["train"]["a"] - 10) <= 1


def test_the_order_is_mixed_and_does_not_depend_on_workers(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", class_files(60))
    recipe = replace(KEEP, shard_bytes=60_000)
    for workers in (1, 2):
        pack(root, tmp_path / f"d{workers}", recipe, workers)
    assert fingerprint(tmp_path / "d1") == fingerprint(tmp_path / "d2")
    first = list(members(tmp_path / "d1", "train"))[: 3 * 40 : 2]
    assert min(Counter(name.split("_")[1] for name in first).values()) > 5


def test_the_plan_takes_at_most_100_bytes_a_sample(tmp_path: Path) -> None:
    rows = 400_000
    table = pa.table(
        {
            "path": [f"part-{i // 1000:05d}/image-{i:010d}.jpg" for i in range(rows)],
            "c": pa.array(np.arange(rows) % 1000),
        }
    )
    pa.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=20_000)
    del table
    (tmp_path / "listing").mkdir()
    tracemalloc.start()
    listing, _ = list_source(tmp_path / "t.parquet", "single_label", TableColumns(targets=("c",)), tmp_path / "listing")
    order = plan(listing, {"val": 0.1, "test": 0.1}, None, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(map(len, order.values())) == rows
    assert peak <= 100 * rows
