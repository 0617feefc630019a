"""Segmentation: masks from their files to the tars. What cannot be meant is refused, damage is listed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import webdataset
from lightning_shards.data import Mask, ShardLoader, dataset_fields
from lightning_shards.data.dataset import Dataset
from lightning_shards.errors import InputError
from lightning_shards.packing.adopt import adopt
from lightning_shards.packing.pack import PackOptions, pack
from lightning_shards.packing.table_rows import TableColumns
from lightning_shards.packing.verify import verify
from lightning_shards.testing import tiny_dataset
from numpy.typing import NDArray
from PIL import Image

from .samples import command, write_csv, write_tree

NAMES = ("background", "cat", "dog")
MASKS = PackOptions(task="segmentation", names=NAMES, val=0.25, test=0.25)


def png(pixels: NDArray[Any]) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def mask(number: int, height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    """Classes 0 to 2 in blocks, and a rim that counts nowhere."""
    blocks = np.random.default_rng(number).integers(0, 3, (4, 6), dtype=np.uint8)
    made = np.kron(blocks, np.ones((height // 4, width // 6), np.uint8))
    made[:2] = 255
    return made


def files(count: int = 8) -> dict[str, bytes]:
    """Images whose gray says the class of each pixel, and their masks."""
    found: dict[str, bytes] = {}
    for number in range(count):
        gray = np.where(mask(number) == 255, 200, mask(number) * 60).astype(np.uint8)
        found |= {f"images/{number}.png": png(gray), f"masks/{number}.png": png(mask(number))}
    return found


def palette_png(indices: NDArray[np.uint8]) -> bytes:
    """As Pascal VOC has them: numbers with colours to look at."""
    made = Image.fromarray(indices, mode="P")
    made.putpalette([value for number in range(256) for value in (number, 255 - number, 7 * number % 256)])
    file = io.BytesIO()
    made.save(file, "png")
    return file.getvalue()


def test_a_folder_is_packed_and_handed_out_lossless(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "s", {**files(), "masks/7.png": palette_png(mask(7))})
    report = pack(source, tmp_path / "d", replace(MASKS, names=()), 1)
    dataset = Dataset.open(tmp_path / "d")
    assert (dataset.task, list(dataset.targets)) == ("segmentation", ["0", "1", "2"])
    assert dataset_fields(dataset)["mask"] == Mask(3, names=("mask.png",)) and dataset.target_field == "mask"
    assert sum(report["targets"][split]["1"] for split in report["splits"]) == 8, "images with the class"
    assert verify(tmp_path / "d", 1, lambda done, total: None)["damages"] == []
    loader = ShardLoader(tmp_path / "d", 4, crop=20, seed=3)
    for batch in loader:
        shown, classes = batch["image"][:, 0].float(), batch["mask"]
        assert set(classes.unique().tolist()) <= {0, 1, 2, 255}, "no class comes from mixing others"
        wanted = classes.float() * 60
        wanted[classes == 255] = 200
        assert ((shown - wanted).abs() < 30).float().mean() > 0.75, "cropped, flipped and resized alike"
    loader.close()


def test_a_table_names_its_column_of_masks_and_a_file_the_classes(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "s", files())
    rows = [{"file": f"images/{n}.png", "seg": f"masks/{n}.png", "age": n} for n in range(8)]
    table = write_csv(source / "t.csv", rows)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    flags = ["--task", "segmentation", "--path-column", "file", "--target-columns", "seg", "--field", "age=age"]
    done = command(table, tmp_path / "d", *flags, "--names", tmp_path / "names.txt", "--json", "--workers", 1)
    assert done.returncode == 0, done.stderr
    dataset = Dataset.open(tmp_path / "d")
    assert tuple(dataset.targets) == NAMES and list(dataset_fields(dataset)) == ["image", "mask", "age"]
    assert list(json.loads(done.stdout)["targets"]["train"]) == list(NAMES)


def change(name: str, data: bytes | None) -> Callable[[Path], tuple[Path, PackOptions]]:
    def make(folder: Path) -> tuple[Path, PackOptions]:
        changed = files() | ({name: data} if data else {})
        return write_tree(folder / "s", changed), MASKS

    return make


def table(**row: str) -> Callable[[Path], tuple[Path, PackOptions]]:
    def make(folder: Path) -> tuple[Path, PackOptions]:
        source = write_tree(folder / "s", files())
        rows = [{"path": f"images/{n}.png", "seg": f"masks/{n}.png"} for n in range(8)]
        rows[-1] |= row
        return write_csv(source / "t.csv", rows), replace(MASKS, columns=TableColumns(targets=("seg",)))

    return make


def options(**settings: Any) -> Callable[[Path], tuple[Path, PackOptions]]:
    return lambda folder: (write_tree(folder / "s", files()), replace(MASKS, **settings))


REFUSED = {
    "another size": (change("masks/5.png", png(np.zeros((9, 9), np.uint8))), "the mask masks/5.png has 9 x 9 pixels"),
    "colours": (change("masks/5.png", png(np.zeros((40, 60, 3), np.uint8))), "the mask masks/5.png is in colour"),
    "16 bits": (change("masks/5.png", png(np.zeros((40, 60), np.uint16))), "the mask masks/5.png is in colour or has"),
    "no PNG": (
        change("masks/5.png", cv2.imencode(".jpg", np.zeros((40, 60), np.uint8))[1].tobytes()),
        "the mask masks/5.png is no PNG",
    ),
    "no class": (
        change("masks/5.png", png(np.full((40, 60), 3, np.uint8))),
        "the mask masks/5.png has the class 3, and --names has names for 0 to 2",
    ),
    "no class of a palette": (
        change("masks/5.png", palette_png(np.full((40, 60), 9, np.uint8))),
        "the mask masks/5.png has the class 9",
    ),
    "an image alone": (change("images/9.png", png(mask(9))), "images/9.png has no mask masks/9.png"),
    "a row without": (table(seg=""), "1 rows without a mask"),
    "a column that is not there": (
        lambda folder: (table()(folder)[0], replace(MASKS, columns=TableColumns(targets=("mask",)))),
        "no column 'mask'",
    ),
    "no column": (lambda folder: (table()(folder)[0], MASKS), "name its column of masks"),
    "one name": (options(names=("all",)), "--names has 1 names"),
    "class folders": (
        lambda folder: (write_tree(folder / "s", {f"{n}/{n}.png": png(mask(n)) for n in range(4)}), MASKS),
        "no folders images/ and masks/",
    ),
    "names of class folders": (
        lambda folder: (
            write_tree(folder / "s", {f"{n}/{n}.png": png(mask(n)) for n in range(4)}),
            replace(MASKS, task="single_label"),
        ),
        "--names is for the classes of masks",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_masks_that_cannot_be_meant_are_one_sentence_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    make, sentence = REFUSED[case]
    source, recipe = make(tmp_path)
    with pytest.raises(InputError) as caught:
        pack(source, tmp_path / "new" / "d", recipe, 1)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_damaged_mask_is_left_out_and_listed(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "s", {**files(), "masks/5.png": png(mask(5))[:-40]})
    report = pack(source, tmp_path / "d", MASKS, 1, max_damaged_fraction=0.5)
    (line,) = (tmp_path / "d" / "damaged.jsonl").read_text().splitlines()
    assert report["damaged"] == 1 and json.loads(line)["path"] == "images/5.png" and "mask" in json.loads(line)["error"]


def test_foreign_tars_with_masks_are_for_segmentation(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with webdataset.TarWriter(str(tmp_path / "d" / "a.tar"), encoder=False) as writer:
        for number in range(6):
            seg = {} if number == 4 else {"seg.png": png(mask(number))}
            writer.write({"__key__": f"{number:04d}", "png": files()[f"images/{number}.png"], **seg})
    report = adopt(str(tmp_path / "d"), None, {}, list(NAMES), 1)
    dataset = Dataset.open(tmp_path / "d")
    assert (dataset.task, tuple(dataset.targets), report["lacking"]) == ("segmentation", NAMES, 1)
    assert dataset_fields(dataset)["mask"] == Mask(3, names=("seg.png",))
    loader = ShardLoader(tmp_path / "d", 6, crop=16, max_skipped_fraction=0.5)
    (batch,) = list(loader)
    loader.close()
    assert batch.valid.sum() == 5, "the sample without a mask is masked"
    (tmp_path / "d" / "dataset.json").unlink()
    with pytest.raises(InputError, match="2 names are too few: the masks need 3"):
        adopt(str(tmp_path / "d"), None, {}, ["a", "b"], 1)


def test_the_engine_s_own_tiny_dataset_has_masks(tmp_path: Path) -> None:
    dataset = Dataset.open(tiny_dataset(tmp_path / "d", "segmentation"))
    assert dataset.task == "segmentation" and len(dataset.targets) == 3
    assert verify(tmp_path / "d", 1, lambda done, total: None)["damages"] == []
