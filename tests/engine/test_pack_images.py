"""`pack` and the images themselves: sizes, orientation, colours, damage, duplicates."""

from __future__ import annotations

import json
import os
import resource
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from lightning_shards.data.decode import DecodeError, decode_image
from lightning_shards.errors import InputError, RunError
from lightning_shards.packing.encode import encode
from lightning_shards.packing.pack import pack
from lightning_shards.packing.table_rows import TableColumns
from numpy.typing import NDArray

from .samples import KEEP, class_files, command, decoded, image, jpeg, write_tree


def test_larger_images_shrink_and_smaller_ones_keep_their_bytes() -> None:
    large, small = jpeg(1, 300, 600), jpeg(2, 100, 90)
    kind, stored = encode(large, 128, 95)[:2]
    pixels = decoded(stored)
    assert (kind, pixels.shape) == ("jpg", (128, 256, 3))
    expected = cv2.resize(image(1, 300, 600), (256, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(pixels.astype(int) - expected).mean() < 3
    assert encode(small, 128, 95)[:2] == ("jpg", small)
    assert encode(large, None, 95)[:2] == ("jpg", large)


def test_very_large_jpegs_come_out_like_others() -> None:
    data = jpeg(3, 1600, 2400)
    pixels = decoded(encode(data, 100, 95)[1])
    assert pixels.shape == (100, 150, 3)
    expected = cv2.resize(image(3, 1600, 2400), (150, 100), interpolation=cv2.INTER_AREA)
    assert np.abs(pixels.astype(int) - expected).mean() < 3


def test_gray_stays_gray() -> None:
    gray = cv2.imencode(".png", image(4, 200, 300)[..., 0])[1].tobytes()
    kind, stored = encode(gray, 100, 95)[:2]
    assert kind == "jpg"
    assert decoded(stored, cv2.IMREAD_UNCHANGED).shape == (100, 150)


@pytest.mark.parametrize("turn", range(2, 9))
def test_the_orientation_tag_is_applied(turn: int) -> None:
    data = jpeg(5, 60, 90)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([turn]) + b"\0\0\0\0\0\0"
    tagged = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    upright = decoded(tagged)
    kind, stored = encode(tagged, 256, 95)[:2]
    pixels = decoded(stored, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert kind == "jpg"
    assert pixels.shape == ((60, 90, 3) if turn < 5 else (90, 60, 3))
    smaller = encode(tagged, 20, 95)  # of which a mask has the upright size
    assert smaller.given == pixels.shape[:2] and smaller.stored == ((20, 30) if turn < 5 else (30, 20))
    assert np.abs(pixels.astype(int) - upright).mean() < 3
    assert encode(tagged, None, 95)[1] == tagged


@pytest.mark.parametrize("pixels", [image(6).astype(np.uint16) * 257, np.dstack([image(6), image(7)[..., :1]])])
def test_unusual_png_becomes_plain_without_loss(pixels: NDArray[Any]) -> None:
    kind, stored = encode(cv2.imencode(".png", pixels)[1].tobytes(), 256, 95)[:2]
    assert kind == "png"
    found = decoded(stored, cv2.IMREAD_UNCHANGED)
    assert found.dtype == np.uint8
    assert found.tolist() == image(6).tolist()


def png_of_size(width: int, height: int) -> bytes:
    data = bytearray(cv2.imencode(".png", image(0))[1].tobytes())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "is empty"),
        (b"GIF89a" + bytes(100), "no JPEG, PNG or WebP"),
        (b"<html>not found</html>", "no JPEG, PNG or WebP"),
        (jpeg(1, 200, 200)[:-400], "damaged or cut short"),
        (cv2.imencode(".png", image(1))[1].tobytes()[:-60], "damaged or cut short"),
        (cv2.imencode(".webp", image(1, 99, 99))[1].tobytes()[:-60], "damaged or cut short"),
        (png_of_size(80_000, 80_000), "80000 x 80000 pixels"),
    ],
)
def test_damage_is_found(data: bytes, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        encode(data, None, 95)


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


@pytest.mark.parametrize(
    "text",
    [
        chunk(b"iTXt", b"workflow\0\0\0\0\0" + b"x" * 20_000_000),
        chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(100_000_000))),
        chunk(b"tEXt", b"key\0value") * 3_000,
        chunk(b"caBX", bytes(9_000_000)),
    ],
    ids=["long", "bomb", "many", "of another program"],
)
def test_text_in_a_png_does_not_matter(text: bytes) -> None:
    whole = cv2.imencode(".png", image(1))[1].tobytes()
    data = whole[:33] + text + whole[33:]
    kind, stored = encode(data, 256, 95)[:2]
    assert kind == "png" and decoded(stored).tolist() == image(1).tolist() and len(stored) < 2_000_000
    assert encode(data, None, 95)[:2] == ("png", data), "a copy is a copy"
    assert decode_image(data)[:, :, ::-1].tolist() == image(1).tolist()


