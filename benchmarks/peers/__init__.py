"""The loaders that are compared: one module each, or one for those of a kind.

A loader has a function `batches(data, spec)` that yields its batches for ever, epoch after epoch, tuned as its own
documentation says: uint8 arrays or tensors of `spec.batch` images. `pack(images, dest, spec)`, where it needs one,
makes the loader's own files from a folder of class folders. Both run in a process of their own.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CROP_SCALE = (0.25, 1.0)  # share of the image that a crop covers; its width / height is in 3/4 .. 4/3
QUALITY = 95  # of every JPEG that is encoded for the benchmark


@dataclass(frozen=True)
class Spec:
    """What each loader has to deliver."""

    size: int  # side of the square crops
    batch: int
    cores: int


@dataclass(frozen=True)
class Peer:
    """One loader, and what to say about it in the table."""

    title: str
    module: str  # of this package
    function: str
    decoder: str
    filter: str  # of the resize
    packer: str = ""
    needs: str = ""  # Debian packages, beside what `make bench` installs
    reads: str = "images"  # what it is given: `images`, `originals`, or the name of the peer whose pack it reads

    def batches(self, data: Path, spec: Spec) -> Iterator[Any]:
        return getattr(self._module, self.function)(data, spec)

    def pack(self, images: Path, dest: Path, spec: Spec) -> None:
        getattr(self._module, self.packer)(images, dest, spec)

    @property
    def _module(self) -> Any:
        return importlib.import_module(f"peers.{self.module}")


PEERS = {
    "ours": Peer(
        "Lightning Shards", "ours", "ours", "OpenCV", "linear to 1.25x, area beyond", packer="pack", reads="ours"
    ),
    "bare": Peer("our decoder alone", "ours", "bare", "OpenCV", "linear to 1.25x, area beyond"),
    "ffcv": Peer(
        "FFCV",
        "ffcv_peer",
        "batches",
        "libjpeg-turbo",
        "area",
        packer="pack",
        needs="g++ pkg-config libopencv-dev libturbojpeg0-dev",
        reads="ffcv",
    ),
    "dali": Peer("DALI on the CPU", "dali_peer", "batches", "nvImageCodec, decodes the crop only", "triangular"),
    "spdl": Peer("SPDL", "spdl_peer", "batches", "FFmpeg", "swscale bilinear", needs="ffmpeg"),
    "litdata": Peer(
        "litdata", "torch_peers", "litdata", "torchvision.io", "bilinear, antialiased", "pack_litdata", "litdata"
    ),
    "mosaic": Peer("Mosaic streaming", "torch_peers", "mosaic", "PIL", "bilinear, antialiased", "pack_mds", "mosaic"),
    "webdataset": Peer(
        "webdataset's README recipe", "torch_peers", "webdataset", "PIL", "bilinear, antialiased", reads="ours"
    ),
    "imagefolder": Peer("torchvision ImageFolder", "torch_peers", "imagefolder", "PIL", "bilinear, antialiased"),
    "originals": Peer(
        "ImageFolder on the 500-px originals",
        "torch_peers",
        "imagefolder",
        "PIL",
        "bilinear, antialiased",
        reads="originals",
    ),
}
