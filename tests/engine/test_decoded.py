"""Arrays of decoded images beside the tars: the same batches as without them, and nothing wrong is ever read."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_shards.data import Crop, Dataset, ShardLoader
from lightning_shards.data.array_cache import make_room
from lightning_shards.data.array_file import HERE, IN_TAR, ArrayFile, PartialFile
from lightning_shards.data.crop_batch import boxes
from lightning_shards.data.decoded import DecodedPlan
from lightning_shards.data.fields import Image, Mask
from lightning_shards.data.uniforms import draw, sample_seeds
from lightning_shards.data.worker import WorkerSpec
from lightning_shards.errors import InputError
from lightning_shards.packing.decoded import keep_decoded, render
from lightning_shards.packing.pool import Stopped
from lightning_shards.train.datamodule import ShardDataModule

from .conftest import encoded, picture, write_dataset
from .servers import Web
from .test_loading import decode, make_sampler

Rows = dict[int, tuple[Any, int, bool]]
ENOUGH = 1 << 30
places = DecodedPlan.places
CROP = Crop(16, scale=(0.3, 1.0))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """96 images in four shards: PNG of 24 pixels, two damaged, JPEGs of other sizes, one with no room in the array."""
    others = {3: b"no image", 50: b""} | {number: encoded(number, "jpg", 17 + number % 9) for number in range(60, 70)}
    return write_dataset(tmp_path / "small", damaged=others | {70: encoded(70, "jpg", 90)})


@contextmanager
def opened(path: Path | str, batch: int = 8, **others: Any) -> Iterator[ShardLoader]:
    about = {"crop": CROP, "workers": 2, "max_skipped_fraction": 0.5, "decoded_bytes": ENOUGH}
    loader = ShardLoader(path, batch, **{**about, **others})
    yield loader
    loader.close()


def a_pass(loader: ShardLoader) -> Rows:
    """Pixels, target and validity of each sample of the next epoch."""
    return {
        int(number): (batch["image"][row].numpy().copy(), batch["target"][row].item(), bool(batch.valid[row]))
        for batch in loader
        for row, number in enumerate(batch.ids)
        if number >= 0
    }


def passes(path: Path | str, count: int, **others: Any) -> list[Rows]:
    with opened(path, **others) as loader:
        return [a_pass(loader) for _ in range(count)]


def same(one: Rows, other: Rows) -> bool:
    """Of rows that are not valid, only that counts: their pixels are a neighbour's."""
    return one.keys() == other.keys() and all(
        a[2] == b[2] and (not a[2] or ((a[0] == b[0]).all() and a[1] == b[1]))
        for a, b in ((one[number], other[number]) for number in one)
    )


def arrays(path: Path) -> list[Path]:
    return sorted(path.glob("*/*.npy"))


def plan_of(path: Path, split: str = "train") -> tuple[WorkerSpec, DecodedPlan]:
    spec = WorkerSpec(Dataset.open(path), split, CROP, 8, 0, 1, (Path(), None))
    plan, _ = spec.plan(ENOUGH)
    assert plan
    return replace(spec, decoded=plan), plan


def fill(path: Path) -> WorkerSpec:
    """Write the arrays of a dataset whose training set is no multiple of 8 in this process, and wait for them."""
    spec, _ = plan_of(path)
    decoder = spec.decoder
    list(decode(decoder, make_sampler(path, train=False)))
    assert decoder.decoded
    decoder.decoded._thread.submit(int).result()  # behind all that was let go of
    return spec


@pytest.mark.parametrize("others", [{}, {"shuffle": False}, {"workers": 1}, {"fraction": 0.5}])
def test_the_same_batches_with_arrays_and_without(small: Path, others: dict[str, Any]) -> None:
    without, kept = passes(small, 3, decoded_bytes=0, **others), passes(small, 3, **others)
    assert all(map(same, without, kept))
    assert sum(row[2] for row in without[0].values()) > 40


