"""What `pack` refuses, in one sentence and with nothing written, and what it never replaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning_shards.data.dataset import Dataset
from lightning_shards.errors import InputError, RunError
from lightning_shards.packing.field_columns import parse_fields
from lightning_shards.packing.pack import PackOptions, pack
from lightning_shards.packing.sources import TableColumns

from .samples import KEEP, class_files, folders_of, jpeg, write_csv, write_tree, write_zip

TWO = {"a/1.jpg": jpeg(1), "b/2.jpg": jpeg(2)}
ROW = {"path": "a/1.jpg", "c": "x", "n": "1", "split": "train"}


def tree_source(files: Mapping[str, bytes], *empty: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name in empty:
            (folder / "source" / name).mkdir(parents=True)
        return write_tree(folder / "source", files)

    return make


def table_source(*rows: dict[str, Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_tree(folder, TWO)
        return write_csv(folder / "t.csv", [{**ROW, **row} for row in rows])

    return make


def zip_source(*names: str) -> Callable[[Path], Path]:
    return lambda folder: write_zip(folder / "source.zip", dict.fromkeys(names, jpeg(1)))


BAD: dict[str, tuple[Callable[[Path], Path], PackOptions, str]] = {
    "missing": (lambda folder: folder / "nothing", KEEP, "does not exist"),
    "empty": (tree_source({}, "a"), KEEP, "class folder 'a' has no image"),
    "no classes": (tree_source({"1.jpg": jpeg(1)}), KEEP, "has no images"),
    "one class": (tree_source({"a/1.jpg": jpeg(1)}), KEEP, "one class only"),
    "a class with no image": (tree_source(TWO, "c"), KEEP, "'c' has no image"),
    "a class with none to train on": (
        tree_source({**{f"train/{n}": d for n, d in TWO.items()}, "val/c/1.jpg": jpeg(1)}),
        KEEP,
        "'c' has no image to train on",
    ),
    "masks are no classes": (
        tree_source({f"{part}/{n}.jpg": jpeg(n) for part in ("images", "masks") for n in range(8)}),
        PackOptions(task="single_label"),
        "has masks, so it is for segmentation: leave out --task single_label",
    ),
    "fields alone are no classes": (
        table_source({}, {"path": "b/2.jpg"}),
        PackOptions(task="single_label", columns=TableColumns(fields=parse_fields(["n=n"]))),
        "name its target column",
    ),
    "a folder has no columns": (tree_source(TWO), replace(KEEP, columns=TableColumns(path="path")), "is no table"),
    "no train": (tree_source({f"val/{name}": data for name, data in TWO.items()}), KEEP, "train/<class>"),
    "splits beside classes": (
        tree_source({"train/a/1.jpg": b"", "val/a/1.jpg": b"", "c/1.jpg": b""}),
        KEEP,
        "beside 'c'",
    ),
    "splits with a prefix": (
        tree_source({f"seg_{split}/{name}": data for split in ("train", "test", "pred") for name, data in TWO.items()}),
        KEEP,
        "seg_test, seg_train, which look like splits",
    ),
    "splits with a number": (
        tree_source({f"{split}/{name}": data for split in ("01_train", "02_val") for name, data in TWO.items()}),
        KEEP,
        "01_train, 02_val, which look like splits",
    ),
    "splits within classes": (
        tree_source({f"{c}/{split}/1.jpg": jpeg(1) for c in "ab" for split in ("train", "val")}),
        KEEP,
        "put split folders above",
    ),
    "options of a table": (tree_source(TWO), replace(KEEP, columns=TableColumns(targets=("c",))), "is no table"),
    "a tar": (lambda folder: write_tree(folder, {"x.tar": b""}) / "x.tar", KEEP, "adopt"),
    "no zip": (lambda folder: write_tree(folder, {"x.zip": b"no"}) / "x.zip", KEEP, "no whole zip"),
    "an empty zip": (zip_source(), KEEP, "has no images"),
    "a zip that climbs out": (zip_source("a/1.jpg", "../b/2.jpg"), KEEP, "points out of the zip"),
    "an absolute zip": (zip_source("a/1.jpg", "/b/2.jpg"), KEEP, "points out of the zip"),
    "nothing readable": (tree_source({"a/1.jpg": b"x", "b/2.jpg": b"y"}), KEEP, "not one of"),
    "limit below classes": (tree_source(class_files(3)), replace(KEEP, limit=2), "--limit 2"),
    "fractions": (tree_source(TWO), replace(KEEP, val=0.6, test=0.5), "--val and --test"),
    "labels from folders": (tree_source(TWO), replace(KEEP, task="multi_label"), "--target-columns"),
    "no target column": (table_source({}), KEEP, "--target-columns"),
    "unknown column": (
        table_source({}),
        replace(KEEP, columns=TableColumns(targets=("k",))),
        "no column 'k'; it has path, c",
    ),
    "path out": (
        table_source({"path": "../1.jpg"}),
        replace(KEEP, columns=TableColumns(targets=("c",))),
        "row 1 has the path",
    ),
    "absolute path": (
        table_source({}, {"path": "/1.jpg"}),
        replace(KEEP, columns=TableColumns(targets=("c",))),
        "row 2 has the path",
    ),
    "a URL": (
        table_source({"path": "https://example.com/a/1.jpg"}),
        replace(KEEP, columns=TableColumns(targets=("c",))),
        "row 1 has the URL 'https://example.com/a/1.jpg': fetch the images first",
    ),
    "no number": (
        table_source({}, {"n": "much"}),
        replace(KEEP, task="regression", columns=TableColumns(targets=("n",))),
        "row 2 has 'much'",
    ),
    "not finite": (
        table_source({"n": "nan"}),
        replace(KEEP, task="regression", columns=TableColumns(targets=("n",))),
        "row 1",
    ),
    "no class": (
        table_source({"c": ""}),
        replace(KEEP, columns=TableColumns(targets=("c",))),
        "row 1 has no class",
    ),
    "unknown split": (
        table_source({"split": "elsewhere"}),
        replace(KEEP, columns=TableColumns(targets=("c",), split="split")),
        "row 1 names an unknown split",
    ),
    "no images": (
        table_source({}),
        replace(KEEP, columns=TableColumns(targets=("c",), images=Path("nowhere"))),
        "no folder and no zip",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    make, recipe, message = BAD[case]
    source = make(tmp_path)
    before = folders_of(tmp_path)
    with pytest.raises(InputError) as caught:
        pack(source, tmp_path / "new" / "d", recipe, 1)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert folders_of(tmp_path) == before


@pytest.mark.parametrize("dest", ["tree/d", "tree", "."])
def test_source_and_destination_must_lie_apart(dest: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="within each other"):
        pack(write_tree(tmp_path / "tree", TWO), tmp_path / dest, KEEP, 1, force=True)


def test_force_replaces_a_dataset_and_nothing_else(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", class_files(4))
    first = pack(root, tmp_path / "d", KEEP, 1)
    with pytest.raises(InputError, match="--force"):
        pack(root, tmp_path / "d", KEEP, 1)
    write_tree(root, {"cat/bad.jpg": b"x"})
    with pytest.raises(RunError):
        pack(root, tmp_path / "d", KEEP, 1, force=True)
    assert Dataset.open(tmp_path / "d").fingerprint == first["fingerprint"]
    (root / "cat" / "bad.jpg").unlink()
    second = pack(root, tmp_path / "d", replace(KEEP, seed=9), 1, force=True)
    assert Dataset.open(tmp_path / "d").fingerprint == second["fingerprint"] != first["fingerprint"]
    assert folders_of(tmp_path) == {"tree", "d"}
    notes = write_tree(tmp_path / "mine", {"notes.txt": b"x"})
    with pytest.raises(InputError, match="is no dataset"):
        pack(root, notes, KEEP, 1, force=True)
    assert (notes / "notes.txt").exists()
