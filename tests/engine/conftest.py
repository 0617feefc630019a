"""Small datasets for the tests: generated images whose class is a colour, in uneven shards. No network, no account."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import hypothesis
import numpy as np
import pytest
import webdataset
import yaml
from lightning_shards.data import remote
from lightning_shards.data.dataset import Dataset, Shard
from lightning_shards.data.tar_index import ShardIndex
from lightning_shards.data.worker import DecodeWorker
from warm import WarmPython

from . import PATIENCE, WARM_DECODING
from .in_place import PROJECT
from .servers import Web

os.environ["WANDB_MODE"] = "offline"
hypothesis.settings.register_profile("any machine", deadline=None)  # no outcome hangs on its speed
hypothesis.settings.load_profile("any machine")
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
NAMES = ["red", "green", "blue"]
DatasetMaker = Callable[..., Path]


def picture(number: int, side: int = 24) -> np.ndarray:
    """RGB noise around the colour of class `number % 3`, uint8 (side, side, 3); the same for the same number."""
    noise = np.random.default_rng(number).integers(-30, 30, (side, side, 3))
    return np.clip(np.array(COLOURS[number % 3]) + noise, 0, 255).astype(np.uint8)


def encoded(number: int, extension: str = "png", side: int = 24) -> bytes:
    done, data = cv2.imencode(f".{extension}", picture(number, side)[:, :, ::-1])
    assert done
    return data.tobytes()


def target(number: int, task: str) -> dict[str, bytes]:
    """The target field of the sample `number`."""
    if task == "single_label":
        return {"cls": str(number % 3).encode()}
    content = {"labels": [number % 3]} if task == "multi_label" else {"targets": [number % 3 / 2]}
    return {"json": json.dumps(content).encode()}


def write_dataset(
    root: Path,
    sizes: Sequence[int] = (17, 30, 9, 40),
    task: str = "single_label",
    damaged: Mapping[int, bytes | None] | None = None,
    held_out: int = 21,
) -> Path:
    """A dataset with shards of `sizes` to train, and `held_out` samples each to validate and test.

    `damaged` replaces the images of training samples; None leaves them out.
    """
    splits: dict[str, list[Shard]] = {}
    for split, counts in {"train": sizes, "val": [held_out], "test": [held_out]}.items():
        if not sum(counts):
            continue
        (root / split).mkdir(parents=True)
        first, shards = 0, []
        for place, count in enumerate(counts):
            tar = root / split / f"{place:06d}.tar"
            with tar.open("wb") as file, webdataset.TarWriter(file, mtime=0) as writer:
                for number in range(first, first + count):
                    replaced = damaged if damaged and split == "train" else {}
                    image = replaced.get(number, encoded(number))
                    images = {} if image is None else {"png": image}
                    writer.write({"__key__": f"{number:08d}", **images, **target(number, task)})
            ShardIndex.build(tar).save(tar.with_name(tar.name + ".index"))
            checksum = hashlib.sha256(tar.read_bytes()).hexdigest()
            shards.append(Shard(f"{split}/{tar.name}", count, tar.stat().st_size, checksum))
            first += count
        splits[split] = shards
    Dataset(root, task, NAMES if task != "regression" else ["shade"], splits).save()
    return root


@pytest.fixture(scope="session", autouse=True)
def warm_decoding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A decoding process starts in a tenth of its time, also those of trainings in processes that are forked."""
    imports = ("lightning_shards.data.decoded_rows", "lightning_shards.data.embedded_rows")  # and all that they import
    server = WarmPython(sys.executable, tmp_path_factory.mktemp("warm-decoding"), imports)
    os.environ[WARM_DECODING] = DecodeWorker.python = str(server.path)
    yield
    del os.environ[WARM_DECODING]
    DecodeWorker.python = sys.executable
    server.stop()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 samples to train in four uneven shards, 21 to validate, 21 to test. Do not write into it."""
    return write_dataset(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, warm_python: str) -> Path:
    """A folder in which train.py was run as a user runs it: `runs/first`, of a model that has learned a little, with
    two damaged samples and W&B offline. Do not write into it."""
    folder = tmp_path_factory.mktemp("trained")
    write_dataset(folder / "colours", damaged={3: b"no image", 50: b""}, held_out=60)
    settings = {
        "data": {"path": "colours", "global_batch_size": 8, "image_size": 16, "max_skipped_fraction": 0.05},
        "model": {"backbone": "small_cnn", "learning_rate": 0.00003},
        "trainer": {"max_epochs": 2, "log_every_n_steps": 4, "accelerator": "cpu", "enable_progress_bar": False},
        "log": {"project": "demo"},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(settings))
    environment = {**os.environ, "WANDB_MODE": "offline"}
    command = [warm_python, str(PROJECT / "train.py"), "--config", "c.yaml", "--run", "first"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "runs/first/report.html" in done.stdout.splitlines()[-1], "what is printed ends with the report"
    return folder


@pytest.fixture
def web(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """`dataset` behind a web server on loopback, with short pauses between tries."""
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    server = Web(dataset)
    yield server
    server.stop()
