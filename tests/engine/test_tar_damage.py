"""Whatever the headers of a tar or the arrays of a sidecar say: bounded time and memory, and one sentence or the tar's
own bytes."""

from __future__ import annotations

import io
import os
import resource
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning_shards.data.dataset import Dataset, Shard
from lightning_shards.data.sample_reader import SampleReader
from lightning_shards.data.shard_file import ShardFile
from lightning_shards.data.tar_index import ShardIndex
from lightning_shards.errors import InputError, RunError

from .conftest import encoded, write_dataset

FIELDS = (("png",), ("cls",))


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A header block with a right checksum, whatever it says."""
    block = bytearray(512)
    block[: len(name)], block[100:108], block[108:124] = name, b"0000644\0", b"0000000\0" * 2
    block[124:136], block[136:148], block[156:157], block[257:265] = size, b"00000000000\0", kind, b"ustar\00000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(size: int) -> bytes:
    return b"%011o\0" % size


def base_256(size: int) -> bytes:
    return b"\x80" + size.to_bytes(11, "big")


def record(key: bytes, value: bytes) -> bytes:
    text, size = b" %s=%s\n" % (key, value), 0
    while size != len(str(size)) + len(text):
        size = len(str(size)) + len(text)
    return str(size).encode() + text


def extended(body: bytes, kind: bytes = b"x") -> bytes:
    return header(b"x", octal(len(body)), kind) + body + bytes(-len(body) % 512)


GOOD = b"".join(
    header(name, octal(len(data))) + data + bytes(-len(data) % 512)
    for number in range(3)
    for name, data in ((b"%d.cls" % number, b"%d" % number), (b"%d.png" % number, encoded(number)))
)
END = bytes(1024)

DAMAGED = {
    "a negative size": header(b"9.png", b"-0000001000\0"),
    "a negative size of a folder": header(b"9/", b"-0000001000\0", b"5"),
    "a size with an underscore": header(b"9.png", b"00000_1000\0\0"),
    "a size in digits that are not octal": header(b"9.png", b"00000000800\0"),
    "a negative size in base 256": header(b"9.png", b"\xff" * 12),
    "a negative PAX size": extended(record(b"size", b"-1536")) + header(b"9.png", octal(0)),
    "a PAX size in words": extended(record(b"size", b"many")) + header(b"9.png", octal(0)),
    "a PAX size of 400 digits": extended(record(b"size", b"9" * 400)) + header(b"9.png", octal(0)),
    "a size beyond the file": header(b"9.png", base_256(1 << 40)),
    "a size of 2^80": header(b"9.png", base_256(1 << 80)),
    "an extended header of 2^50 bytes": header(b"x", base_256(1 << 50), b"x"),
    "a long name of 2^80 bytes": header(b"x", base_256(1 << 80), b"L"),
    "a name of 100,000 bytes": extended(b"a" * 100_000, b"L") + header(b"9.png", octal(0)),
    "200,000 records": extended(b"".join(record(b"k%d" % n, b"v") for n in range(200_000))) + header(b"9.p", octal(9)),
    "as many records as go in": extended(b"5 a=\n" * 200_000) + header(b"9.png", base_256(1 << 40)),
    "a record without end": extended(b"99 path=") + header(b"9.png", octal(0)),
    "a record of no length": extended(b"0 a=b\n" * 9) + header(b"9.png", octal(0)),
    "a global size": extended(record(b"size", b"5"), b"g") + header(b"9.png", octal(0)),
    "a field for each sample": b"".join(header(b"a%d.x%d" % (n, n), octal(0)) for n in range(2000)),
    "a link": header(b"9.png", octal(0), b"2"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_headers_that_make_no_sense_are_one_sentence_in_bounded_time_and_memory(what: str, tmp_path: Path) -> None:
    shard = tmp_path / "some.tar"
    shard.write_bytes(GOOD + DAMAGED[what] + END)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), limits[1]))
    try:
        with pytest.raises(InputError, match=r"some\.tar") as caught:
            ShardIndex.build(shard)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_folder_has_no_content_whatever_its_header_says(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(header(b"photos/", octal(5000), b"5") + GOOD + END)
    assert list(ShardIndex.build(tmp_path / "a.tar").keys) == ["0", "1", "2"]


@pytest.mark.parametrize(
    "hidden",
    ["._0.png", "photos/._0.png", ".DS_Store", "photos/.DS_Store", "__MACOSX/0.png", "a/Thumbs.db", "desktop.ini"],
)
def test_hidden_and_system_files_are_no_samples(hidden: str, tmp_path: Path) -> None:
    extra = header(hidden.encode(), octal(3)) + b"mac" + bytes(509)
    (tmp_path / "a.tar").write_bytes(extra + GOOD + END)
    index = ShardIndex.build(tmp_path / "a.tar")
    assert (list(index.keys), index.fields) == (["0", "1", "2"], ["cls", "png"])


@settings(max_examples=200, deadline=None)
@given(
    blocks=st.lists(
        st.one_of(
            st.builds(
                header,
                st.sampled_from([b"9.png", b"9/", b"a/b.c.png", b".x.png", b"no dot", b"\xff.cls", b"0.png"]),
                st.one_of(
                    st.integers(0, 5000).map(octal),
                    st.binary(min_size=12, max_size=12),
                    st.integers(0, 1 << 80).map(base_256),
                ),
                st.sampled_from([b"0", b"\0", b"5", b"x", b"g", b"L", b"K", b"1", b"S", b"7", b"V"]),
            ),
            st.builds(extended, st.binary(max_size=600), st.sampled_from([b"x", b"g", b"L"])),
            st.binary(min_size=512, max_size=512),
        ),
        max_size=5,
    ),
    place=st.integers(0, len(GOOD) // 512),
)
def test_any_headers_anywhere_are_read_or_refused(blocks: list[bytes], place: int, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.tar"
    path.write_bytes(GOOD[: place * 512] + b"".join(blocks) + GOOD[place * 512 :] + END)
    try:
        index = ShardIndex.build(path)
    except InputError as error:
        assert "fuzz.tar" in str(error) and "\n" not in str(error)
    else:
        there = index.data >= 0
        assert (index.data[there] + index.size[there] <= path.stat().st_size).all() and index._fits()


def test_images_of_2_to_the_40_bytes_in_a_sidecar_take_no_memory(tmp_path: Path) -> None:
    """A bomb: an array of zeros that is compressed a thousandfold, and one that says that it is large."""
    index = ShardIndex.build(write_tar(tmp_path))
    index.save(tmp_path / "good")
    for name in ("data", "keys"):
        with zipfile.ZipFile(tmp_path / "good") as good, zipfile.ZipFile(tmp_path / "bad", "w") as bad:
            for member in set(good.namelist()) - {f"{name}.npy"}:
                bad.writestr(member, good.read(member))
            content = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                content, {"descr": "<i8", "fortran_order": False, "shape": (1 << 40, 2)}
            )
            bad.writestr(f"{name}.npy", content.getvalue() + bytes(1 << 26), zipfile.ZIP_DEFLATED)
        assert ShardIndex.load(tmp_path / "bad") is None
    assert ShardIndex.load(tmp_path / "good") is not None


def write_tar(folder: Path) -> Path:
    (folder / "a.tar").write_bytes(GOOD + END)
    return folder / "a.tar"


def arrays_of(sidecar: Path) -> dict[str, Any]:
    with np.load(sidecar) as arrays:
        return {name: arrays[name].copy() for name in arrays}


def swap(name: str, *places: Any) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        array = arrays[name]
        array[places[0]], array[places[1]] = array[places[1]].copy(), array[places[0]].copy()

    return change


def swapped_rows(arrays: dict[str, Any]) -> None:
    for name in ("data", "size", "check"):
        swap(name, 1, 3)(arrays)


def swapped_fields(arrays: dict[str, Any]) -> None:
    for name in ("data", "size", "check"):
        arrays[name][2] = arrays[name][2, ::-1].copy()


def changed(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays.update({name: value(arrays[name]) if callable(value) else value})


def put(name: str, place: Any, value: int) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays[name].__setitem__(place, value)


MADE_UP: dict[str, Callable[[dict[str, Any]], None]] = {
    "rows swapped": swapped_rows,
    "fields of a row swapped": swapped_fields,
    "names of fields swapped": changed("fields", lambda a: a[::-1].copy()),
    "places swapped": swap("data", 1, 3),
    "a size too small": put("size", (2, 1), 7),
    "a size of a class cut": put("size", (2, 0), 0),
    "a negative size": put("size", (2, 0), -5),
    "a size beyond the tar": put("size", (2, 0), 1 << 62),
    "a place beyond the tar": put("data", (2, 0), 1 << 62),
    "a place before the tar": put("data", (2, 0), 0),
    "keys changed": put("keys", 3, 66),
    "ends of keys that fall": put("key_ends", 2, 90_000),
    "more keys than samples": changed("key_ends", lambda a: np.append(a, a[-1])),
    "fewer keys than samples": changed("key_ends", lambda a: a[:-1].copy()),
    "floats": changed("data", lambda a: a.astype(float)),
    "one dimension": changed("data", lambda a: a[:, 0].copy()),
    "three fields, two columns": changed("fields", np.array(["a", "b", "c"])),
    "the same field twice": changed("fields", np.array(["png", "png"])),
    "numbers for names": changed("fields", np.array([1, 2])),
    "objects": changed("fields", np.array([{}, []], object)),
    "no stamp": changed("shard", np.array([1])),
    "a stamp in words": changed("shard", np.array(["a", "b"])),
    "another version": changed("version", 9),
    "versions": changed("version", np.array([1, 1])),
    "no keys": lambda arrays: arrays.pop("keys"),
}  # fmt: skip


@pytest.mark.parametrize("what", MADE_UP)
def test_a_made_up_sidecar_never_gives_other_bytes_than_the_tar(what: str, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", sizes=(5,))
    sidecar = root / "train/000000.tar.index"
    arrays = arrays_of(sidecar)
    MADE_UP[what](arrays)
    np.savez(sidecar.with_suffix(".npz"), **arrays)
    sidecar.with_suffix(".npz").replace(sidecar)
    store = SampleReader(Dataset.open(root), "train", FIELDS)
    for row in range(5):
        try:
            (shard, at) = store.locate([row])[0]
            found = shard.read(at)
        except (RunError, InputError) as error:
            assert "train/000000.tar" in str(error)
        else:
            assert found == [encoded(row), str(row % 3).encode()], what


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 4000), change=st.binary(min_size=1, max_size=40))
@example(at=0, change=b"\x93NUMPY\x01\x00")
@example(at=0, change=b"\x80\x04.")
def test_a_sidecar_with_any_damage_is_whole_or_none(at: int, change: bytes, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    if not (folder / "whole").exists():
        ShardIndex.build(write_tar(folder)).save(folder / "whole")
    whole = (folder / "whole").read_bytes()
    at %= len(whole)
    (folder / "hurt").write_bytes((whole[:at] + change + whole[at + len(change) :])[: len(whole)])
    found, right = ShardIndex.load(folder / "hurt"), ShardIndex.load(folder / "whole")
    assert right is not None
    if found is not None:
        assert list(found.keys) == list(right.keys) and found.fields == right.fields
        assert all(np.array_equal(getattr(found, name), getattr(right, name)) for name in ("data", "size", "check"))


def test_names_that_tars_keep_elsewhere_are_still_read(tmp_path: Path) -> None:
    """Long ones, and those of other scripts, stand in the header before: the member's own has a shorter form."""
    root = write_dataset(tmp_path / "d", sizes=(2,))
    tar = root / "train/000000.tar"
    names = ["a" * 150, "b/" * 70 + "c", "bücher", "d"]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tar, "w", format=form) as file:
            for number, name in enumerate(names):
                for field, data in (("PNG", encoded(number)), ("cls", str(number).encode())):
                    info = tarfile.TarInfo(f"{name}.{field}")
                    info.size, info.mtime = len(data), 1.5  # type: ignore[assignment]
                    file.addfile(info, io.BytesIO(data))
        shard = ShardFile(Shard("x.tar", 4, tar.stat().st_size, ""), tar, FIELDS)
        assert [shard.read(row) for row in range(4)] == [[encoded(n), str(n).encode()] for n in range(4)]
        os.utime(tar, (1, 1))
