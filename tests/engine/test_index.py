"""The index finds what is in a tar, and nothing else: checked against Python's tarfile, GNU tar and webdataset."""

from __future__ import annotations

import errno
import gc
import io
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.sample_reader import SampleReader
from lightning_shards.data.tar_index import ShardIndex, walk
from lightning_shards.errors import InputError, RunError

from .conftest import write_dataset

NAMES = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="/"), min_size=1, max_size=130)


def tar_of(members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@settings(max_examples=150, deadline=None)
@given(
    members=st.dictionaries(NAMES, st.binary(max_size=1500), max_size=6),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    folder=st.sampled_from(["", "a/", "deep/" * 40]),
)
def test_walk_agrees_with_tarfile(members: dict[str, bytes], form: int, folder: str) -> None:
    data = tar_of({folder + name: content for name, content in members.items()}, form)
    found = {m.name: data[m.data : m.data + m.size] for m in walk(io.BytesIO(data))}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    assert found == expected


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10_239), seed=st.integers(0, 99))
def test_a_tar_cut_anywhere_is_an_error(cut: int, seed: int) -> None:
    data = tar_of({f"{i}.png": np.random.default_rng(seed).bytes(700) for i in range(4)})
    end = max(m.data + m.size for m in walk(io.BytesIO(data)))
    cut = min(cut, -(-end // 512) * 512 + 512)  # up to the first of the two end-of-archive blocks
    with pytest.raises(ValueError, match=r"cut short|no tar"):
        list(walk(io.BytesIO(data[:cut])))


def test_every_writer_is_read(tmp_path: Path) -> None:
    """webdataset's TarWriter and ShardWriter with their defaults, and GNU tar."""
    samples = [{"__key__": f"{i:05d}", "jpg": bytes([i]) * (i + 1), "cls": str(i).encode()} for i in range(20)]
    with webdataset.TarWriter(str(tmp_path / "writer.tar")) as writer:
        for sample in samples:
            writer.write(sample)
    with webdataset.ShardWriter(str(tmp_path / "shards-%03d.tar"), maxcount=100, verbose=0) as shards:
        for sample in samples:
            shards.write(sample)
    for sample in samples:
        for field in ("jpg", "cls"):
            (tmp_path / f"{sample['__key__']}.{field}").write_bytes(sample[field])  # type: ignore[arg-type]
    subprocess.run("tar --sort=name -cf gnu.tar 000*.jpg 000*.cls", shell=True, check=True, cwd=tmp_path)
    with pytest.raises(InputError, match="in two places"):
        ShardIndex.build(tmp_path / "gnu.tar")
    subprocess.run("tar --sort=name -cf gnu.tar --exclude='*.tar' ./000*", shell=True, check=True, cwd=tmp_path)
    for name in ("writer.tar", "shards-000.tar", "gnu.tar"):
        index = ShardIndex.build(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        offsets, sizes, _ = index.pick(("jpg",))
        assert [data[o : o + s] for o, s in zip(offsets, sizes, strict=True)] == [s["jpg"] for s in samples], name


def test_base_256_sizes_and_long_names_are_read() -> None:
    data = bytearray(tar_of({"a.png": b"x" * 600}))
    data[124:136] = b"\x80" + (600).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    assert [(m.name, m.size) for m in walk(io.BytesIO(bytes(data)))] == [("a.png", 600)]


def special(kind: bytes) -> bytes:
    info = tarfile.TarInfo("a.png")
    info.type, info.linkname = kind, "b.png"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (special(tarfile.SYMTYPE), "symbolic link"),
        (special(tarfile.LNKTYPE), "hard link"),
        (special(tarfile.FIFOTYPE), "pipe"),
        (special(b"S"), "sparse"),
        (b"\x1f\x8b" + bytes(600), "gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "zstd"),
        (b"BZh9" + bytes(600), "bzip2"),
        (tar_of({"a.png": b"1"}) + tar_of({"b.png": b"2"}), "goes on after"),
        (tar_of({"a.png": b"1", "a.cls": b"2", "b.png": b"3", "a.json": b"4"}), "two places"),
        (tar_of({"a.1.png": b"1", "a.2.png": b"2"}), None),
        (tar_of({"x/a.png": b"1", "x/a.PNG": b"2"}), "two members"),
        (b"", "cut short"),
        (b"no tar at all" * 100, "no tar"),
    ],
)
def test_what_is_no_plain_tar_is_refused_by_name(tmp_path: Path, data: bytes, sentence: str | None) -> None:
    shard = tmp_path / "shard.tar"
    shard.write_bytes(data)
    if sentence is None:  # the key ends at the first dot: one sample with two fields, as webdataset reads it
        assert ShardIndex.build(shard).fields == ["1.png", "2.png"]
        return
    with pytest.raises(InputError, match=sentence) as error:
        ShardIndex.build(shard)
    assert "shard.tar" in str(error.value)


def test_the_sidecar_is_what_was_indexed(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar"
    shard.write_bytes(tar_of({"ä/1.png": b"1", "ä/1.cls": b"0", "2.png": b"22"}))
    index = ShardIndex.build(shard)
    index.save(tmp_path / "s.index")
    loaded = ShardIndex.load(tmp_path / "s.index")
    assert loaded is not None
    assert (list(loaded.keys), loaded.fields) == (["ä/1", "2"], ["cls", "png"])
    for name in ("data", "size", "check"):
        assert np.array_equal(getattr(loaded, name), getattr(index, name))
    whole = (tmp_path / "s.index").read_bytes()
    for damage in (b"", whole[:-200], whole[:100] + bytes(300) + whole[400:], b"nonsense"):
        (tmp_path / "s.index").write_bytes(damage)
        assert ShardIndex.load(tmp_path / "s.index") is None


def open_store(root: Path) -> SampleReader:
    return SampleReader(Dataset.open(root), "train", (("png",), ("cls",)))


def test_a_stale_or_missing_sidecar_is_made_anew(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", sizes=(5,))
    tar, sidecar = root / "train/000000.tar", root / "train/000000.tar.index"
    before = open_store(root).locate([3])[0][0].read(3)
    for prepare in (lambda: sidecar.unlink(), lambda: os.utime(tar, (1, 1)), lambda: sidecar.write_bytes(b"x")):
        prepare()
        assert open_store(root).locate([3])[0][0].read(3) == before
        loaded = ShardIndex.load(sidecar)
        assert loaded is not None and loaded.stamp[1] == tar.stat().st_mtime_ns


def test_the_sidecar_of_a_read_only_dataset_goes_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "d", sizes=(5,))
    sidecar = root / "train/000000.tar.index"
    sidecar.unlink()
    save, built = ShardIndex.save, []

    def refuse(index: ShardIndex, path: Path) -> None:
        if path == sidecar:
            raise OSError(errno.EROFS, "Read-only file system")
        save(index, path)

    build = ShardIndex.build.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(ShardIndex, "save", refuse)

    def count(cls: type[ShardIndex], tar: Path) -> ShardIndex:
        built.append(tar)
        return build(cls, tar)  # type: ignore[no-any-return]

    monkeypatch.setattr(ShardIndex, "build", classmethod(count))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        open_store(root).locate([3])[0][0].read(3)
    assert len(built) == 1 and not sidecar.exists()
    assert len(list((tmp_path / "cache/lightning-shards/index").glob("*.index"))) == 1


def test_a_shard_that_changed_is_never_read_as_if_it_had_not(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", sizes=(5,))
    tar = root / "train/000000.tar"
    shard, row = open_store(root).locate([2])[0]
    data = bytearray(tar.read_bytes())
    offset = shard.offset(row)
    data[offset - 512 : offset - 500] = b"other-name.p"
    with tar.open("r+b") as file:
        file.write(data)
    with pytest.raises(RunError, match="no longer"):
        shard.read(row)
    with tar.open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(InputError, match="restore it"):
        open_store(root).locate([2])[0]
    tar.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        open_store(root).locate([2])[0]


def test_a_dataset_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", sizes=(5,))
    text = (root / "dataset.json").read_text()
    for change in (
        ("train/000000.tar", "../000000.tar"),
        ('"samples": 5', '"samples": 6'),
        ("lightning-shards/1", "x/9"),
    ):
        (root / "dataset.json").write_text(text.replace(*change))
        with pytest.raises(InputError):
            Dataset.open(root)
    (root / "dataset.json").write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="damaged"):
        Dataset.open(root)
    with pytest.raises(InputError, match="no packed dataset"):
        Dataset.open(tmp_path / "nowhere")


def test_sidecars_are_read_by_many_threads_at_once(tmp_path: Path) -> None:
    """CPython 3.11 fails in NumPy's parser where threads take turns in it, as a garbage collection may make them."""
    (tmp_path / "a.tar").write_bytes(tar_of({f"{n}.cls": b"0" for n in range(3)}))
    index, sidecar = ShardIndex.build(tmp_path / "a.tar"), tmp_path / "a.tar.index"
    index.save(sidecar)

    def load(depth: int) -> ShardIndex | None:
        return load(depth - 1) if depth else ShardIndex.load(sidecar)

    def switch(*_: object) -> None:
        time.sleep(0)

    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-5)
    gc.set_threshold(50)
    gc.callbacks.append(switch)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(load, [0, 1, 2, 3] * 100))
    finally:
        gc.callbacks.remove(switch)
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)
    assert all(read is not None and list(read.keys) == list(index.keys) for read in found)
