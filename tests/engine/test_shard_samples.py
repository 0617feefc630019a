"""webdataset's own stages over our order: exact and elastic for text and sound, on any ranks. `test_chains` kills."""

from __future__ import annotations

import hashlib
import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from lightning_shards.data import Dataset, ShardLoader, ShardSamples
from lightning_shards.data.dataset import Shard
from lightning_shards.errors import InputError, RunError
from torch.utils.data import DataLoader

SIZES = (17, 30, 9, 40)


def sound(number: int) -> bytes:
    """A wav file of 80 samples, the first of which is `number`."""
    memory = io.BytesIO()
    with wave.open(memory, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((np.arange(80, dtype="<i2") + number).tobytes())
    return memory.getvalue()


def write_sounds(root: Path, extra: str = "txt") -> Path:
    """Tars of sounds with a text each, as webdataset's writer makes them, and what they hold in dataset.json."""
    (root / "train").mkdir(parents=True)
    first, shards = 0, []
    for number, count in enumerate(SIZES):
        tar = root / "train" / f"{number:06d}.tar"
        with wds.TarWriter(str(tar), mtime=0) as writer:
            for at in range(first, first + count):
                writer.write({"__key__": f"{at:06d}", "wav": sound(at), extra: f"word {at}".encode()})
        shards.append(
            Shard(f"train/{tar.name}", count, tar.stat().st_size, hashlib.sha256(tar.read_bytes()).hexdigest())
        )
        first += count
    Dataset(root, "", [], {"train": shards}, fields={"text": {"kind": "text", "names": ["txt"]}}).save()
    return root


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("data") / "sounds")


def first_value(data: bytes) -> int:
    with wave.open(io.BytesIO(data)) as file:
        return int(np.frombuffer(file.readframes(1), "<i2")[0])


def pipeline(samples: ShardSamples, batch: int) -> Any:
    """Decode text, open the sound, put batches together: webdataset's stages, in the DataLoader's workers."""
    stages = wds.decode(), wds.to_tuple("wav", "txt"), wds.map_tuple(first_value, str), wds.batched(batch, partial=True)
    return wds.DataPipeline(samples, *stages)


def pass_over(samples: ShardSamples, batch: int, workers: int, stop: int | None = None) -> list[int]:
    found: list[int] = []
    loader = DataLoader(pipeline(samples, batch), batch_size=None, num_workers=workers)
    for number, (numbers, texts) in enumerate(samples.counted(loader), 1):
        assert list(texts) == [f"word {value}" for value in np.asarray(numbers).tolist()]
        found += np.asarray(numbers).tolist()
        if number == stop:
            break
    return found


def test_the_same_order_as_the_loader_with_any_workers(sounds: Path) -> None:
    order = ShardSamples(sounds, 8)._place.order  # type: ignore[union-attr]
    for workers in (0, 1, 3):
        samples = ShardSamples(sounds, 8)
        for epoch in range(2):
            assert pass_over(samples, 8, workers) == order.ids(epoch, 0, 96).tolist()
        assert (samples.epoch, samples.position) == (2, 0)


def test_processes_that_stay_are_refused(sounds: Path) -> None:
    """They would hand out the first epoch's order in all others."""
    samples = ShardSamples(sounds, 8)
    loader = DataLoader(pipeline(samples, 8), batch_size=None, num_workers=2, persistent_workers=True)
    assert len(list(samples.counted(loader))) == 12
    with pytest.raises(InputError, match="no persistent_workers"):
        list(samples.counted(loader))


def test_members_are_bytes_as_webdataset_reads_them(sounds: Path) -> None:
    tars = [str(sounds / shard.name) for shard in Dataset.open(sounds).splits["train"]]
    reference = {s["__key__"]: s for s in wds.WebDataset(tars, shardshuffle=False)}
    for sample in ShardSamples(sounds, 10, shuffle=False):
        other = reference.pop(sample["__key__"])
        assert sample["wav"] == other["wav"] and sample["txt"] == other["txt"] and sample["__url__"] in other["__url__"]
    assert not reference


def test_goes_on_elsewhere_in_the_middle(sounds: Path) -> None:
    """From one rank without workers to three with two, with another batch size."""
    first = ShardSamples(sounds, 8)
    whole, seen = first._place.order.ids(0, 0, 96).tolist(), pass_over(first, 8, 0, stop=3)  # type: ignore[union-attr]
    state = json.loads(json.dumps(first.state_dict()))
    assert seen == whole[:24] and state["position"] == 24
    rest = []
    for rank in range(3):
        samples = ShardSamples(sounds, 4, rank=rank, world_size=3)
        samples.load_state_dict(state)
        rest.append(np.array(pass_over(samples, 4, 2)).reshape(-1, 4))
    assert np.stack(rest, 1).reshape(-1).tolist() == whole[24:]
    assert pass_over(first, 8, 1) == whole[24:]
    loader = ShardLoader(sounds, 8, crop=16)
    loader.load_state_dict(state)
    assert loader.position == 24, "one state for both"


def test_pickles_and_stages_that_drop_samples_are_refused(sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pickles"):
        next(iter(ShardSamples(write_sounds(tmp_path / "code", "emb.pyd"), 8)))
    samples = ShardSamples(sounds, 8)
    few = wds.DataPipeline(samples, wds.select(lambda sample: int(sample["__key__"]) % 2), wds.batched(8))
    with pytest.raises(RunError, match="none may drop"):
        list(samples.counted(few))
    with pytest.raises(InputError, match="no setting"):
        ShardSamples(sounds, 8, crop=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no state"):
        ShardSamples(sounds, 8, shuffle=False).state_dict()
