"""From shards to batches: right pixels, right targets, each sample once, and nothing dies silently."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_shards.data import worker
from lightning_shards.data.batch import Batch
from lightning_shards.data.batcher import BatchDecoder, DecodedBatch
from lightning_shards.data.crop import Crop, resize
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.decode import DecodeError
from lightning_shards.data.fields import ClassIndex, Image, MultiHot, Numbers
from lightning_shards.data.loader import EpochLoader, SkipLog
from lightning_shards.data.order import WindowedOrder
from lightning_shards.data.sample_reader import SampleReader
from lightning_shards.data.sampler import EvalSampler, TrainSampler
from lightning_shards.data.slots import Arrays, SlotLayout
from lightning_shards.data.worker import WorkerSpec
from lightning_shards.errors import InputError, RunError
from lightning_shards.train.datamodule import ShardDataModule

from .conftest import encoded, write_dataset


def make_job(root: Path, micro: int = 8, workers: int = 2, train: bool = True) -> WorkerSpec:
    crop = Crop(16, scale=(0.5, 1.0))
    return WorkerSpec(Dataset.open(root), "train", crop, micro, 0 if train else None, workers, (Path(), None))


def make_sampler(root: Path, micro: int = 8, train: bool = True, epoch: int = 0) -> TrainSampler | EvalSampler:
    data = Dataset.open(root)
    shards = data.splits["train"]
    order = WindowedOrder([s.samples for s in shards], [s.bytes for s in shards])
    return TrainSampler(order, 0, 1, micro, 1, (0, 0), epoch) if train else EvalSampler(len(order), 0, 1, micro)


def make_loader(root: Path, micro: int = 8, train: bool = True, log: Path | None = None) -> EpochLoader:
    return EpochLoader(make_job(root, micro, 2, train), make_sampler(root, micro, train), SkipLog(log, 1e9))


def decode(decoder: BatchDecoder, sampler: TrainSampler | EvalSampler) -> Iterator[tuple[DecodedBatch, Arrays]]:
    """The decoder's batches and their arrays, in this process."""
    layout, made = SlotLayout(decoder.fields, decoder.crop.size, sampler.micro), []

    def take() -> tuple[int, Arrays]:
        made.append(layout.arrays(bytearray(b"\x07" * layout.bytes)))
        return len(made) - 1, made[-1]

    for rows in decoder.batches(sampler, take):
        yield rows, made[rows.slot]


def by_id(batches: list[Batch]) -> dict[int, tuple[torch.Tensor, Any, int]]:
    """Pixels, target and key of each sample, however it was batched."""
    return {
        int(i): (b["image"][row], b["target"][row].tolist(), int(b.seeds[row]))
        for b in batches
        for row, i in enumerate(b.ids)
        if i >= 0
    }


def test_every_sample_is_handed_out_once_as_webdataset_reads_it(dataset: Path) -> None:
    batches = list(make_loader(dataset, micro=7, train=False))
    assert all(b["image"].shape == (7, 3, 16, 16) and b["image"].dtype == torch.uint8 for b in batches)
    assert all(b["image"].is_contiguous(memory_format=torch.channels_last) for b in batches)
    rows = by_id(batches)
    tars = [str(dataset / shard.name) for shard in Dataset.open(dataset).splits["train"]]
    reference = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    assert sorted(rows) == list(range(len(reference))) == list(range(96))
    side = round(0.875 * 24)
    for number, sample in enumerate(reference):
        edge = (24 - side) // 2
        expected = np.zeros((16, 16, 3), np.uint8)
        resize(sample["png"][edge : edge + side, edge : edge + side], expected)
        assert np.array_equal(rows[number][0].permute(1, 2, 0).numpy(), expected)
        assert rows[number][1] == int(sample["cls"])
    padded = batches[-1]
    assert padded.ids.tolist().count(-1) == 7 * len(batches) - 96 == int((~padded.valid).sum())