def test_what_was_kept_is_read_and_not_decoded_again(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = fill(small)
    before = [(row.ids, row.valid, pixels["image"].copy()) for row, pixels in decode(spec.decoder, make_sampler(small))]
    decoded: list[int] = []
    monkeypatch.setattr("lightning_shards.data.rows.BatchRows.decode", lambda _, row, members: decoded.append(row))
    after = [(row.ids, pixels["image"].copy()) for row, pixels in decode(spec.decoder, make_sampler(small))]
    assert len(decoded) == 3, "two that are damaged, and one that has no room"
    for (ids, valid, pixels), (others, again) in zip(before, after, strict=True):
        whole = valid & (ids != 70)
        assert (ids == others).all() and (pixels[: len(ids)][whole] == again[: len(ids)][whole]).all()


def test_damaged_samples_are_listed_in_each_pass(small: Path, tmp_path: Path) -> None:
    passes(small, 2, skipped_log=tmp_path / "skipped.jsonl", shuffle=False)
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == [3, 3, 50, 50] and all(line["offset"] > 0 for line in lines)


def test_numpy_alone_reads_an_array_and_webdataset_the_tars(small: Path) -> None:
    fill(small)
    found = [np.load(path, mmap_mode="r", allow_pickle=False) for path in arrays(small)]
    assert [len(rows) for rows in found] == [17, 30, 9, 40]
    rows = np.concatenate(found)
    assert np.flatnonzero(rows["there"] == IN_TAR).tolist() == [3, 50, 70]
    assert (rows["image"][5, :24, :24] == picture(5)).all() and rows["size"][5].tolist() == [24, 24]
    assert rows["size"][61].tolist() == [17 + 61 % 9] * 2 and rows["target"].tolist()[4:9] == [1, 2, 0, 1, 2]
    tars = [str(path) for path in sorted(small.glob("train/*.tar"))]
    assert sum(1 for _ in webdataset.WebDataset(tars, shardshuffle=False)) == 96


@given(
    st.integers(1, 96), st.integers(1, 96), st.integers(0, 1 << 60), st.sampled_from([CROP, Crop(8), Crop(9, (0.9, 1))])
)
def test_the_boxes_of_a_batch_are_those_of_each_image(height: int, width: int, seed: int, crop: Crop) -> None:
    seeds = sample_seeds(seed, 0, np.arange(20))
    heights, widths = np.arange(20) % height + 1, np.arange(20) * 7 % width + 1
    draws = draw(seeds, crop.draws)
    for given_seeds in (seeds, None):
        found = zip(*(edge.tolist() for edge in boxes(crop, heights, widths, given_seeds)), strict=True)
        assert list(found) == [
            crop.box(int(heights[i]), int(widths[i]), draws[i] if given_seeds is not None else None) for i in range(20)
        ]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 700)


def of_another_tar(path: Path) -> None:
    path.write_bytes(arrays(path.parents[1])[3].read_bytes())


def of_other_bytes(path: Path) -> None:
    content = path.read_bytes()
    end = content.rindex(b'{"of"')
    path.write_bytes(content[:end] + content[end:].replace(b'"sha256": "', b'"sha256": "0'))


def of_another_type(path: Path) -> None:
    rows = np.load(path)
    np.save(path, rows["image"])


def without_end(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b'{"of"')])


