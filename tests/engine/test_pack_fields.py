"""`pack --field`, `images/` beside `masks/`, and `adopt` of samples that are more, or others, than image and class."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import webdataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning_shards.data import Dataset, Image, Mask, ShardLoader, dataset_fields
from lightning_shards.data.fields import from_description
from lightning_shards.errors import InputError, RunError
from lightning_shards.packing import pool
from lightning_shards.packing.adopt import adopt
from lightning_shards.packing.field_columns import ColumnReader, FieldColumn, parse_fields
from lightning_shards.packing.journal import JOURNAL
from lightning_shards.packing.members import NOT_OF_THIS_KIND, TO_SEE, Forms, add_forms, describe, forms_of
from lightning_shards.packing.options import KINDS
from lightning_shards.packing.pack import pack
from lightning_shards.packing.table_rows import TableColumns
from lightning_shards.packing.verify import verify
from team import __main__ as commands

from .field_data import gray, number_image
from .field_data import members as one_of_everything
from .samples import KEEP, decoded, jpeg, members, write_csv, write_tree, write_zip

PLAIN = replace(KEEP, val=0, test=0)


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def everything(folder: Path, count: int = 12) -> Path:
    """A table with a column of each kind, and the files that it names."""
    rows = []
    for number in range(count):
        mask = number_image(number, 40, 60)
        boxes = {"boxes": [[6, 4, 30, 20]], "labels": [number % 2]}
        write_tree(
            folder,
            {
                f"i/{number}.png": gray(mask * 60, "png"), f"s/{number}.png": png(mask),
                f"o/{number}.jpg": jpeg(number),
                f"b/{number}.json": json.dumps(boxes).encode(), f"w/{number}.wav": b"RIFF" + bytes([number]),
                f"a/{number}.npy": npy(np.full((2, 3), number, np.int16)), f"j/{number}.json": b'{"n": %d}' % number,
            },
        )  # fmt: skip
        rows.append(
            {
                "path": f"i/{number}.png", "label": "ab"[number % 2], "age": number / 4, "name": f"é, {number}",
                "make": ("vw", "bmw")[number % 2], "tags": ("x|y", "", "y")[number % 3], "seg": f"s/{number}.png",
                "other": f"o/{number}.jpg", "boxes": f"b/{number}.json", "array": f"a/{number}.npy",
                "sound": f"w/{number}.wav", "facts": f"j/{number}.json", "some": "" if number % 2 else "7",
            }
        )  # fmt: skip
    return write_csv(folder / "t.csv", rows)


FLAGS = [
    "age=age", "title=name", "make=make:class", "tags=tags:labels", "mask=seg", "other=other", "things=boxes:boxes",
    "series=array", "sound=sound:bytes", "facts=facts", "some=some",
]  # fmt: skip


@pytest.mark.parametrize("short_side", [None, 20])
def test_a_table_brings_any_field_and_the_loader_hands_it_out(tmp_path: Path, short_side: int | None) -> None:
    columns = TableColumns(targets=("label",), fields=parse_fields(FLAGS))
    options = replace(PLAIN, short_side=short_side, columns=columns)
    report = pack(everything(tmp_path / "source"), tmp_path / "d", options, 2)
    assert {name: about["kind"] for name, about in report["fields"].items()} == {
        "image": "image", "target": "class", "age": "numbers", "title": "text", "make": "class", "tags": "labels",
        "mask": "mask", "other": "image", "things": "boxes", "series": "array", "sound": "bytes", "facts": "json",
        "some": "numbers",
    }  # fmt: skip
    assert report["classes"] == {"make": ["bmw", "vw"], "tags": ["x", "y"]}
    dataset = Dataset.open(tmp_path / "d")
    assert dataset_fields(dataset)["mask"] == Mask(4, names=("mask.png",))
    assert dataset.fields["some"]["required"] is False and "required" not in dataset.fields["age"]
    assert verify(tmp_path / "d", 1, lambda done, total: None)["damages"] == []
    loader = ShardLoader(tmp_path / "d", 12, crop=16, shuffle=False, workers=1)
    (batch,) = list(loader)
    loader.close()
    assert batch.valid.all() and batch["image"].shape == batch["other"].shape == (12, 3, 16, 16)
    for row, age in enumerate(batch["age"][:, 0].tolist()):
        number = round(age * 4)
        assert batch["title"][row] == f"é, {number}" and batch["facts"][row] == {"n": number}
        assert batch["make"][row] == 1 - number % 2 and batch["target"][row] == number % 2
        assert batch["tags"][row].tolist() == [[1, 1], [0, 0], [0, 1]][number % 3]
        assert batch["series"][row].tolist() == [[number] * 3] * 2 and batch["sound"][row][-1] == number
        assert batch["some"][row].isnan() == bool(number % 2)
        assert batch["things"][row]["labels"].tolist() == [number % 2]
        shown = batch["image"][row, 0].float() / 60  # the image is its mask in gray
        assert (shown - batch["mask"][row].float()).abs().median() < 0.2
    stored = members(tmp_path / "d", "train")
    sizes = {decoded(data).shape[:2] for name, data in stored.items() if name.endswith(".mask.png")}
    assert sizes == {(40, 60) if short_side is None else (20, 30)}
    boxes = {tuple(json.loads(data)["boxes"][0]) for name, data in stored.items() if "things" in name}
    assert boxes == {(6, 4, 30, 20) if short_side is None else (3, 2, 15, 10)}


ZEROS = np.zeros((9, 9), np.uint8)
JPEG = gray(np.zeros((40, 60), np.uint8), "jpg")


def masked(count: int = 4, folder: str = "", size: tuple[int, int] = (40, 60)) -> dict[str, bytes]:
    files = {}
    for number in range(count):
        mask = number_image(number, *size)
        files[f"{folder}images/x/{number}.jpg"] = gray(mask * 60, "jpg")
        files[f"{folder}masks/x/{number}.png"] = png(mask)
    return files


def below(split: str) -> dict[str, bytes]:
    return {name.replace("/x/", f"/{split}/"): data for name, data in masked().items()}


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (masked(10), {"train": 8, "val": 1, "test": 1}),
        ({**masked(4, "train/"), **masked(2, "Validation/")}, {"train": 4, "val": 2}),
        ({**below("train"), **below("val")}, {"train": 4, "val": 4}),
    ],
    ids=["no splits", "splits above", "splits below"],
)
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_images_beside_masks(files: dict[str, bytes], splits: dict[str, int], form: str, tmp_path: Path) -> None:
    files = {f"seg/{name}": data for name, data in files.items()} | {"seg/README.md": b"x"}
    source = write_tree(tmp_path / "s", files) if form == "folder" else write_zip(tmp_path / "s.zip", files)
    test = 0.1 if len(splits) == 3 else 0
    report = pack(source, tmp_path / "d", replace(KEEP, test=test, short_side=20), 1)
    assert {split: part["images"] for split, part in report["splits"].items()} == splits
    assert report["task"] == "segmentation" and report["ignored"] == 1
    fields = dataset_fields(Dataset.open(tmp_path / "d"))
    assert list(fields) == ["image", "mask"]
    assert fields["image"] == Image() and fields["mask"] == Mask(4, names=("mask.png",))
    assert verify(tmp_path / "d", 1, lambda done, total: None)["damages"] == []


def table(**change: Any) -> Callable[[Path], tuple[Path, TableColumns]]:
    """A table of six images with a mask each, of which the last row, or the flag, is changed."""

    def make(folder: Path) -> tuple[Path, TableColumns]:
        write_tree(folder, {**masked(6), "masks/small.png": png(np.zeros((9, 9), np.uint8))})
        write_tree(folder, {"masks/white.png": png(np.full((40, 60), 255, np.uint8)), "masks/rgb.png": jpeg(1)})
        rows = [{"path": f"images/x/{n}.jpg", "seg": f"masks/x/{n}.png", "n": "1", "t": "a"} for n in range(6)]
        flags = change.pop("flags", ["mask=seg"])
        every = change.pop("every", {})
        rows = [{**row, **every} for row in rows]
        rows[-1] |= change
        return write_csv(folder / "t.csv", rows), TableColumns(fields=parse_fields(flags))

    return make


BAD = {
    "named twice": (table(flags=["mask=seg", "mask=n"]), "'mask' is named twice"),
    "taken": (table(flags=["image=seg"]), "'image' is taken"),
    "taken by the target": (table(flags=["target=n"]), "'target' is taken"),
    "no column": (table(flags=["mask=sag"]), "no column 'sag'; it has path, seg"),
    "no kind": (table(flags=["mask=seg:musk"]), "no kind 'musk'; there are numbers, text"),
    "no name": (table(flags=["=seg"]), "NAME=COLUMN"),
    "a name of another form": (table(flags=["My Mask=seg"]), "NAME=COLUMN"),
    "which it cannot tell": (table(flags=["labels=seg"]), "write --field labels=seg:mask or :image"),
    "empty": (table(every={"n": ""}, flags=["n=n"]), "cannot be told where it is empty"),
    "no number": (table(n="much", flags=["n=n:numbers"]), "row 6 has 'much' for n"),
    "more numbers": (table(n="[1, 2]", flags=["n=n"]), "row 6 has 2 numbers for n"),
    "out": (table(seg="../x.png"), "row 6 has the path '../x.png'"),
    "0 and 255": (table(every={"seg": "masks/white.png"}), "255 counts nowhere"),
    "no mask is one": (table(every={"seg": "images/x/1.jpg"}, flags=["mask=seg:mask"]), "mask: is no PNG"),
    "classes that look alike": (table(t="a\u200d", flags=["t=t:class"]), "look alike"),
}


@pytest.mark.parametrize("case", BAD)
def test_fields_that_cannot_be_packed_are_one_sentence(case: str, tmp_path: Path) -> None:
    make, sentence = BAD[case]
    with pytest.raises(InputError) as caught:
        source, columns = make(tmp_path)
        pack(source, tmp_path / "new" / "d", replace(PLAIN, columns=columns), 1)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_class_that_the_first_masks_lack_is_no_reason_to_refuse_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "TRIED", 3)
    void, rare = np.zeros((24, 32), np.uint8), np.ones((24, 32), np.uint8)
    void[:4] = 255
    rows, files = [], dict[str, bytes]()
    for number in range(40):
        files |= {f"i/{number}.jpg": jpeg(number), f"m/{number}.png": png(rare if number % 10 == 9 else void)}
        rows.append({"path": f"i/{number}.jpg", "mask": f"m/{number}.png", "x": 1})
    source = write_csv(write_tree(tmp_path / "s", files) / "t.csv", rows)
    recipe = replace(
        PLAIN, task="regression", columns=TableColumns(targets=("x",), fields=parse_fields(["seg=mask:mask"]))
    )
    monkeypatch.setattr(pool, "TRIED_AGAIN", 3)
    with pytest.raises(InputError, match="hold no numbers but 0 and 255"):
        pack(source, tmp_path / "d", recipe, 1)
    monkeypatch.setattr(pool, "TRIED_AGAIN", 40)
    pack(source, tmp_path / "d", recipe, 1)
    assert Dataset.open(tmp_path / "d").fields["seg"]["classes"] == 2


def test_classes_that_have_names_may_have_any_number() -> None:
    """The first samples of thousands of classes need not show one of the lower numbers."""
    forms: Forms = {"15270": [1, "a.jpg"]}
    assert describe("who", "class", ["who.cls"], True, forms, 20_000).classes == 20_000  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="has the class 15,270, and only 0 classes are below it"):
        describe("who", "class", ["who.cls"], True, forms)


def test_names_of_members_fit_into_a_tar_however_long_they_would_be(tmp_path: Path) -> None:
    field, path = "abcdefghijklmnopqrstuvwx", f"{'i' * 70}.jpg"
    files = {path: jpeg(1), "b.parquet": b"any bytes"}
    source = write_csv(write_tree(tmp_path / "s", files) / "t.csv", [{"path": path, "x": 1, "more": "b.parquet"}])
    columns = TableColumns(targets=("x",), fields=parse_fields([f"{field}=more:bytes"]))
    pack(source, tmp_path / "d", replace(PLAIN, task="regression", columns=columns), 1)
    names = list(members(tmp_path / "d", "train"))
    assert max(map(len, names)) == 100 and {name.partition(".")[2] for name in names} == {
        "jpg", "json", f"{field}.parquet"
    }  # fmt: skip


def test_a_mask_of_another_size_is_damage_that_names_the_sample(tmp_path: Path) -> None:
    source, columns = table(seg="masks/small.png")(tmp_path)
    sentence = r"images/x/5\.jpg \(mask: has 9 x 9 pixels, the image 60 x 40\)"
    with pytest.raises(RunError, match=sentence):
        pack(source, tmp_path / "d", replace(PLAIN, columns=columns), 1)
    report = pack(source, tmp_path / "e", replace(PLAIN, columns=columns), 1, max_damaged_fraction=0.5)
    assert report["damaged"] == 1 and report["splits"]["train"]["images"] == 5


def test_folders_that_lack_a_mask_and_fields_of_no_table_are_refused(tmp_path: Path) -> None:
    files = masked()
    del files["masks/x/2.png"]
    with pytest.raises(InputError, match=r"images/x/2\.jpg has no mask masks/x/2\.png"):
        pack(write_tree(tmp_path / "s", files), tmp_path / "d", PLAIN, 1)
    fields = TableColumns(fields=parse_fields(["mask=seg"]))
    with pytest.raises(InputError, match="is no table"):
        pack(write_tree(tmp_path / "s", masked()), tmp_path / "d", replace(PLAIN, columns=fields), 1)


def write_tar(root: Path, samples: list[dict[str, bytes]], name: str = "a.tar") -> str:
    root.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(root / name), encoder=False) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"{number:04d}", **sample})
    return str(root)


def test_ordinary_classification_is_described_as_ever(tmp_path: Path) -> None:
    samples = [{"png": one_of_everything(n)["png"], "cls": b"%d" % (n % 2), "txt": b"x"} for n in range(4)]
    report = adopt(write_tar(tmp_path / "d", samples), None, {}, None, 1)
    content = json.loads((tmp_path / "d" / "dataset.json").read_bytes())
    assert list(content) == ["format", "task", "targets", "splits", "packed", "fingerprint"]
    assert content["format"] == "lightning-shards/1" and report["fields"] == ["cls", "png", "txt"]


SOUND = [{"wav": b"RIFF%d" % n, "txt": b"words"} for n in range(4)]
FOREIGN: dict[str, tuple[list[dict[str, bytes]], list[str], dict[str, str]]] = {
    "sound and text": (SOUND, [], {"text": "text", "wav": "bytes"}),
    "some lack it": ([*SOUND, {"wav": b"RIFF"}], [], {"text": "text", "wav": "bytes"}),
    "text and its class": ([{"txt": b"words", "cls": b"1"}] * 4, [], {"target": "class", "text": "text"}),
    "images alone": ([{"png": one_of_everything(n)["png"]} for n in range(4)], [], {"image": "image"}),
    "images and facts": (
        [{"png": one_of_everything(n)["png"], "json": b'{"url": "x"}', "txt": b"x"} for n in range(4)],
        [],
        {"image": "image", "json": "json", "text": "text"},
    ),
    "everything but a class": (
        [{name: data for name, data in one_of_everything(n).items() if name != "cls"} for n in range(8)],
        [],
        {"image": "image", "boxes": "boxes", "depth": "bytes", "json": "json", "array": "array", "mask": "mask",
         "text": "text"},
    ),
    "what is asked for": (
        [{**one_of_everything(n), "age.json": b"%d" % n} for n in range(8)],
        ["mask=seg.png", "age=age.json:numbers"],
        {"image": "image", "target": "class", "mask": "mask", "age": "numbers"},
    ),
    "two images": (
        [{f"left.{'jpg' if n % 2 else 'png'}": jpeg(n), "right.jpg": jpeg(n)} for n in range(4)],
        [],
        {"left": "image", "right": "image"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_tars_of_anything_are_adopted_and_handed_out(case: str, tmp_path: Path) -> None:
    samples, flags, kinds = FOREIGN[case]
    report = adopt(write_tar(tmp_path / "d", samples), None, {}, None, 1, fields=parse_fields(flags))
    assert report["lacking"] == 0
    assert {name: about["kind"] for name, about in Dataset.open(tmp_path / "d").fields.items()} == kinds
    assert verify(tmp_path / "d", 1, lambda done, total: None)["damages"] == []
    loader = ShardLoader(tmp_path / "d", len(samples), crop=16, workers=1)
    (batch,) = list(loader)
    loader.close()
    assert batch.valid.all() and set(batch.fields) == set(kinds)
    if "text" in kinds:
        missing = sum("txt" not in sample for sample in samples)
        assert sum(text == "" for text in batch["text"]) == missing


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_adopt_names_a_mask_of_another_size_as_verify_does(extension: str, tmp_path: Path) -> None:
    samples = [{extension: gray(np.zeros((9 + 2 * (number == 2), 9), np.uint8), extension), "seg.png": png(ZEROS)}
               for number in range(4)]  # fmt: skip
    report = adopt(write_tar(tmp_path / "d", samples), None, {}, None, 1)
    assert (report["lacking"], report["lacking_examples"]) == (1, ["a.tar 0002"])
    (damage,) = verify(tmp_path / "d", 1, lambda done, total: None)["damages"]
    assert damage["key"] == "0002" and "mask: has 9 x 9 pixels, the image 9 x 11" in damage["error"]


@pytest.mark.parametrize(
    ("samples", "flags", "sentence"),
    [
        ([{"wav": b"x"}], ["a=flac"], r"no sample has \.flac; the samples have wav"),
        ([{"wav": b"x"}], ["a=wav:array"], r"no \.wav of the samples can be read as array"),
        ([{"jpg": JPEG, "seg.png": png(ZEROS)}], ["mask=seg.png"], "'0000': has 9 x 9 pixels, the image 60 x 40"),
        ([{"png": b"x", "cls": b"cat"}], [], "no target that can be read"),
        ([{"wav": b"x", "make.cls": b"0"}], [], "ends at the first dot"),
        ([{"wav": b"x", "make.cls": b"3000000"}], ["make=make.cls"], "'0000' has the class 3,000,000"),
    ],
)
def test_foreign_tars_that_say_too_little_are_refused(
    samples: list[dict[str, bytes]], flags: list[str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        adopt(write_tar(tmp_path / "d", samples), None, {}, None, 1, fields=parse_fields(flags))
    assert not (tmp_path / "d" / "dataset.json").exists()


def test_the_commands_take_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["x", *map(str, arguments)])
        try:
            status = commands.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return status, "".join(capsys.readouterr())

    source = everything(tmp_path / "source", 6)
    status, out = run("pack", source, tmp_path / "d", "--field", "mask=seg", "--field", "age=age", "--workers", 1)
    assert status == 0 and "no targets, fields image (image), mask (mask), age (numbers)" in out
    assert run("pack", source, tmp_path / "e", "--field", "age")[0] == 2
    status, out = run("adopt", write_tar(tmp_path / "t", SOUND), "--field", "sound=wav")
    assert status == 0 and "fields sound (bytes); members txt, wav" in out
    assert run("adopt", write_tar(tmp_path / "u", SOUND), "--names", source)[0] == 2


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A folder of one tar, and the line that an interrupted pass over it leaves behind."""
    source = write_tar(tmp_path_factory.mktemp("journal") / "d", [one_of_everything(0)])
    broken = Path(source, "b.tar")
    broken.write_bytes(b"no tar")
    with pytest.raises(InputError):
        adopt(source, None, {}, None, 1, fields=parse_fields(["mask=seg.png"]))
    broken.unlink()
    return source, json.loads(Path(source, JOURNAL).read_bytes())