@settings(max_examples=12, deadline=None)
@given(micro=st.integers(1, 40), workers=st.integers(1, 5), epoch=st.integers(0, 2))
def test_pixels_do_not_depend_on_batches_or_threads(dataset: Path, micro: int, workers: int, epoch: int) -> None:
    def samples(micro: int, workers: int) -> dict[int, tuple[Any, int]]:
        batches = decode(make_job(dataset, micro, workers).decoder, make_sampler(dataset, micro, epoch=epoch))
        return {
            number: (arrays["image"][row], int(arrays["target"][row]))
            for rows, arrays in batches
            for row, number in enumerate(rows.ids.tolist())
        }

    reference, others = samples(96, 1), samples(micro, workers)
    assert len(others) == 96 // micro * micro
    for number, (image, target) in others.items():
        assert np.array_equal(image, reference[number][0]) and target == reference[number][1]


def test_epochs_show_other_crops_and_another_order(dataset: Path) -> None:
    loader = make_loader(dataset)
    first = list(loader)
    processes = loader._decoding
    loader.sampler.set_epoch(1)
    second = list(loader)
    assert processes is loader._decoding, "they are kept for all epochs"
    assert [b.ids.tolist() for b in first] != [b.ids.tolist() for b in second]
    left, right = by_id(first), by_id(second)
    assert sum(torch.equal(left[i][0], right[i][0]) for i in range(96)) < 5


JPEG = encoded(3, "jpg", 64)
DAMAGED = {
    4: b"",
    20: b"no image",
    21: JPEG[: len(JPEG) // 2],
    40: encoded(1)[:60],
    41: b"GIF89a" + bytes(100),
    95: encoded(2)[:33] + bytes(200),
}


def test_damaged_samples_are_masked_and_written_down(tmp_path: Path) -> None:
    root, log = write_dataset(tmp_path / "d", damaged=DAMAGED), tmp_path / "skipped" / "rank-0.jsonl"
    loader = make_loader(root, log=log)
    batches = list(loader)
    assert len(batches) == len(loader) == 12
    masked = {int(i) for b in batches for i in b.ids[~b.valid]}
    assert masked == set(DAMAGED)
    for batch in batches:
        good = batch["image"][batch.valid]
        for row in (~batch.valid).nonzero().flatten():
            assert any(torch.equal(batch["image"][row], other) for other in good), "filled with a neighbour"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["id"] for line in lines} == set(DAMAGED)
    for line in lines:
        assert set(line) == {"id", "epoch", "shard", "key", "offset", "error"}
        assert line["key"] == f"{line['id']:08d}" and line["error"]
        data = (root / line["shard"]).read_bytes()
        assert data[line["offset"] :].startswith(DAMAGED[line["id"]])
    loader.skipped.limit = 4
    with pytest.raises(RunError, match="max_skipped_fraction"):
        list(loader)


