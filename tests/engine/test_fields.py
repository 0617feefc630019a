"""Fields: each kind by its bytes, all in the image's plane alike, and ragged ones in lists."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lightning_shards.data import (
    Array,
    Boxes,
    ClassIndex,
    Crop,
    Dataset,
    DecodeError,
    Field,
    Image,
    Json,
    Mask,
    MultiHot,
    Numbers,
    Text,
    View,
    dataset_fields,
)
from lightning_shards.data.fields import check_sample, from_description, resolve_fields
from lightning_shards.data.number_text import to_number
from lightning_shards.errors import InputError
from lightning_shards.packing.options import size
from lightning_shards.packing.verify import verify
from PIL import Image as Pillow

from . import field_data, own_fields

ALL: dict[str, Field] = {
    "image": Image(),
    "mask": Mask(4),
    "target": ClassIndex(3),
    "boxes": Boxes(2),
    "text": Text(),
    "facts": Json(),
    "series": Array(),
    "depth": own_fields.Depth(),
}
KINDS = [
    Image(("left.jpg", "left.png")), Mask(7, required=False), ClassIndex(9, ("make.cls",)), MultiHot(4, key=None),
    Numbers(2, ("age.json",)), Boxes(3, layout="xywh", visible=0.5), Text(), Json(("meta.json",)),
    Array(shape=(3, 4), dtype=np.dtype(np.int16)),
]  # fmt: skip


@pytest.mark.parametrize("field", KINDS)
def test_a_description_makes_the_same_field(field: Field) -> None:
    described = json.loads(json.dumps(field.describe()))
    assert from_description(described) == field == pickle.loads(pickle.dumps(field))


@pytest.mark.parametrize(
    "description",
    [{}, {"kind": "film"}, {"kind": 3}, {"kind": "image", "names": "png"}, {"kind": "image", "names": []}, 5,
     {"kind": "image", "names": ["../x"]}, {"kind": "image", "names": [3]}, {"kind": "mask"}, {"kind": ["mask"]},
     {"kind": "mask", "classes": 256}, {"kind": "class", "classes": -1}, {"kind": "class", "classes": 10**30},
     {"kind": "labels", "classes": 2.5}, {"kind": "numbers", "count": True}, {"kind": "image", "sorts": 3},
     {"kind": "boxes", "classes": 2, "layout": "cxcywh"}, {"kind": "boxes", "classes": 2, "visible": "all"},
     {"kind": "array", "shape": [-1]}, {"kind": "array", "shape": "x"}, {"kind": "array", "dtype": "object"},
     {"kind": "array", "shape": [10**9, 10**9]}, {"kind": "text", "required": "no"}],
)  # fmt: skip
def test_a_description_of_no_field_is_one_sentence(tmp_path: Path, description: dict) -> None:
    with pytest.raises(InputError) as error:
        from_description(description)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    if isinstance(description, dict):
        dataset = field_data.write(tmp_path / "d", 2, fields={"odd": description})
        with pytest.raises(InputError, match=r"dataset.json: field 'odd': "):
            dataset_fields(dataset)


def test_fields_without_torch() -> None:
    code = """
import sys
import lightning_shards.data
from lightning_shards.data import Array, Boxes, ClassIndex, Image, Json, Mask, MultiHot, Numbers, Text, View, Transform
import lightning_shards.data.worker, lightning_shards.data.transforms, lightning_shards.packing.verify
assert "torch" not in sys.modules
try:
    lightning_shards.data.Film
except AttributeError:
    print(len(lightning_shards.data.__all__))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > 15, done.stderr
    import lightning_shards.data as data

    assert all(getattr(data, name) is not None for name in data.__all__)