def places_in(node: Any) -> Iterator[tuple[Any, Any]]:
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from places_in(node[key])


ODD = [None, -1, 1e308, 10**30, "x", "", [], [1], {}, {"x": 1}, {"9": [1, 2]}, {"9": ["a", "b"]}, True, "\ud800"]


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 60), value=st.sampled_from(ODD), torn=st.integers(0, 3000))
@example(place=23, value={}, torn=3000)  # not one field
def test_a_journal_of_somebody_else_is_used_or_left_out(
    place: int, value: object, torn: int, interrupted: tuple[str, dict[str, Any]]
) -> None:
    source, line = interrupted[0], json.loads(json.dumps(interrupted[1]))
    places = list(places_in(line))
    node, key = places[place % len(places)]
    node[key] = value
    Path(source, JOURNAL).write_bytes(json.dumps(line).encode()[:torn] + b"\n")
    Path(source, "dataset.json").unlink(missing_ok=True)
    adopt(source, None, {}, None, 1, fields=parse_fields(["mask=seg.png"]))
    mask = dataset_fields(Dataset.open(source))["mask"]
    assert isinstance(mask, Mask) and mask.names == ("seg.png",)


def test_a_journal_that_is_no_file_is_refused(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "d", SOUND)
    (tmp_path / "theirs").write_text("kept")
    (tmp_path / "d" / JOURNAL).symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match="is no plain file"):
        adopt(source, None, {}, None, 1)
    assert (tmp_path / "theirs").read_text() == "kept"


