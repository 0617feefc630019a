"""What is trained on: photos with a short side of 256 pixels, as files and packed, and the project's sample images.

The packed shards get further names, by links, so that an epoch has 128,000: with fewer, a fast GPU
would spend its time at the ends of epochs.
"""

from __future__ import annotations

import functools
from pathlib import Path

import photos
from lightning_shards.forecasting.pack_forecast import repeat_shards
from peers import PEERS, Spec

from . import Figures, Setup, call

PHOTOS, FILES, EPOCH = 1_000, 16_000, 128_000
TRIAL = 40, 640, 6_400  # the same in a trial


def figures(setup: Setup) -> Figures:
    made, files, epoch = TRIAL if setup.quick else (PHOTOS, FILES, EPOCH)
    setup.work.mkdir(parents=True, exist_ok=True)
    source = setup.photos or photos.once(setup.work / "photos", lambda path: photos.make_photos(path, made))
    make = functools.partial(photos.make_case, "256short", source, images=files)
    yield "photos", photos.facts(photos.once(setup.images, make))
    yield "packed", photos.once(setup.dataset, lambda path: packed(setup.images, path, epoch)).name
    if not Path("data/sample/dataset.json").exists():
        call(["-m", "lightning_shards", "pack", "sample/fashion-mnist-10k.zip", "data/sample"])
    yield "sample", "data/sample"


def packed(images: Path, dest: Path, epoch: int) -> None:
    PEERS["ours"].pack(images, dest, Spec(224, 128, 1))
    repeat_shards(dest, epoch)
