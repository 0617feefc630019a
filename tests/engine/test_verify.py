"""verify finds every damage there is, names it, and is silent about a whole dataset."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.tar_index import ShardIndex
from lightning_shards.packing.decoded import keep_decoded
from lightning_shards.packing.verify import verify
from team import __main__ as commands

from .conftest import encoded, write_dataset
from .servers import Web


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["x", "verify", *arguments])
    try:
        return commands.main()
    except SystemExit as end:
        return int(end.code or 0)


def test_a_whole_dataset_is_whole(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run(monkeypatch, str(dataset), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["samples"], report["shards"], report["damages"]) == (96 + 42, 6, [])


def test_each_damage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    root = write_dataset(tmp_path / "d", damaged={3: b"no image", 20: encoded(1)[:50]})
    found = verify(root, 2, lambda done, total: None)["damages"]
    assert [(d["shard"], d["key"]) for d in found] == [
        ("train/000000.tar", "00000003"),
        ("train/000001.tar", "00000020"),
    ]
    for damage in found:
        index = ShardIndex.build(root / damage["shard"])
        row = list(index.keys).index(damage["key"])
        assert damage["offset"] == index.pick(("png",))[0][row]

    tars = [root / shard.name for shard in Dataset.open(root).splits["train"]]
    flipped = bytearray(tars[2].read_bytes())
    flipped[ShardIndex.build(tars[2]).pick(("cls",))[0][4]] ^= 0x40  # a class that is no number
    tars[2].write_bytes(flipped)
    tars[3].write_bytes(tars[3].read_bytes()[: tars[3].stat().st_size // 2])
    (root / "val/000000.tar").unlink()
    found = verify(root, 2, lambda done, total: None)["damages"]
    said = {(d["shard"], d["key"]): d["error"] for d in found}
    assert "SHA-256" in said["train/000002.tar", None] and "class" in said["train/000002.tar", "00000051"]
    assert "cut short" in said["train/000003.tar", None] and "cannot be read" in said["val/000000.tar", None]
    assert run(monkeypatch, str(root)) == 1
    assert "is damaged" in capsys.readouterr().err


def test_arrays_are_compared_with_the_tars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    root = write_dataset(tmp_path / "d", damaged={3: b"no image", 20: encoded(1, side=90)})
    keep_decoded(Dataset.open(root))
    found = verify(root, 2, lambda done, total: None)["damages"]
    assert [(damage["shard"], damage["key"]) for damage in found] == [("train/000000.tar", "00000003")]
    arrays = sorted(root.glob("train/*.npy"))
    for path, change in zip(arrays, ("image", "target", "size"), strict=False):
        rows = np.load(path, mmap_mode="r+")
        rows[change][4:6] += 1
        rows.flush()
    arrays[3].write_bytes(arrays[3].read_bytes()[:-99])
    found = verify(root, 2, lambda done, total: None)["damages"]
    said = {damage["shard"]: damage["error"] for damage in found if damage["key"] is None}
    names = [str(path.relative_to(root)) for path in arrays]
    assert sorted(said) == names and all("delete it: it is made anew" in error for error in said.values())
    assert "2 of its records are not what the tar holds, the first is 00000021" in said[names[1]]
    assert "cut short" in said[names[3]]
    assert run(monkeypatch, str(root)) == 1 and "restore the shards" in capsys.readouterr().err
    rows = np.load(next(root.glob("val/*.npy")), mmap_mode="r+")
    rows["target"][0] += 1
    rows.flush()
    shutil.copytree(root, tmp_path / "e", ignore=shutil.ignore_patterns("train"))
    dataset = Dataset.open(root)
    replace(dataset, root=tmp_path / "e", splits={"val": dataset.splits["val"]}).save()
    assert run(monkeypatch, str(tmp_path / "e")) == 1
    assert "delete the arrays of decoded images named above" in capsys.readouterr().err


def test_bad_input(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, str(tmp_path / "nowhere")) == 2
    assert run(monkeypatch, str(dataset), "--workers", "0") == 2
    shutil.copytree(dataset, tmp_path / "copy")
    assert run(monkeypatch, str(tmp_path / "copy")) == 0


def test_remote_shards_are_checked_too(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", sizes=(9, 8), damaged={11: b"no image"})
    server = Web(root)
    try:
        found = verify(server.url, 2, lambda done, total: None)["damages"]
        assert [(d["shard"], d["key"]) for d in found] == [("train/000001.tar", "00000011")]
        (root / "train/000000.tar").unlink()
        assert {d["shard"] for d in verify(server.url, 2, lambda done, total: None)["damages"]} >= {"train/000000.tar"}
    finally:
        server.stop()