def test_a_sample_without_target_or_image_is_masked(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", sizes=(6,), damaged={1: None, 4: None})
    masked = [rows.ids[~rows.valid] for rows, _ in decode(make_job(root).decoder, make_sampler(root, 3))]
    assert sorted(np.concatenate(masked).tolist()) == [1, 4]
    decoder = make_job(root).decoder
    decoder.store = SampleReader(Dataset.open(root), "train", (("cls",), ("jpg",)))
    with pytest.raises(InputError, match=r"the sample has no jpg; the tars hold \.cls, \.png$"):
        list(decode(decoder, make_sampler(root, 3)))
    for label in (b"7", b"-1", b"cat", b""):
        with pytest.raises(DecodeError):
            ClassIndex(3).decode(label, None, None)
    for content in (b'{"labels": [5]}', b'{"labels": [-1]}', b"[]", b"{", b'{"targets": [1]}'):
        with pytest.raises(DecodeError):
            MultiHot(3).decode(content, None, None)
    for content in (b'{"targets": [1, 2]}', b'{"targets": ["a"]}', b'{"targets": [NaN]}', b"{}"):
        with pytest.raises(DecodeError):
            Numbers(1).decode(content, None, None)
    assert MultiHot(3).decode(b'{"labels": [0, 2]}', None, None).tolist() == [1, 0, 1]


def test_an_error_in_a_thread_is_raised_and_threads_end(dataset: Path) -> None:
    class Fails(ClassIndex):
        def decode(self, *_: Any) -> int:
            raise ZeroDivisionError("a defect, not a damaged sample")

    decoder = make_job(dataset).decoder
    decoder.fields = {"target": Fails(3), "image": Image()}
    with pytest.raises(ZeroDivisionError):
        list(decode(decoder, make_sampler(dataset)))
    iterator = decode(make_job(dataset).decoder, make_sampler(dataset))
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


@pytest.mark.parametrize(
    "change",
    [{"global_batch_size": 97}, {"global_batch_size": 0}, {"fraction": 0.0}, {"crop_scale": (0.9, 0.1)}, {"workers": 0},
     {"crop_ratio": (2, 1)}, {"crop_ratio": (0, 1)}, {"crop_ratio": (1, 1e9)}, {"crop_ratio": (1,)},
     {"eval_crop": 0.0}, {"path": "nowhere"}, {"fraction": 0.1, "global_batch_size": 90}],
)  # fmt: skip
def test_bad_settings_are_one_sentence(dataset: Path, change: dict) -> None:
    with pytest.raises(InputError) as error:
        ShardDataModule(**{"path": str(dataset), "global_batch_size": 8, **change})
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_batches_that_do_not_divide_name_sizes_that_do(dataset: Path) -> None:
    data = ShardDataModule(path=str(dataset), global_batch_size=10)
    assert data.split_batch(2) == (5, 1)
    with pytest.raises(InputError, match="9 or 12 would do"):
        data.split_batch(3)
    data.micro_batch_size = 4
    with pytest.raises(InputError, match="8 or 16 would do"):
        data.split_batch(2)
    data.micro_batch_size = 1
    assert data.split_batch(2) == (1, 5)


def test_threads_are_spread_over_a_few_processes(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of a few KB have a process a thread; behind a URL there is one process."""
    data = ShardDataModule(path=str(dataset), global_batch_size=8, workers=16)
    assert data.decoders(1) == (4, 1)
    monkeypatch.setattr("lightning_shards.data.spread.SMALL", 0)
    wanted = {1: (1, 1), 2: (2, 1), 4: (4, 1), 5: (3, 2), 6: (3, 2), 8: (4, 2), 16: (4, 4), 32: (4, 8)}
    for data.workers, processes in wanted.items():
        assert data.decoders(1) == processes
    object.__setattr__(data.dataset, "root", "https://localhost/d")
    assert data.decoders(1) == (1, 32)


def test_the_place_holds_nothing_of_this_hardware(dataset: Path) -> None:
    data = ShardDataModule(path=str(dataset), global_batch_size=8)
    data.advance()
    state = data.checkpoint_state()
    assert set(state) == {"epoch", "position", "images_seen", "order", "embedded"}
    assert set(state["order"]) == {"fingerprint", "seed", "fraction", "window_samples", "window_bytes"}
    other = ShardDataModule(path=str(dataset), global_batch_size=6, micro_batch_size=3)
    other.load_checkpoint_state(json.loads(json.dumps(state)))
    assert (other.epoch, other.position) == (0, 8)
    with pytest.raises(InputError, match="seed"):
        ShardDataModule(path=str(dataset), global_batch_size=8, seed=1).load_checkpoint_state(state)
    with pytest.raises(InputError, match="not the one"):
        data.load_checkpoint_state({**state, "order": {**state["order"], "fingerprint": "other"}})


def test_a_pass_that_is_left_takes_nothing_from_the_next(dataset: Path) -> None:
    """All batches of a short epoch are there before they are asked for, so that the next pass has its processes."""
    loader = make_loader(dataset, micro=32)
    whole = [batch.ids.tolist() for batch in loader]
    assert len(whole) == 3
    for handed_out in (1, 3):  # in the middle, and at the end before it is known for one
        left = iter(loader)
        for _ in range(handed_out):
            next(left)
        time.sleep(1)  # in which all batches come
        following = iter(loader)
        first = next(following).ids.tolist()
        left.close()  # type: ignore[attr-defined]
        assert [first, *(batch.ids.tolist() for batch in following)] == whole
        assert [batch.ids.tolist() for batch in loader] == whole


@pytest.mark.parametrize(
    ("script", "sentence"),
    [("exit 1", "ended with status 1"), ('eval "exec $3>&-"; exec sleep 60', "has closed its end and not ended in")],
)
def test_a_decoding_process_that_does_not_work_is_one_sentence(
    script: str, sentence: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ends at once, and one that lets go of its socket and stays: it is killed."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(worker.DecodeWorker, "python", str(program))
    monkeypatch.setattr(worker, "GRACE", 0.2)
    loader = make_loader(dataset)
    with pytest.raises(RunError, match=sentence):
        list(loader)
    assert loader._decoding == []