def test_one_of_everything(tmp_path: Path) -> None:
    dataset, crop = field_data.write(tmp_path / "d"), Crop(32)
    batches = list(field_data.loader(dataset, ALL, crop=crop))
    assert len(batches) == 5 and all(batch.valid.all() for batch in batches)
    for batch in batches:
        assert list(batch.fields) == list(ALL)
        assert batch["image"].shape == (8, 3, 32, 32)
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert batch["mask"].shape == (8, 32, 32) and batch["mask"].dtype == torch.uint8
        assert batch["depth"].shape == (8, 32, 32) and batch["depth"].dtype == torch.float32
        assert batch["target"].tolist() == [number % 3 for number in batch.ids.tolist()]
        assert batch["text"] == [f"sample {number}: é" for number in batch.ids.tolist()]
        assert batch["facts"] == [{"number": number} for number in batch.ids.tolist()]
        assert [series.tolist() for series in batch["series"]] == [list(range(n % 4)) for n in batch.ids.tolist()]
        for boxes in batch["boxes"]:
            assert boxes["boxes"].dtype == torch.float32 and boxes["labels"].dtype == torch.int64
            assert boxes["boxes"][0].tolist() == [0, 0, 32, 32], "the whole image's box fills the square"
        halved = batch.rows(batch["target"] == 0)
        assert len(halved["text"]) == len(halved["boxes"]) == len(halved["mask"]) == len(halved)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 31), extension=st.sampled_from(["png", "jpg"]), scale=st.sampled_from([1, 3, 11]))
def test_mask_and_image_are_cut_alike(seed: int, extension: str, scale: int) -> None:
    """The image is its mask in gray: where a pixel's neighbourhood has one class, it must show it."""
    mask = field_data.number_image(seed, 40 + seed % 9, 44 + seed % 7).repeat(scale, 0).repeat(scale, 1)
    image = field_data.gray(mask * 60, extension)
    view = View(Crop(24, scale=(0.3, 0.9)), np.random.default_rng(seed).random(41))
    pixels, classes = np.zeros((24, 24, 3), np.uint8), np.zeros((24, 24), np.uint8)
    Image().decode(image, view, pixels)
    Mask(4).decode(cv2.imencode(".png", mask)[1].tobytes(), view, classes)
    around = np.ones((3, 3) if scale == 1 else (5, 5))  # made smaller, an edge is blurred a little further
    inside = cv2.erode(classes, around) == cv2.dilate(classes, around)
    inside[[0, 1, -2, -1]] = inside[:, [0, 1, -2, -1]] = False  # where slivers thinner than a pixel may lie
    assume(inside.any())
    assert np.abs(pixels[inside].astype(int) - classes[inside][:, None] * 60).max() < 30
    top, left, height, width = view.box
    region = mask[top : top + height, left : left + width]
    fits = np.zeros((24, 24), bool)
    for down, across in itertools.product((-0.01, 0.01), repeat=2):  # either side of a tie
        rows, columns = ((np.arange(24) + 0.5) * size / 24 for size in region.shape)
        rows, columns = (rows + down).astype(int), (columns + across).astype(int)
        nearest = region[np.ix_(rows.clip(0, region.shape[0] - 1), columns.clip(0, region.shape[1] - 1))]
        fits |= classes == (nearest[:, ::-1] if view.mirrored else nearest)
    assert fits.all(), "the pixel under each centre"


def test_boxes_go_where_their_things_go() -> None:
    for seed in range(200):
        random = np.random.default_rng(seed)
        left, top = random.integers(0, 30, 2).tolist()
        image = np.zeros((60, 70, 3), np.uint8)
        image[top : top + 20, left : left + 25] = 255
        view, pixels = View(Crop(64), random.random(41)), np.zeros((64, 64, 3), np.uint8)
        Image().decode(cv2.imencode(".png", image)[1].tobytes(), view, pixels)
        data = json.dumps({"boxes": [[left, top, 25, 20]], "labels": [1]}).encode()
        found = Boxes(2, layout="xywh").decode(data, view, None)
        seen = np.argwhere(pixels[:, :, 0] > 127)
        if len(found["boxes"]):
            (x1, y1, x2, y2), ((low, first), (high, last)) = found["boxes"][0], (seen.min(0), seen.max(0))
            assert np.abs(np.array([x1 - first, y1 - low, x2 - last - 1, y2 - high - 1])).max() < 2.5
        else:
            whole = 25 * 20 * 64 * 64 / (view.box[2] * view.box[3])
            assert len(seen) < 0.3 * whole, "less than a quarter of it is left"


