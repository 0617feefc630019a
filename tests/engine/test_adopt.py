"""index makes a dataset of shards that others packed: nothing is copied, and an interrupted pass goes on."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import fsspec
import pytest
import webdataset
from lightning_shards.data.cache import Cache
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.remote import open_dataset
from lightning_shards.data.sample_reader import SampleReader
from lightning_shards.errors import InputError
from lightning_shards.machine import stop_signals
from lightning_shards.packing import adopt, journal, survey
from lightning_shards.packing.verify import verify
from team import __main__ as commands

from .conftest import encoded, target
from .servers import Web
from .test_loading import by_id, make_loader


def write_foreign(root: Path, count: int = 40, task: str = "single_label") -> None:
    """Shards as webdataset's ShardWriter makes them, with fields beside image and target."""
    root.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(root / "part-%04d.tar"), maxcount=9, verbose=0) as writer:
        for number in range(count):
            more = {"txt": f"caption {number}", "png": encoded(number), **target(number, task)}
            writer.write({"__key__": f"n{number % 3}/img_{number:05d}", **more})


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["x", "adopt", *arguments])
    try:
        return commands.main()
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_shards_of_others_become_a_dataset(
    tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "theirs"
    write_foreign(root, task=task)
    before = {path: path.read_bytes() for path in root.iterdir()}
    decoded = ["--decoded"] if task == "single_label" else []
    assert run(monkeypatch, str(root), "--json", "--val", "*-0004.tar", *decoded) == 0
    report = json.loads(capsys.readouterr().out)
    if decoded:
        assert [report["decoded"][split]["images"] for split in ("train", "val")] == [36, 4]
    assert report["splits"] == {"train": {"samples": 36, "shards": 4}, "val": {"samples": 4, "shards": 1}}
    assert (report["task"], report["lacking"]) == (task, 0)
    assert all(path.read_bytes() == data for path, data in before.items()), "the tars are as they were"
    assert verify(root, 2, lambda done, total: None)["damages"] == []
    rows = by_id(list(make_loader(root, train=False)))
    assert sorted(rows) == list(range(36))
    if task == "single_label":
        assert [rows[i][1] for i in range(36)] == [i % 3 for i in range(36)]
    assert run(monkeypatch, str(root)) == 2, "a dataset is not indexed again"


def test_an_interrupted_pass_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "theirs"
    write_foreign(root)
    read: list[str] = []
    look = survey.survey

    def breaks(tar: Path, *more: Any) -> survey.Found:
        read.append(tar.name)
        if tar.name == "part-0003.tar" and len(read) < 5:
            raise KeyboardInterrupt
        return look(tar, *more)

    monkeypatch.setattr(journal, "survey", breaks)
    with pytest.raises(KeyboardInterrupt):
        adopt.adopt(str(root), None, {}, None, 1)
    assert not (root / "dataset.json").exists()
    (root / "part-0000.tar").touch()  # changed since: read again
    first = len(read)
    adopt.adopt(str(root), None, {}, None, 1)
    again = read[first:]  # the last one may have been read before the interrupt was seen
    assert again[:2] == ["part-0000.tar", "part-0003.tar"] and again[2:] in ([], ["part-0004.tar"])
    assert Dataset.open(root).samples("train") == 40
    assert not (root / journal.JOURNAL).exists()


def test_patterns_folders_and_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for split in ("train", "validation"):
        write_foreign(tmp_path / "d" / split, 18)
    (tmp_path / "names").write_text("red\ngreen\nblue\n")
    assert run(monkeypatch, str(tmp_path / "d"), "--names", str(tmp_path / "names")) == 0
    dataset = Dataset.open(tmp_path / "d")
    assert list(dataset.splits) == ["train", "val"] and list(dataset.targets) == ["red", "green", "blue"]
    pattern = str(tmp_path / "d" / "train" / "part-{0000..0001}.tar")
    for text, sentence in (
        ("red\n\nblue\n", "empty line 2"),
        ("red\nred\nblue\n", "look alike"),
        ("red\x1b", "printed"),
    ):
        (tmp_path / "names").write_text(text)
        assert run(monkeypatch, pattern, "--names", str(tmp_path / "names")) == 2
        assert sentence in capsys.readouterr().err
    (tmp_path / "names").write_bytes(b"\xef\xbb\xbfred \r\ngreen\r\nblue\r\n\r\n")  # as Windows writes it
    assert run(monkeypatch, pattern, "--names", str(tmp_path / "names")) == 0
    assert list(Dataset.open(tmp_path / "d" / "train").targets) == ["red", "green", "blue"]
    assert Dataset.open(tmp_path / "d" / "train").samples("train") == 18


def test_samples_without_a_target_are_reported(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with webdataset.TarWriter(str(tmp_path / "d" / "a.tar")) as writer:
        writer.write({"__key__": "whole", "png": encoded(0), "cls": b"1"})
        writer.write({"__key__": "blind", "cls": b"1"})
        writer.write({"__key__": "aimless", "png": encoded(0)})
        writer.write({"__key__": "odd", "png": encoded(0), "cls": b"cat"})
    report = adopt.adopt(str(tmp_path / "d"), None, {}, None, 1)
    assert report["lacking"] == 3 and report["lacking_examples"] == ["a.tar blind", "a.tar aimless", "a.tar odd"]


@pytest.mark.parametrize("field", ["pkl", "pyd", "pth", "depth.pkl"])
def test_shards_with_code_are_refused(tmp_path: Path, field: str) -> None:
    write_foreign(tmp_path / "d", 3)
    (tmp_path / f"x.{field}").write_bytes(b"c\n.")
    subprocess.run(["tar", "-C", tmp_path, "-rf", tmp_path / "d" / "part-0000.tar", f"x.{field}"], check=True)
    with pytest.raises(InputError, match="hold code"):
        adopt.adopt(str(tmp_path / "d"), None, {}, None, 1)
    assert not (tmp_path / "d" / "dataset.json").exists()


def test_bad_input_is_status_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_foreign(tmp_path / "d", 12)
    (tmp_path / "empty").mkdir()
    write_foreign(tmp_path / "named", 12)
    (tmp_path / "named" / "val").mkdir()
    (tmp_path / "named" / "part-0001.tar").rename(tmp_path / "named" / "val" / "part-0001.tar")
    few = tmp_path / "few"
    few.write_text("one\n")
    for arguments in (
        [str(tmp_path / "empty")], [str(tmp_path / "nowhere")], [str(tmp_path / "d" / "part-{0000..0009}.tar")],
        [str(tmp_path / "d"), "--names", str(few)], [str(tmp_path / "d"), "--names", str(tmp_path / "no")],
        [str(tmp_path / "d" / "part-{0000..0009.tar")], [str(tmp_path / "d"), "--val", "*-vall-*"],
        [str(tmp_path / "named"), "--val", "*-vall-*"],
        [str(tmp_path / "d"), "--val", "*"], [str(tmp_path / "d"), "--workers", "0"],
    ):  # fmt: skip
        assert run(monkeypatch, *arguments) == 2, arguments
        assert not list(tmp_path.rglob("dataset.json"))
    tar = tmp_path / "d" / "part-0001.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    assert run(monkeypatch, str(tmp_path / "d")) == 2


def test_a_stop_says_that_what_was_read_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    write_foreign(tmp_path / "d", 45)
    look, calls = journal.survey, list[str]()

    def survey(*arguments: Any) -> Any:
        calls.append(arguments[1])
        if len(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return look(*arguments)

    before = [signal.getsignal(number) for number in stop_signals()]
    monkeypatch.setattr(journal, "survey", survey)
    try:
        assert run(monkeypatch, str(tmp_path / "d"), "--workers", "1") == 75
    finally:
        for number, handler in zip(stop_signals(), before, strict=True):
            signal.signal(number, handler)
    assert "what was read is kept: run the same command again" in capsys.readouterr().err
    stopped = len(calls)
    assert run(monkeypatch, str(tmp_path / "d"), "--workers", "1") == 0
    assert len(calls) - stopped <= 1, "four of five tars were read"


def test_hidden_files_are_no_shards(tmp_path: Path) -> None:
    """As a Mac leaves them on other systems' disks."""
    write_foreign(tmp_path / "theirs", 12)
    files = fsspec.filesystem("memory")
    for tar in sorted((tmp_path / "theirs").iterdir()):
        tar.with_name(f"._{tar.name}").write_bytes(b"\0\5\x16\7")
        files.pipe(f"/hidden/{tar.name}", tar.read_bytes())
        files.pipe(f"/hidden/._{tar.name}", b"\0\5\x16\7")
    for source in (str(tmp_path / "theirs"), "memory://hidden"):
        assert adopt.adopt(source, tmp_path / source[:6].strip("/"), {}, None, 2)["splits"]["train"]["samples"] == 12


def test_a_store_that_can_list_needs_no_pattern(tmp_path: Path) -> None:
    write_foreign(tmp_path / "theirs", 12)
    files = fsspec.filesystem("memory")
    for tar in (tmp_path / "theirs").iterdir():
        files.pipe(f"/adopted/{tar.name}", tar.read_bytes())
    report = adopt.adopt("memory://adopted", tmp_path / "d", {}, None, 2)
    assert report["splits"]["train"] == {"samples": 12, "shards": 2}
    with pytest.raises(InputError, match="holds no"):
        adopt.adopt("memory://nothing", tmp_path / "e", {}, None, 2)


def test_remote_shards_are_indexed_in_one_pass_each(tmp_path: Path) -> None:
    """dataset.json is local and says where the shards are."""
    pattern = "/part-{0000..0004}.tar"
    write_foreign(tmp_path / "theirs")
    server = Web(tmp_path / "theirs")
    try:
        report = adopt.adopt(server.url + pattern, tmp_path / "d", {"val": "*-0004.tar"}, None, 2)
        assert report["splits"]["train"] == {"samples": 36, "shards": 4}
        assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["dataset.json"]
        dataset = open_dataset(str(tmp_path / "d"))
        assert dataset.root == server.url
        store = SampleReader(dataset, "train", (("png",), ("cls",)), Cache(server.url, tmp_path / "cache", 10 << 20))
        shard, row = store.locate([20])[0]
        assert shard.read(row) == [encoded(20), b"2"]
        store.close()
        before = sum(map(len, server.gets.values()))
        with pytest.raises(InputError, match="dataset already"):
            adopt.adopt(server.url + pattern, tmp_path / "d", {}, None, 2)
        assert sum(map(len, server.gets.values())) - before <= 1
        with pytest.raises(InputError, match="second argument"):
            adopt.adopt(server.url + pattern, None, {}, None, 2)
    finally:
        server.stop()


def test_shards_on_a_read_only_disk_stay_untouched(tmp_path: Path) -> None:
    write_foreign(tmp_path / "theirs", 12)
    adopt.adopt(str(tmp_path / "theirs"), tmp_path / "ours", {}, None, 1)
    assert not (tmp_path / "theirs" / "dataset.json").exists()
    assert len(by_id(list(make_loader(tmp_path / "ours", train=False)))) == 12


@pytest.mark.parametrize("extension", ["jfif", "jpe"])
def test_other_names_of_jpeg_are_images(tmp_path: Path, extension: str) -> None:
    """As in folders and zips."""
    with webdataset.ShardWriter(str(tmp_path / "%04d.tar"), maxcount=9, verbose=0) as writer:
        for number in range(3):
            writer.write({"__key__": f"{number}", extension: encoded(number, "jpg"), "cls": f"{number}"})
    report = adopt.adopt(str(tmp_path), None, {}, None, 1)
    assert (report["lacking"], report["splits"]["train"]["samples"]) == (0, 3)
    assert not verify(tmp_path, 1, lambda done, total: None)["damages"]


def write_targets(folder: Path, targets: list[bytes], field: str = "cls", key: str = "{:03d}") -> str:
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "a.tar"), encoder=False) as writer:
        for number, content in enumerate(targets):
            writer.write({"__key__": key.format(number), "png": encoded(number), field: content})
    return str(folder)


def test_an_absurd_class_number_is_named_and_decides_nothing(tmp_path: Path) -> None:
    source = write_targets(tmp_path / "d", [b"0", b"1"] * 10 + [b"3000000"])
    with pytest.raises(InputError, match=r"a\.tar: sample '020' has the class 3,000,000"):
        adopt.adopt(source, None, {}, None, 1)
    assert not (tmp_path / "d" / "dataset.json").exists()
    source = write_targets(tmp_path / "sparse", [b"0", b"999"])
    assert adopt.adopt(source, None, {}, None, 1)["targets"] == 1000, "a part of a dataset lacks classes"


@pytest.mark.parametrize(
    ("field", "right", "wrong"),
    [
        ("cls", b"1", [b"-3", b"9" * 30, b"", b"nan", b"1.5"]),
        (
            "json",
            b'{"labels": [0, 1]}',
            [b'{"labels": [-1]}', b'{"labels": ["a"]}', b'{"labels": [1e99]}', b"[" * 9000],
        ),
        ("json", b'{"targets": [0.5]}', [b'{"targets": [1, 2, 3]}', b'{"targets": null}', b"{}", b"[]", b"7"]),
    ],
)
def test_targets_that_are_none_are_counted(field: str, right: bytes, wrong: list[bytes], tmp_path: Path) -> None:
    report = adopt.adopt(write_targets(tmp_path / "d", [*wrong, *[right] * 20], field), None, {}, None, 1)
    assert report["lacking"] == len(wrong) and report["targets"] <= 2


def test_dots_in_keys_are_named(tmp_path: Path) -> None:
    source = write_targets(tmp_path / "d", [b"0", b"1"], key="photo-{}.5x")
    with pytest.raises(InputError, match="ends at the first dot"):
        adopt.adopt(source, None, {}, None, 1)


def test_shards_belong_to_the_split_that_their_name_says(tmp_path: Path) -> None:
    source = Path(write_targets(tmp_path / "d", [b"0", b"1"]))
    for name in ("x-validation-000.tar", "train-000.tar", "TEST_1.tar"):
        (source / name).write_bytes((source / "a.tar").read_bytes())
    splits = adopt.adopt(str(source), None, {}, None, 1)["splits"]
    assert {split: part["shards"] for split, part in splits.items()} == {"train": 2, "val": 1, "test": 1}
