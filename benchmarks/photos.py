"""The images of the loader benchmark: photos of 500 x 375 pixels like ImageNet's, and smaller ones made from them.

Photos are random crops of the photographs that scikit-image ships, or a folder of JPEGs in class folders. What is
smaller is made from those with the engine's own `pack` code, so that every loader reads the same bytes. A folder is
finished once `done` lies beside it; hard links repeat the images where an epoch would otherwise be too short.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning_shards.packing.encode import encode
from numpy.typing import NDArray
from peers import QUALITY

PICTURES = ("astronaut", "chelsea", "coffee", "motorcycle_left", "motorcycle_right")
WIDTH, HEIGHT = 500, 375
BYTES = (75_000, 110_000)  # of a photo, as in ImageNet
QUALITIES = (95, 97, 92, 98, 90)  # tried in this order until a photo has so many bytes
IMAGES = {"500": 4_000, "256short": 16_000, "256long": 32_000}  # of an epoch, at least
IMAGES |= {"28": 32_000, "32": 32_000, "64": 32_000, "64png": 32_000}
Pixels = NDArray[np.uint8]


def make_photos(folder: Path, count: int) -> None:
    """`count` photos in a class folder for each picture; the same ones every time with the same libraries."""
    import skimage

    random = np.random.default_rng(0)
    pictures: dict[str, Any] = {
        name: cv2.imread(str(Path(skimage.__file__).parent / "data" / f"{name}.png"), cv2.IMREAD_COLOR)
        for name in PICTURES
    }
    for name in PICTURES:
        (folder / name).mkdir(parents=True)
    made = 0
    for name in itertools.cycle(PICTURES):
        picture = pictures[name]
        whole = min(picture.shape[1], picture.shape[0] * WIDTH // HEIGHT)
        width = int(random.uniform(0.6, 1) * whole)
        height = width * HEIGHT // WIDTH
        top, left = (random.integers(0, rest + 1) for rest in (picture.shape[0] - height, picture.shape[1] - width))
        crop = picture[top : top + height, left : left + width]
        crop = cv2.resize(crop, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA if width > WIDTH else cv2.INTER_CUBIC)
        for quality in QUALITIES:
            data = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            if BYTES[0] <= len(data) <= BYTES[1]:
                (folder / name / f"{made:06d}.jpg").write_bytes(data)
                made += 1
                break
        if made == count:
            return


def _short_side(data: bytes) -> tuple[str, bytes]:
    stored = encode(data, 256, QUALITY)
    return stored.kind, stored.data


def _long_side(data: bytes) -> tuple[str, bytes]:
    """As FFCV's `max_resolution` makes it."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    scale = 256 / max(image.shape[:2])
    size = (int(image.shape[1] * scale), int(image.shape[0] * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return "jpg", cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def _square(data: bytes, size: int, kind: str) -> tuple[str, bytes]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    side = min(image.shape[:2])
    image = cv2.resize(image[:side, :side], (size, size), interpolation=cv2.INTER_AREA)
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY] if kind == "jpg" else []
    return kind, cv2.imencode(f".{kind}", image, options)[1].tobytes()


MAKERS: dict[str, Callable[[bytes], tuple[str, bytes]]] = {
    "500": lambda data: ("jpg", data),
    "256short": _short_side,
    "256long": _long_side,
    "28": partial(_square, size=28, kind="png"),
    "32": partial(_square, size=32, kind="png"),
    "64": partial(_square, size=64, kind="jpg"),
    "64png": partial(_square, size=64, kind="png"),
}


def make_case(case: str, source: Path, dest: Path, images: int) -> None:
    """The images of `case` from the photos below `source`, in the same class folders, repeated up to `images`."""
    photos = sorted(path for path in source.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not photos:
        raise SystemExit(f"{source} has no JPEG files in class folders")
    copies = -(-images // len(photos))
    for number, path in enumerate(photos):
        suffix, data = MAKERS[case](path.read_bytes())
        folder = dest / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        first = folder / f"{number:06d}-0.{suffix}"
        first.write_bytes(data)
        for copy in range(1, copies):
            first.with_name(f"{number:06d}-{copy}.{suffix}").hardlink_to(first)


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made by `make` unless an earlier call has finished it."""
    done = folder.with_name(f"{folder.name}.done")
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        make(folder)
        done.touch()
    return folder


def facts(folder: Path) -> dict[str, int]:
    """Number of files and their mean size."""
    sizes = list(_sizes(folder))
    return {"images": len(sizes), "bytes_per_image": round(sum(sizes) / len(sizes))}


def _sizes(folder: Path) -> Iterator[int]:
    return (path.stat().st_size for path in folder.glob("*/*"))
