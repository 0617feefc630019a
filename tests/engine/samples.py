"""Small images, and the sources that can be made of them, for the tests of `pack`."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning_shards.data.dataset import Dataset
from lightning_shards.packing.pack import PackOptions
from numpy.typing import NDArray

from .in_place import PACKAGE

CLASSES = ("bird", "cat", "dog")
KEEP = PackOptions(short_side=None)


def image(seed: int, height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    """Smooth colours, so that JPEG keeps them, different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def jpeg(seed: int, height: int = 24, width: int = 32) -> bytes:
    return cv2.imencode(".jpg", image(seed, height, width))[1].tobytes()


def decoded(data: bytes, flags: int = cv2.IMREAD_COLOR) -> NDArray[Any]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    assert pixels is not None
    return np.asarray(pixels)


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path: Path, files: Mapping[str, bytes], lead: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in reversed(list(files.items())):
            archive.writestr(lead + name, data)
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return path


def class_files(each: int = 20) -> dict[str, bytes]:
    """`each` images in each class."""
    return {f"{name}/{i:03d}.jpg": jpeg(1000 * number + i) for number, name in enumerate(CLASSES) for i in range(each)}


def split_files() -> dict[str, bytes]:
    files = class_files(8)
    return {
        f"{('train', 'train', 'valid', 'test')[i % 4]}/{name}": data for i, (name, data) in enumerate(files.items())
    }


def members(dataset: Path, split: str) -> dict[str, bytes]:
    """Every file of a split's tars, by name, as Python's tarfile sees them."""
    found: dict[str, bytes] = {}
    for shard in Dataset.open(dataset).splits[split]:
        with tarfile.open(dataset / shard.name) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    return found


def fingerprint(dataset: Path) -> dict[str, str]:
    """Hash of every tar and of dataset.json."""
    files = sorted(path for path in dataset.rglob("*") if path.suffix in (".tar", ".json", ".jsonl"))
    return {str(path.relative_to(dataset)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def command(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", PACKAGE, "pack", *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


def folders_of(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}