def test_boxes_that_are_none_are_damage() -> None:
    view = View(Crop(8), None)
    with pytest.raises(DecodeError, match="no image"):
        Boxes(2).decode(b'{"boxes": [[1, 2, 3, 4]], "labels": [0]}', view, None)
    empty = Boxes(2).decode(b'{"boxes": [], "labels": []}', view, None)
    assert empty["boxes"].shape == (0, 4) and empty["labels"].shape == (0,)
    for content in (b"", b"[1]", b"{}", b'{"boxes": [[1, 2, 3]], "labels": [0]}',
                    b'{"boxes": [[1, 2, 3, 4]], "labels": [2]}',
                    b'{"boxes": [[1, 2, 3, 4]], "labels": []}', b'{"boxes": [[3, 2, 1, 4]], "labels": [0]}',
                    b'{"boxes": [[1, 2, 3, NaN]], "labels": [0]}', b"[" * 100_000):  # fmt: skip
        with pytest.raises(DecodeError):
            Boxes(2).decode(content, None, None)


@pytest.mark.parametrize("mode", ["L", "P", "1", "small palette", "transparent palette"])
def test_masks_keep_their_numbers(mode: str) -> None:
    numbers = np.random.default_rng(0).integers(0, 2 if mode == "1" else 4, (20, 30), np.uint8)
    made, file = Pillow.fromarray(numbers), io.BytesIO()
    if "palette" in mode or mode == "P":
        made.putpalette([200, 10, 10, 10, 200, 10, 1, 1, 1, 77, 0, 99])
    if mode == "1":
        made = Pillow.fromarray(numbers.astype(bool))
    options = {"small palette": {"bits": 2}, "transparent palette": {"transparency": 1}}.get(mode, {})
    made.save(file, "png", **options)
    assert np.array_equal(Mask(4).decode(file.getvalue(), None, None), numbers)
    numbers[3, 3] = 255
    data = cv2.imencode(".png", numbers)[1].tobytes()
    assert Mask(4).decode(data, None, None)[3, 3] == 255
    with pytest.raises(DecodeError, match="class"):
        Mask(1).decode(data, None, None)


def test_masks_that_are_none_are_damage() -> None:
    colour, deep = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint16)
    bomb = bytearray(cv2.imencode(".png", colour[:, :, 0])[1].tobytes())
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    for data in (b"", b"no image", cv2.imencode(".jpg", colour)[1].tobytes(), cv2.imencode(".png", colour)[1].tobytes(),
                 cv2.imencode(".png", deep)[1].tobytes(), cv2.imencode(".png", colour[:, :, 0])[1].tobytes()[:50],
                 bytes(bomb)):  # fmt: skip
        with pytest.raises(DecodeError):
            Mask(4).decode(data, None, None)
    view = View(Crop(2), None)
    Image().decode(
        cv2.imencode(".png", np.zeros((4, 5, 3), np.uint8))[1].tobytes(), view, np.zeros((2, 2, 3), np.uint8)
    )
    with pytest.raises(DecodeError, match="has 4 x 4 pixels, the image 5 x 4"):
        Mask(4).decode(cv2.imencode(".png", colour[:, :, 0])[1].tobytes(), view, np.zeros((2, 2), np.uint8))


@given(st.integers(0, 9), st.sampled_from(["<f4", ">f8", "|u1", "<i2", "|b1"]), st.booleans())
def test_arrays_are_what_numpy_stored(rows: int, dtype: str, columns_first: bool) -> None:
    array = np.asarray(np.random.default_rng(rows).integers(0, 2, (rows, 3)), dtype)
    file = io.BytesIO()
    np.save(file, np.asfortranarray(array) if columns_first else array)
    found = Array(shape=(rows, 3)).decode(file.getvalue(), None, None)
    assert found.dtype == np.float32 and np.array_equal(found, array.astype(np.float32))
    assert np.array_equal(Array(dtype=np.dtype(dtype)).decode(file.getvalue(), None, None), array)
    for damaged in (file.getvalue()[:-1] or b"", file.getvalue()[:30], b"", b"\x93NUMPY\x01\0" + bytes(200)):
        if damaged != file.getvalue() and (rows or len(damaged) < 60):
            with pytest.raises(DecodeError):
                Array().decode(damaged, None, None)


