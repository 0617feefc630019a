"""Detection: boxes from their files to the tars. What cannot be meant is refused, damage is listed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from lightning_shards.data import Boxes, Crop, ShardLoader, dataset_fields
from lightning_shards.data.box_text import fault, parse
from lightning_shards.data.dataset import Dataset
from lightning_shards.errors import InputError
from lightning_shards.packing import image_files
from lightning_shards.packing.adopt import adopt
from lightning_shards.packing.pack import PackOptions, pack
from lightning_shards.packing.table_rows import TableColumns
from lightning_shards.packing.verify import verify
from lightning_shards.testing import tiny_dataset

from .samples import command, write_csv, write_tree
from .test_masks import png

NAMES = ("cat", "dog")
BOXES = PackOptions(task="detection", val=0.25, test=0.25)
HEIGHT, WIDTH = 40, 60


def image(number: int) -> bytes:
    return png(np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))


def coco(count: int = 8, first: int = 0, **changes: Any) -> dict[str, Any]:
    """Annotations of 0.png, 1.png ..., each with a cat, and but for the first a dog; of 2.png there is a crowd, too."""
    images = [{"id": 70 + n, "file_name": f"{n}.png"} for n in range(first, first + count)]
    annotations = [
        {"id": 10 * n + k, "image_id": 70 + n, "category_id": 3 + 4 * k, "bbox": [n + 2.5, 4, 20, 16]}
        for n in range(first, first + count)
        for k in range(1 + (n > 0))
    ]
    annotations.append({"id": 999, "image_id": 72, "category_id": 3, "bbox": [0, 0, 60, 40], "iscrowd": 1})
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories, **changes}


def files(annotations: dict[str, Any] | None = None) -> dict[str, bytes]:
    content = json.dumps(annotations or coco()).encode()
    return {**{f"images/{n}.png": image(n) for n in range(8)}, "annotations/instances_all.json": content}


def boxes_in(dataset: Dataset, side: int = 60) -> list[dict[str, Any]]:
    """What a loader hands out of all splits, where there is a box."""
    found = []
    for split in dataset.splits:
        loader = ShardLoader(dataset.root, 4, crop=Crop(side, center=1.0), split=split, shuffle=False)
        for batch in loader:
            for row, valid in zip(batch["boxes"], batch.valid.tolist(), strict=True):
                if valid and len(row["labels"]):
                    found.append(row)
        loader.close()
    return found


# -- numbers
def test_coco_s_annotations_and_our_own_are_the_same_boxes() -> None:
    ours = {"boxes": [[1, 2, 4, 6], [0, 0, 5, 5]], "labels": [0, 3]}
    things = [{"bbox": [1, 2, 3, 4], "category_id": 0}, {"bbox": [0, 0, 5, 5], "category_id": 3, "iscrowd": 0}]
    crowd = {"bbox": [0, 0, 9, 9], "category_id": 1, "iscrowd": 1}
    for content in (things, [*things, crowd], {"annotations": things}):
        for found, wanted in zip(parse(content), parse(ours), strict=True):
            assert found.tolist() == wanted.tolist()
    sizes = {"boxes": [[1, 2, 3, 4], [0, 0, 5, 5]], "labels": [0, 3]}
    assert parse(sizes, "xywh")[0].tolist() == parse(ours)[0].tolist()
    assert [len(part) for part in parse([])] == [0, 0], "an image of nothing"


FAULTS = {
    "not a number": ([1, 2, float("nan"), 4], "is not of finite numbers"),
    "infinite": ([1, 2, float("inf"), 4], "is not of finite numbers"),
    "turned round": ([9, 2, 3, 4], "has its corners in the wrong order"),
    "empty": ([3, 2, 3, 4], "is empty"),
    "beyond the right edge": ([50, 2, 61.5, 4], "reaches out of the image of 60 x 40 pixels"),
    "beyond the left edge": ([-2, 2, 3, 4], "reaches out of the image"),
    "in what is rounded alone": ([60, 2, 60.5, 4], "lies outside the image"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_box_that_can_be_none_is_named(case: str) -> None:
    box, sentence = FAULTS[case]
    boxes = np.array([[0, 0, 60.9, 40.9], [5, 5, 6, 6], box])
    assert fault(boxes[:2], (40, 60)) == "" and fault(boxes[:0], (40, 60)) == ""
    assert sentence in fault(boxes, (40, 60))


# -- pack
def test_a_folder_with_annotations_is_packed_and_handed_out(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "s", files())
    report = pack(source, tmp_path / "d", BOXES, 1)
    dataset = Dataset.open(tmp_path / "d")
    assert (dataset.task, list(dataset.targets), dataset.target_field) == ("detection", ["cat", "dog"], "boxes")
    assert list(dataset_fields(dataset)) == ["image", "boxes"] and dataset_fields(dataset)["boxes"] == Boxes(2)
    counts = {name: sum(part[name] for part in report["targets"].values()) for name in NAMES}
    assert counts == {"cat": 8, "dog": 7}, "boxes of each class, without the crowd"
    assert len(boxes_in(dataset)) == 8 and verify(tmp_path / "d", 1, lambda done, total: None)["damages"] == []
    smaller = pack(source, tmp_path / "small", replace(BOXES, short_side=20), 1)
    loader = ShardLoader(tmp_path / "small", 1, crop=Crop(20, center=1.0), split="val", shuffle=False)
    (batch, *_) = list(loader)
    loader.close()
    assert smaller["fields"]["boxes"]["kind"] == "boxes" and batch["boxes"][0]["boxes"].max() <= 20


def test_annotations_are_read_however_large_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """COCO's own have more bytes than any image may have."""
    tree = files(coco())
    name = next(name for name in tree if name.endswith(".json"))
    tree[name] += b" " * (1 << 20)
    monkeypatch.setattr(image_files, "MOST_BYTES", 1 << 20)
    assert pack(write_tree(tmp_path / "s", tree), tmp_path / "d", BOXES, 1)["damaged"] == 0
    with pytest.raises(ValueError, match="is larger than 1 MB"):
        image_files.ImageFiles(tmp_path / "s").read(name)