def test_names_that_are_no_utf8_are_named_or_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_tar(tmp_path / "d", [{"png": one_of_everything(0)["png"], "x\udcff": b"x", "txt (1)": b"x"}])
    monkeypatch.setattr("sys.argv", ["x", "adopt", source])
    assert commands.main() == 0 and r"x\udcff" in capsys.readouterr().out
    assert list(Dataset.open(source).fields) == ["image"]
    Path(source, "a.tar").rename(Path(source, "a\udcff.tar"))
    with pytest.raises(InputError, match="is no UTF-8"):
        adopt(source, tmp_path / "e", {}, None, 1)


NPY = npy(np.zeros((2, 3), np.float128)) if hasattr(np, "float128") else npy(np.zeros((2, 3)))
PIECES = [b"[", b"{", b"}", b"]", b'"boxes"', b'"labels"', b":", b",", b"1", b"-1", b"9" * 5000, b"1e400", b"NaN",
          b"null", b'"x"', b" ", b"\0", b"\xff", NPY, NPY[:70], png(np.zeros((3, 3), np.uint8))]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(KINDS), data=st.lists(st.sampled_from(PIECES) | st.binary(max_size=9), max_size=9))
def test_any_bytes_of_any_kind_are_described_or_damage(kind: str, data: list[bytes]) -> None:
    """The same looks into what `pack` stores and what `adopt` finds."""
    forms: Forms = {}
    with suppress(*NOT_OF_THIS_KIND):
        add_forms(forms, forms_of(kind, b"".join(data)) if kind in TO_SEE else [], "a.tar: sample 'x'")
    with suppress(InputError):
        field = describe("x", kind, ["x.y"], True, forms)
        assert from_description(json.loads(json.dumps(field.describe()))) == field


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(KINDS), cells=st.lists(st.text(max_size=9) | st.lists(st.text(max_size=4)), max_size=4))
def test_any_cells_of_any_kind_are_read_or_a_sentence(kind: str, cells: list[Any]) -> None:
    reader = ColumnReader(FieldColumn("x", "y", kind), Path("/pictures"))
    try:
        texts = [reader.read("t.csv: row 1", cell) for cell in cells]
        assert all(isinstance(text, str) for text in texts) and reader.about()["kind"] == kind
    except InputError as error:
        assert str(error)