def test_arrays_hold_no_code_and_fit() -> None:
    file, other = io.BytesIO(), io.BytesIO()
    np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    np.save(other, np.zeros(3, np.float64))
    for field, data in ((Array(), file), (Array(dtype=np.dtype(np.int64)), other), (Array(shape=(4,)), other)):
        with pytest.raises(DecodeError):
            field.decode(data.getvalue(), None, None)


def test_text_and_json_that_are_none_are_damage() -> None:
    field: Any
    for field, data in ((Text(), b"\xff"), (Json(), b"{"), (Json(), b"[" * 100_000), (Json(), b"\xff\xfe")):
        with pytest.raises(DecodeError):
            field.decode(data, None, None)
    numbers: list[tuple[Any, bytes]] = [
        *(
            (ClassIndex(99), text.encode())
            for text in ("1_0", "\uff10", "1e1", "0x1", "nan", "1.0", "", "True", "9" * 5000)
        ),
        *((MultiHot(30), f'{{"labels": [{text}]}}'.encode()) for text in (10**30, '"1_0"', '"1"', 1.7, "true")),
        *((Numbers(1), f'{{"targets": [{text}]}}'.encode()) for text in ('"1_0"', '"1"', "NaN", "Infinity", "null")),
        (Boxes(2), b'{"boxes": [[1, 2, 3, "4_0"]], "labels": [0]}'),
        (Boxes(2), b'{"boxes": [[1, 2, 30, 40]], "labels": [0.9]}'),
    ]
    for field, data in numbers:
        with pytest.raises(DecodeError):
            field.decode(data, None, None)
    for read, text in ((to_number, "1_0"), (to_number, "\uff11"), (to_number, "0x10"), (size, "infG"), (size, "nanK")):
        with pytest.raises(ValueError):
            read(text)
    assert to_number(" 1e3 ") == 1000 and ClassIndex(99).decode(b" 10\n", None, None) == 10
    assert Numbers(2).decode(b'{"targets": [1, 1e3]}', None, None).tolist() == [1, 1000]
    assert Numbers(1, key=None).decode(b"3.5", None, None).tolist() == [3.5]


def test_a_damaged_member_masks_the_sample_and_is_written_down(tmp_path: Path) -> None:
    replaced: dict[tuple[int, str], bytes | None] = {}
    replaced |= {(3, "seg.png"): b"no mask", (9, "boxes.json"): b"{", (20, "txt"): b"\xff", (31, "depth"): b"\1\0\1\0"}
    replaced |= {(12, "seg.png"): None, (5, "seg.png"): cv2.imencode(".png", np.zeros((3, 3), np.uint8))[1].tobytes()}
    dataset, log = field_data.write(tmp_path / "d", replaced=replaced), tmp_path / "skipped.jsonl"
    batches = list(field_data.loader(dataset, ALL, log=log))
    assert {int(i) for batch in batches for i in batch.ids[~batch.valid]} == {number for number, _ in replaced}
    for batch in batches:
        for row in (~batch.valid).nonzero().flatten().tolist():
            for name in ("image", "mask", "depth"):
                assert any(torch.equal(batch[name][row], other) for other in batch[name][batch.valid]), "a neighbour's"
            assert batch["text"][row] == "" and len(batch["boxes"][row]["boxes"]) == 0
    lines = {line["id"]: line for line in map(json.loads, log.read_text().splitlines())}
    assert set(lines) == {number for number, _ in replaced}
    for (number, extension), data in replaced.items():
        error = lines[number]["error"]
        if data is not None:
            name = next(name for name, field in ALL.items() if extension in field.names)
            assert error.startswith(f"{name}: ")
            tar = (tmp_path / "d" / lines[number]["shard"]).read_bytes()
            assert tar[lines[number]["offset"] :].startswith(data)
        else:
            assert error == "the sample has no seg.png/mask.png"