def test_a_folder_is_known_by_its_annotations_and_so_is_a_zip(tmp_path: Path) -> None:
    splits = {}
    for split, first in (("train", 0), ("val", 4), ("test", 6)):
        splits[f"{split}2017"] = coco(4 if split == "train" else 2, first)
    tree = {f"annotations/instances_{name}.json": json.dumps(content).encode() for name, content in splits.items()}
    tree |= {"annotations/captions_train2017.json": b'{"images": []}', "train2017/unused.png": image(9)}
    for name, content in splits.items():
        content["annotations"] = [one for one in content["annotations"] if one["id"] != 999]
        tree[f"annotations/instances_{name}.json"] = json.dumps(content).encode()
        tree |= {f"{name}/{one['file_name']}": image(one["id"]) for one in content["images"]}
    report = pack(write_tree(tmp_path / "s", tree), tmp_path / "d", PackOptions(), 1)
    assert {split: counts["images"] for split, counts in report["splits"].items()} == {"train": 4, "val": 2, "test": 2}
    assert (report["ignored"], report["ignored_example"]) == (1, "train2017/unused.png")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for name, data in tree.items():
            archive.writestr(f"coco/{name}", data)
    assert pack(tmp_path / "s.zip", tmp_path / "z", PackOptions(), 1)["targets"] == report["targets"]
    assert [len(boxes_in(Dataset.open(tmp_path / name))) for name in "dz"] == [8, 8]