def test_a_film_behind_a_photo_does_not_matter_but_a_cut_does() -> None:
    """pack, verify, training and predict agree: they ask the same function for the end."""
    preview = b"\xff\xe1" + (202).to_bytes(2, "big") + bytes(198) + b"\xff\xd9"  # with an end mark of its own
    photo = jpeg(1, 200, 200)
    photo = photo[:2] + preview + photo[2:]
    film = np.random.default_rng(0).integers(0, 255, 9_000, np.uint8).tobytes()  # no byte 255, no mark
    assert encode(photo + film, None, 95)[:2] == ("jpg", photo + film)
    assert decode_image(photo + film).tolist() == decode_image(photo).tolist()
    for cut in (photo[:-400], photo[:-2], photo[: len(photo) // 2] + film):
        with pytest.raises(ValueError, match="cut short"):
            encode(cut, None, 95)
        with pytest.raises(DecodeError, match="cut short"):
            decode_image(cut)


def test_damaged_files_are_listed_and_counted(tmp_path: Path) -> None:
    files = {**class_files(20), "cat/broken.jpg": jpeg(1)[:300], "dog/notes": b"hello", "dog/notes.txt": b"hello"}
    root = write_tree(tmp_path / "tree", files)
    (root / "bird" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"of 63 images are damaged.*--max-damaged-fraction"):
        pack(root, tmp_path / "d", KEEP, 1)
    assert not (tmp_path / "d").exists()
    report = pack(root, tmp_path / "d", KEEP, 1, max_damaged_fraction=0.1)
    lines = [json.loads(line) for line in (tmp_path / "d" / "damaged.jsonl").read_text().splitlines()]
    assert {line["path"] for line in lines} == {"cat/broken.jpg", "dog/notes", "bird/gone.jpg"}
    assert report["damaged"] == 3
    assert (report["ignored"], report["ignored_example"]) == (1, "dog/notes.txt"), "no image by its name"
    assert sum(facts["images"] for facts in report["splits"].values()) == 60


def test_what_was_mended_is_packed_by_the_same_command(tmp_path: Path) -> None:
    """Of a table too, whose rows do not show that a file has changed."""
    files = class_files(30)
    root = write_tree(tmp_path / "tree", files)
    names = sorted(files)
    table = tmp_path / "tree" / "t.csv"
    table.write_text("path,label\n" + "".join(f"{name},{name.split('/')[0]}\n" for name in names))
    recipe = replace(KEEP, columns=TableColumns(targets=("label",)), shard_bytes=60_000)
    (root / names[3]).write_bytes(b"no image")
    (root / names[7]).unlink()
    with pytest.raises(RunError, match=r"of 90 images are damaged"):
        pack(table, tmp_path / "d", recipe, 1, max_damaged_fraction=0.001)
    for number in (3, 7):
        (root / names[number]).write_bytes(files[names[number]])
    report = pack(table, tmp_path / "d", recipe, 1, max_damaged_fraction=0.001)
    assert report["damaged"] == 0 and sum(one["images"] for one in report["splits"].values()) == 90


def test_a_file_without_end_is_damage_and_takes_no_memory(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", class_files(20))
    (root / "bird" / "zeros.jpg").symlink_to("/dev/zero")
    arguments = [root, tmp_path / "d", "--copy", "--workers", 1, "--max-damaged-fraction", "0.1"]
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, limits[1]))  # inherited
    try:
        done = command(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert done.returncode == 0, done.stderr
    assert "bird/zeros.jpg" in (tmp_path / "d" / "damaged.jsonl").read_text()


def test_bytes_that_are_kept_have_no_other_size(tmp_path: Path) -> None:
    for option, value in (("--short-side", 16), ("--short-side", 256), ("--quality", 95)):
        done = command(write_tree(tmp_path / "tree", class_files(4)), tmp_path / "d", "--copy", option, value)
        assert done.returncode == 2 and f"--copy keeps every byte, so {option} decides nothing" in done.stderr
    assert not (tmp_path / "d").exists() and "Traceback" not in done.stderr


def test_a_class_that_is_all_damaged_is_an_error(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", {**class_files(20), "fox/1.jpg": b"x"})
    with pytest.raises(RunError, match="class 'fox'"):
        pack(root, tmp_path / "d", KEEP, 1, max_damaged_fraction=0.5)


def test_names_that_are_no_utf8_do_no_harm(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", class_files(4))
    for folder in ("cat", "dog"):
        (root / folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg(99))
    assert pack(root, tmp_path / "d", KEEP, 1)["damaged"] == 0
    (root / os.fsdecode(b"caf\xe9")).mkdir()
    (root / os.fsdecode(b"caf\xe9") / "1.jpg").write_bytes(jpeg(1))
    with pytest.raises(InputError, match="rename it"):
        pack(root, tmp_path / "e", KEEP, 1)


def test_duplicates_are_reported(tmp_path: Path) -> None:
    files = {
        "train/a/1.jpg": jpeg(1),
        "train/a/2.jpg": jpeg(2),
        "train/b/3.jpg": jpeg(3),
        "train/b/4.jpg": jpeg(3),
    }
    files |= {"val/a/1.jpg": jpeg(1), "val/b/5.jpg": jpeg(5), "test/b/1.jpg": jpeg(1)}
    found = pack(write_tree(tmp_path / "tree", files), tmp_path / "d", KEEP, 1)["duplicates"]
    assert (found["across_splits"], found["within_a_split"]) == (1, 1)
    assert ["train/a/1.jpg", "val/a/1.jpg"] in found["examples"]