def of_odd_rows(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"in_tar": [', b'"in_tar": [99999, '))


@pytest.mark.parametrize(
    "damage", [cut, of_another_tar, of_other_bytes, of_another_type, without_end, of_odd_rows, Path.unlink]
)
def test_an_array_of_something_else_is_made_again(small: Path, damage: Callable[[Path], None]) -> None:
    right = passes(small, 1, decoded_bytes=0)
    spec = fill(small)
    assert spec.decoded
    shard = spec.dataset.splits["train"][1]
    assert spec.decoded.open(shard)
    damage(arrays(small)[1])
    assert spec.decoded.open(shard) is None
    assert same(passes(small, 1)[0], right[0])
    fill(small)
    assert spec.decoded.open(shard), "it was made again"


def test_a_tar_in_another_dataset_brings_its_array(small: Path, tmp_path: Path) -> None:
    fill(small)
    dataset, other = Dataset.open(small), tmp_path / "other"
    first, *_, last = dataset.splits["train"]
    copies = [replace(shard, name=f"train/{name}.tar") for name, shard in (("a", last), ("b", first), ("c", last))]
    (other / "train").mkdir(parents=True)
    for shard, copy in zip((last, first, last), copies, strict=True):
        for path in small.glob(f"{shard.name}*"):
            (other / f"{copy.name}{path.name.removeprefix(Path(shard.name).name)}").hardlink_to(path)
    replace(dataset, root=other, splits={"train": copies}).save()
    _, plan = plan_of(other)
    assert all(plan.open(shard) for shard in copies)
    assert same(passes(other, 1)[0], passes(other, 1, decoded_bytes=0)[0])


@settings(max_examples=60)
@given(data=st.data())
def test_any_damage_behind_the_header_is_found_or_harmless(tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    if not folder.exists():
        write_dataset(folder, sizes=(20,))
        fill(folder)
    (path,) = folder.glob("train/*.npy")
    spec, plan = plan_of(folder)
    content = bytearray(path.read_bytes())
    end = content.rindex(b'{"of"')
    for place in data.draw(st.lists(st.integers(end, len(content) - 1), min_size=1, max_size=5)):
        content[place] = data.draw(st.integers(0, 255))
    other = path.with_name("other.npy")
    other.write_bytes(content[: data.draw(st.integers(end, len(content)))])
    shard = spec.dataset.splits["train"][0]
    found = ArrayFile.open(other, plan.record, shard.samples, plan.made(shard))
    assert found is None or set(found.there.tolist()) <= {HERE, IN_TAR}
    other.unlink()


def test_a_pass_that_is_killed_loses_nothing(small: Path) -> None:
    right = passes(small, 2, decoded_bytes=0)
    with opened(small, batch=2) as loader:  # so that what is made ahead does not reach to the end of the pass
        batches = iter(loader)
        for _ in range(20):
            next(batches)
        for process in loader._epochs._decoding:  # type: ignore[union-attr]
            os.kill(process._process.pid, signal.SIGKILL)
        batches.close()  # type: ignore[attr-defined]
    begun = list(small.glob("train/*.partial"))
    spec, plan = plan_of(small)
    written = sum(int((np.load(path, mmap_mode="r")["there"] > 0).sum()) for path in begun)
    assert len(begun) == 4 and written >= 4 * 8
    assert all(map(same, passes(small, 2), right))
    fill(small)
    assert all(plan.open(shard) for shard in spec.dataset.splits["train"])
    assert not list(small.glob("train/*.partial")) and not list(small.glob("train/*.lock"))


def test_after_a_start_of_the_machine_another_is_begun(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, plan = plan_of(small)
    shard = spec.dataset.splits["train"][0]
    about: Any = (plan.places(shard)[0], plan.record, shard.samples, plan.made(shard))
    first = PartialFile(*about)
    record = np.ones((), plan.record)
    first.put(2, record)
    assert PartialFile(*about).written.there.tolist()[:4] == [0, 0, 1, 0], "gone on with"
    monkeypatch.setattr("lightning_shards.data.array_file.boot_id", lambda: "another")
    assert not PartialFile(*about).written.there.any()
    assert plan.open(shard) is None and len(list(small.glob("train/*.partial"))) == 2
    for row in range(shard.samples):  # on another machine, perhaps, which shares the disk
        first.put(row, record)
    assert first.finish() and plan.open(shard) and not list(small.glob("train/*.partial"))


def test_what_was_written_in_part_is_not_read(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, plan = plan_of(small)
    shard = spec.dataset.splits["train"][0]
    file = PartialFile(plan.places(shard)[0], plan.record, shard.samples, plan.made(shard))
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:100], at))
    with pytest.raises(OSError, match="No space left"):
        file.put(2, np.ones((), plan.record))
    assert not file.written.there.any() and not file.written.rows[:, -1].any()


def test_sizes_that_somebody_made_up_stay_in_the_room(small: Path) -> None:
    spec = fill(small)
    for path in arrays(small):
        rows = np.load(path, mmap_mode="r+")
        rows["size"][::2], rows["size"][1::2] = 0, 255
        rows.flush()
    assert sum(len(batch.ids) for batch, _ in decode(spec.decoder, make_sampler(small))) == 96


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_values_that_somebody_made_up_are_read_from_the_tars(tmp_path: Path, task: str) -> None:
    path = write_dataset(tmp_path / "d", task=task)
    right = [(row.ids, batch["target"].copy()) for row, batch in decode(fill(path).decoder, make_sampler(path))]
    values: dict[str, tuple[float, float]] = {"single_label": (-1, 3), "multi_label": (0.5, 7)}
    made_up = values.get(task, (float("nan"), float("inf")))
    for array in arrays(path):
        rows = np.load(array, mmap_mode="r+")
        rows["target"][::4], rows["target"][1::4] = made_up
        rows.flush()
    found = [
        (row.ids, row.valid.all(), batch["target"].copy())
        for row, batch in decode(plan_of(path)[0].decoder, make_sampler(path))
    ]
    for (ids, expected), (others, valid, targets) in zip(right, found, strict=True):
        assert valid and (ids == others).all() and (expected == targets).all()


def test_a_tar_that_is_gone_is_missed(small: Path) -> None:
    fill(small)
    (small / "train/000001.tar").unlink()
    with pytest.raises(InputError, match="restore it or pack the dataset again"):
        passes(small, 1)


def test_they_are_made_on_request_and_a_stop_loses_nothing(small: Path) -> None:
    right = passes(small, 1, decoded_bytes=0)
    dataset, done = Dataset.open(small), list[tuple[int, int]]()

    def stops(images: int, total: int) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match="what is decoded is kept"):
        keep_decoded(dataset, stops)
    begun = [*small.glob("train/*.partial"), *small.glob("train/*.npy")]
    assert sum(int((np.load(path, mmap_mode="r")["there"] > 0).sum()) for path in begun) > 0
    report = keep_decoded(dataset, lambda images, total: done.append((images, total)))
    assert done[-1] == (138, 138) and {split: kept["images"] for split, kept in report.items()} == {
        "train": 96,
        "val": 21,
        "test": 21,
    }
    files = list(small.glob("*/*.npy"))
    assert len(files) == 6 and not list(small.glob("*/*.partial"))
    assert sum(path.stat().st_size for path in files) > sum(kept["bytes"] for kept in report.values()) > 138 * 24**2 * 3
    assert same(passes(small, 1)[0], right[0])


def test_what_cannot_be_made_on_request_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_dataset(tmp_path / "d", damaged={number: encoded(number, side=100) for number in range(96)})
    report = keep_decoded(Dataset.open(photos))
    assert report["train"] == {
        "images": 0,
        "bytes": 0,
        "note": "nothing is kept decoded: images are larger than 96 pixels",
    }
    assert report["val"]["images"] == 21 and "decoded" in render(report)
    monkeypatch.setattr("lightning_shards.packing.decoded.free_bytes", lambda dataset: 1000)
    small = write_dataset(tmp_path / "small")
    assert "takes 167 kB, and the disk has 1 kB" in keep_decoded(Dataset.open(small))["train"]["note"]
    monkeypatch.undo()
    monkeypatch.setattr("lightning_shards.packing.decoded.default_bytes", lambda dataset, there: 1000)
    assert "data.decoded_bytes is 166944 or more" in keep_decoded(Dataset.open(small))["train"]["note"]


def test_whoever_is_killed_before_a_file_has_its_name_loses_nothing(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, plan = plan_of(small)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", lambda path, to: path.rename(to) if "tmp" in path.name else 1 / 0)
        fill(small)
    shards = spec.dataset.splits["train"]
    assert not any(plan.open(shard) for shard in shards) and len(list(small.glob("train/*.partial"))) == 4
    assert all(plan.finish(shard) for shard in shards) and not list(small.glob("train/*.partial"))


def test_a_folder_that_cannot_be_written_has_its_arrays_in_the_cache(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _, plan = plan_of(small)
    shard = Dataset.open(small).splits["train"][0]
    beside, cached = plan.places(shard)
    beside.with_name(f"{beside.name}.lock").mkdir()  # as root may write everywhere
    right = passes(small, 2, decoded_bytes=0)
    assert all(map(same, passes(small, 2), right))
    fill(small)
    assert cached.is_file() and not beside.exists() and plan.open(shard)


def test_in_the_cache_what_was_used_longest_ago_makes_room(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("lightning_shards.data.decoded_rows.memory_bytes", lambda: 660_000)  # half of it may be kept
    monkeypatch.setattr(DecodedPlan, "places", lambda plan, shard: places(plan, shard)[1:])  # as behind a URL
    folder = tmp_path / "cache/lightning-shards/arrays"
    folder.mkdir(parents=True)
    others = [folder / f"{number}.decoded-0.npy" for number in range(5)]
    for number, path in enumerate(others):
        path.write_bytes(bytes(20_000))
        os.utime(path, (1e9 - number, 1e9 - number))
    embedded = folder / "0.embedded-0.npy"  # of a network, which took longer
    embedded.write_bytes(bytes(400_000))
    plan = fill(small).decoded
    assert plan
    assert embedded.exists() and [path.exists() for path in others] == [True, False, False, False, False], (
        "297 KB are of this dataset"
    )
    shards = Dataset.open(small).splits["train"]
    assert all(plan.open(shard) for shard in shards) and len(list(folder.iterdir())) == 6
    for shard in shards:
        os.utime(plan.places(shard)[0], (1e9 - 9, 1e9 - 9))
    assert plan.open(shards[1]), "used just now"
    make_room(others[1], "decoded", 100_000, 220_000)
    assert [bool(plan.open(shard)) for shard in shards] == [False, True, False, False] and others[0].exists()


def test_behind_a_url_they_are_in_the_cache(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copies: dict[str, Any] = {"cache": tmp_path / "copies", "cache_bytes": 10**7}
    right = passes(web.url, 2, decoded_bytes=0, **copies)
    assert all(map(same, passes(web.url, 2, **copies), right))
    assert len(list((tmp_path / "cache/lightning-shards/arrays").iterdir())) >= 4


def test_a_full_disk_is_one_line_and_the_pass_goes_on(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, _ = plan_of(small)
    before = [pixels["image"].copy() for _, pixels in decode(replace(spec, decoded=None).decoder, make_sampler(small))]
    write, written = os.pwrite, []

    def fails(*arguments: Any) -> int:
        written.append(1)
        if len(written) > 20:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", fails)
    after = [pixels["image"].copy() for _, pixels in decode(spec.decoder, make_sampler(small))]
    assert all((one == other).all() for one, other in zip(before, after, strict=True))
    said = capsys.readouterr().err.splitlines()
    assert said == ["decoded images cannot be kept (No space left on device): they are decoded anew each time"]


@pytest.mark.parametrize(
    ("side", "others", "sentence"),
    [
        (100, {}, "images are larger than 96 pixels"),
        (200, {}, "samples have more bytes than small images"),
        (24, {"fields": {"image": Image(), "mask": Mask(3, required=False)}}, "samples hold more than an image"),
        (24, {"transform": print}, "a transform changes each decoded sample"),
        (25, {}, "dataset.json does not have the SHA-256 of each shard"),
        (24, {"decoded_bytes": 1000}, "to keep them takes 167 kB"),
        (24, {"decoded_bytes": -1}, "decoded_bytes is -1, it must be a whole number, at least 0"),
        (24, {"decoded_bytes": 0}, ""),
        (24, {"decoded_bytes": ENOUGH}, ""),  # in a program of one's own, what is as wished goes without saying
        (24, {"decoded_bytes": None}, ""),  # so little is decoded in no time
    ],
)
def test_what_is_not_kept_is_said(
    tmp_path: Path, side: int, others: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {number: encoded(number, side=side) for number in range(96)} if side != 24 else {}
    path = write_dataset(tmp_path / "d", damaged=images)
    if side == 25:
        dataset = Dataset.open(path)
        replace(dataset, splits={"train": [replace(shard, sha256="") for shard in dataset.splits["train"]]}).save()
    try:
        with opened(path, **others):
            pass
        said = capsys.readouterr().err
    except InputError as error:
        said = str(error)
    assert sentence in said and bool(sentence) == bool(said.strip())
    assert not list(path.glob("train/*.np*"))


def test_under_the_trainer_it_is_said_once_and_each_split_has_its_own(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ShardDataModule(str(small), 8, image_size=16, max_skipped_fraction=0.5, decoded_bytes=ENOUGH)
    for _ in range(2):
        for loader in (data.train_dataloader(), data.val_dataloader()):
            assert len(list(loader)) > 1  # type: ignore[arg-type]
    data.teardown("fit")
    said = capsys.readouterr()
    assert (said.out + said.err).count("images of train are") == 1 and "val are" not in said.out + said.err
    assert list(small.glob("val/*.npy*"))