def test_roboflow_s_folders_and_annotations_elsewhere(tmp_path: Path) -> None:
    tree = {f"{split}/{n}.png": image(n) for split in ("train", "valid") for n in range(3)}
    one = json.dumps(coco(3)).encode()
    together = write_tree(tmp_path / "s", {**tree, **{f"{s}/_annotations.coco.json": one for s in ("train", "valid")}})
    assert pack(together, tmp_path / "d", PackOptions(test=0), 1)["splits"].keys() == {"train", "val"}
    classes = {f"{name}/{n}.png": image(n) for name in ("cat", "dog") for n in range(8)}
    both = write_tree(tmp_path / "both", {**classes, "_annotations.coco.json": one})
    assert pack(both, tmp_path / "c", PackOptions(task="single_label"), 1)["task"] == "single_label"
    alone = write_tree(tmp_path / "a", {f"{n}.png": image(n) for n in range(8)})
    (tmp_path / "boxes.json").write_text(json.dumps(coco()))
    done = command(alone, tmp_path / "e", "--coco", tmp_path / "boxes.json", "--json", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert (
        json.loads(done.stdout)["task"] == "detection"
        and str(tmp_path) not in (tmp_path / "e/dataset.json").read_text()
    )


def test_a_table_has_boxes_in_its_cells_or_in_files(tmp_path: Path) -> None:
    inline = json.dumps({"boxes": [[1, 2, 30, 20]], "labels": [1]})
    tree = {f"{n}.png": image(n) for n in range(8)} | {"3.json": b'[{"bbox": [1, 2, 29, 18], "category_id": 0}]'}
    source = write_tree(tmp_path / "s", tree)
    rows = [{"file": f"{n}.png", "what": "3.json" if n == 3 else inline, "age": n} for n in range(8)]
    flags = ["--task", "detection", "--path-column", "file", "--target-columns", "what", "--field", "age=age"]
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    done = command(
        write_csv(source / "t.csv", rows), tmp_path / "d", *flags, "--names", tmp_path / "names.txt", "--json"
    )
    assert done.returncode == 0, done.stderr
    dataset = Dataset.open(tmp_path / "d")
    assert list(dataset_fields(dataset)) == ["image", "boxes", "age"] and tuple(dataset.targets) == NAMES
    assert all(row["boxes"].shape == (1, 4) for row in boxes_in(dataset))


def changed(**changes: Any) -> Callable[[Path], tuple[Path, PackOptions]]:
    return lambda folder: (write_tree(folder / "s", files(coco(**changes))), BOXES)


def box(*numbers: float) -> Callable[[Path], tuple[Path, PackOptions]]:
    return changed(annotations=[{"id": 1, "image_id": 75, "category_id": 3, "bbox": numbers}])


def table(text: str, **settings: Any) -> Callable[[Path], tuple[Path, PackOptions]]:
    def make(folder: Path) -> tuple[Path, PackOptions]:
        source = write_tree(folder / "s", files())
        rows = [{"path": f"images/{n}.png", "what": '{"boxes": [], "labels": []}'} for n in range(7)]
        rows.append({"path": "images/7.png", "what": text})
        recipe = replace(BOXES, columns=TableColumns(targets=("what",)), names=NAMES)
        return write_csv(source / "t.csv", rows), replace(recipe, **settings)

    return make


def one_box(*numbers: float, label: Any = 0) -> str:
    return json.dumps({"boxes": [numbers], "labels": [label]})


REFUSED = {
    "outside": (
        box(50, 4, 20, 16),
        "the image images/5.png: the box 50, 4, 70, 20 reaches out of the image of 60 x 40",
    ),
    "empty": (box(5, 4, 0, 16), "the image images/5.png: the box 5, 4, 5, 20 is empty"),
    "negative": (box(5, 4, -3, 16), "the image images/5.png: the box 5, 4, 2, 20 has its corners in the wrong order"),
    "not a number": (box(5, 4, float("nan"), 16), "the image images/5.png: the box 5, 4, nan, 20 is not of finite"),
    "three numbers": (box(5, 4, 3), "has no bbox of four numbers"),
    "no category": (
        changed(annotations=[{"id": 1, "image_id": 75, "category_id": 5, "bbox": [1, 2, 3, 4]}]),
        "instances_all.json: the annotation {'id': 1, 'image_id': 75, 'category_id': 5",
    ),
    "no image": (
        changed(annotations=[{"id": 1, "image_id": 5, "category_id": 3, "bbox": [1, 2, 3, 4]}]),
        "is of no image in the file",
    ),
    "an image that is not there": (changed(count=9), "the image 8.png is not in"),
    "two of one id": (
        changed(images=[{"id": 70, "file_name": f"{n}.png"} for n in range(2)]),
        "two images have the id 70",
    ),
    "categories of one name": (changed(categories=[{"id": n, "name": "cat"} for n in (3, 7)]), "is there twice"),
    "no COCO": (changed(categories=None), "is not in COCO's form for boxes, with lists of images, annotations"),
    "no JSON": (
        lambda folder: (write_tree(folder / "s", {**files(), "annotations/instances_all.json": b"{"}), BOXES),
        "annotations/instances_all.json are no JSON",
    ),
    "no annotations": (
        lambda folder: (write_tree(folder / "s", {f"{n}.png": image(n) for n in range(4)}), BOXES),
        "has no annotations in COCO's form: name the file by --coco FILE",
    ),
    "names": (
        lambda folder: (write_tree(folder / "s", files()), replace(BOXES, names=NAMES)),
        "--names is for classes that are numbers",
    ),
    "a label without a name": (
        table(one_box(1, 2, 3, 4, label=2)),
        "images/7.png has the class 2, and --names has names",
    ),
    "a label below 0": (table(one_box(1, 2, 3, 4, label=-1)), "the image images/7.png: a label is below 0"),
    "a cell's box": (table(one_box(1, 2, 3, 99)), "the image images/7.png: the box 1, 2, 3, 99 reaches out"),
    "an empty cell": (table(""), 'has 1 rows without boxes: an image of nothing has {"boxes": [], "labels": []}'),
    "no column": (table("", columns=TableColumns()), "name its column of boxes (--target-columns)"),
    "--coco for a table": (table(one_box(1, 2, 3, 4), coco=(Path("x.json"),)), "--coco is for folders of images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_boxes_that_cannot_be_meant_are_one_sentence_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    make, sentence = REFUSED[case]
    source, recipe = make(tmp_path)
    with pytest.raises(InputError) as caught:
        pack(source, tmp_path / "new" / "d", recipe, 1)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_boxes_that_are_no_json_are_left_out_and_listed(tmp_path: Path) -> None:
    source, recipe = table("[1")(tmp_path)
    report = pack(source, tmp_path / "d", recipe, 1, max_damaged_fraction=0.5)
    (line,) = (tmp_path / "d" / "damaged.jsonl").read_text().splitlines()
    assert (
        report["damaged"] == 1 and json.loads(line)["path"] == "images/7.png" and "boxes" in json.loads(line)["error"]
    )


# -- tars of others
@pytest.mark.parametrize("extension", ["boxes.json", "json"])
@pytest.mark.parametrize("form", ["ours", "coco"])
def test_foreign_tars_with_boxes_are_for_detection(extension: str, form: str, tmp_path: Path) -> None:
    def target(number: int) -> bytes:
        right = 99 if number == 4 else 20
        ours = {"boxes": [[1, 2, right, 9]], "labels": [number % 3]}
        return json.dumps(
            ours if form == "ours" else [{"bbox": [1, 2, right - 1, 7], "category_id": number % 3}]
        ).encode()

    (tmp_path / "d").mkdir()
    with webdataset.TarWriter(str(tmp_path / "d" / "a.tar"), encoder=False) as writer:
        for number in range(6):
            boxes = {} if number == 2 else {extension: target(number)}
            writer.write({"__key__": f"{number:04d}", "png": image(number), **boxes})
    report = adopt(str(tmp_path / "d"), None, {}, None, 1)
    dataset = Dataset.open(tmp_path / "d")
    assert (dataset.task, list(dataset.targets), report["lacking"]) == ("detection", ["0", "1", "2"], 2)
    assert dataset_fields(dataset)["boxes"] == Boxes(3, names=(extension,))
    loader = ShardLoader(tmp_path / "d", 6, crop=40, max_skipped_fraction=0.5)
    (batch,) = list(loader)
    loader.close()
    assert batch.valid.sum() == 4, "one has no boxes, and one a box outside its image"
    assert [len(damage["error"]) > 9 for damage in verify(tmp_path / "d", 1, lambda *done: None)["damages"]] == [
        True
    ] * 2


def test_the_engine_s_own_tiny_dataset_has_boxes(tmp_path: Path) -> None:
    dataset = Dataset.open(tiny_dataset(tmp_path / "d", "detection"))
    assert dataset.task == "detection" and len(dataset.targets) == 3
    assert verify(tmp_path / "d", 1, lambda done, total: None)["damages"] == []