def test_what_may_be_missing_has_a_value_that_losses_ignore(tmp_path: Path) -> None:
    lacking = {(number, name): None for number in (2, 8) for name in ("seg.png", "cls", "json", "txt", "npy")}
    dataset = field_data.write(tmp_path / "d", 16, replaced=lacking)
    fields = {
        "image": Image(), "mask": Mask(4, required=False), "target": ClassIndex(3, required=False),
        "number": Numbers(1, key="number", required=False), "text": Text(required=False),
        "series": Array(required=False),
    }  # fmt: skip
    (batch,) = field_data.loader(dataset, fields, train=False, micro=16)
    assert batch.valid.all()
    for row in (2, 8):
        assert (batch["mask"][row] == 255).all() and batch["target"][row] == -100 and batch["number"][row].isnan().all()
        assert batch["text"][row] == "" and len(batch["series"][row]) == 0
    assert batch["number"][3].item() == 3 and batch["target"][4] == 1


def test_several_images_are_cut_alike(tmp_path: Path) -> None:
    left = {(n, "left.png"): field_data.members(n)["png"] for n in range(16)}
    dataset = field_data.write(tmp_path / "d", 16, replaced=left)
    for batch in field_data.loader(dataset, {"image": Image(), "left": Image(("left.jpg", "left.png"))}):
        assert torch.equal(batch["image"], batch["left"]) and batch["left"].shape == (8, 3, 32, 32)


def test_a_field_that_the_tars_lack_is_one_sentence_with_what_there_is(tmp_path: Path) -> None:
    dataset = field_data.write(tmp_path / "d")
    with pytest.raises(InputError, match=r"has no sky.png; the tars hold \.boxes\.json, \.cls, .*\.seg\.png, \.txt"):
        list(field_data.loader(dataset, {"image": Image(), "mask": Mask(4, ("sky.png",))}))


def test_dataset_json_describes_fields(tmp_path: Path) -> None:
    """Under a format that earlier versions refuse; one without is as it was, fingerprint and all."""
    plain = field_data.write(tmp_path / "plain")
    described = field_data.write(tmp_path / "d", fields={"image": Image().describe(), "mask": Mask(4).describe()})
    formats = [json.loads((tmp_path / name / "dataset.json").read_text())["format"] for name in ("plain", "d")]
    assert formats == ["lightning-shards/1", "lightning-shards/2"]
    assert plain.fingerprint != described.fingerprint
    assert resolve_fields(described) == dict[str, Field](image=Image(), mask=Mask(4))
    assert resolve_fields(plain) == dict[str, Field](image=Image(), target=ClassIndex(3))
    assert resolve_fields(described, lambda dataset: {"text": Text()}) == {"text": Text()}
    for wrong in ({}, {"image": "png"}, {3: Image()}, [Image()]):
        with pytest.raises(InputError):
            resolve_fields(plain, wrong)  # type: ignore[arg-type]
    path = tmp_path / "d" / "dataset.json"
    wrong_fields: list[Any] = [[], {"image": 3}, None]
    for fields in wrong_fields:
        path.write_text(json.dumps({**json.loads(path.read_text()), "fields": fields}))
        with pytest.raises(InputError, match="damaged"):
            Dataset.open(tmp_path / "d")


def test_verify_checks_every_field(tmp_path: Path) -> None:
    fields = {name: field.describe() for name, field in ALL.items() if name != "depth"}
    small = cv2.imencode(".png", np.zeros((3, 3), np.uint8))[1].tobytes()
    replaced = {(3, "seg.png"): small, (9, "boxes.json"): b"{", (20, "txt"): None, (31, "npy"): b""}
    field_data.write(tmp_path / "d", replaced=replaced, fields=fields)
    damages = verify(tmp_path / "d", 2, lambda *_: None)["damages"]
    assert {int(damage["key"]) for damage in damages} == {number for number, _ in replaced}
    assert any(damage["error"].startswith("mask: has 3 x 3 pixels, the image") for damage in damages)
    whole = {name: field_data.members(1).get(field.names[0], b"") for name, field in ALL.items()}
    assert list(check_sample(ALL, whole | {"image": field_data.members(1)["png"]})) == []
