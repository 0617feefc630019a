"""The loaders that are compared: one module each, or one for those of a kind.

A loader has a function `batches(data, spec)` that yields its batches for ever, epoch after epoch, tuned as its own
documentation says: uint8 arrays or tensors of `spec.batch` images. `pack(images, dest, spec)`, where it needs one,
makes the loader's own files from a folder of class folders. A function `crop(data, box, size)` decodes one image and
gives the box (top, left, height, width) as the loader would, to compare pixels. All run in processes of their own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CROP_SCALE = (0.25, 1.0)  # share of the image that a crop covers; its width / height is in 3/4 .. 4/3
Box = tuple[int, int, int, int]
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
    crop: str = "crop"
    needs: str = ""  # Debian packages, beside what `make bench` installs
    reads: str = "images"  # what it is given: `images`, `originals`, or the name of the peer whose pack it reads

    def batches(self, data: Path, spec: Spec) -> Iterator[Any]:
        return getattr(self._module, self.function)(data, spec)

    @property
    def pixels(self) -> str:
        """The same for loaders that decode, crop and resize alike."""
        return f"{self.module}.{self.crop}"

    def cropper(self) -> Callable[[bytes, Box, int], Any]:
        return getattr(self._module, self.crop)

    def pack(self, images: Path, dest: Path, spec: Spec) -> None:
        getattr(self._module, self.packer)(images, dest, spec)

    @property
    def _module(self) -> Any:
        return importlib.import_module(f"peers.{self.module}")


_OURS = ("simplejpeg, first rows; else OpenCV", "linear, of blurred pixels beyond 1.25x")
_PIL = ("PIL", "bilinear, antialiased")
PEERS = {
    "ours": Peer("Lightning Shards", "ours", "ours", *_OURS, packer="pack", reads="ours"),
    "bare": Peer("our decoder alone", "ours", "bare", *_OURS),
    "ffcv": Peer(
        "FFCV",
        "ffcv_peer",
        "batches",
        "libjpeg-turbo",
        "area",
        packer="pack",
        reads="ffcv",
        needs="g++ pkg-config libopencv-dev libturbojpeg0-dev",
    ),
    "dali": Peer("DALI on the CPU", "dali_peer", "batches", "nvImageCodec, only the crop", "triangular"),
    "spdl": Peer("SPDL", "spdl_peer", "batches", "FFmpeg", "bilinear of swscale", needs="ffmpeg"),
    "litdata": Peer(
        "litdata",
        "torch_peers",
        "litdata",
        "torchvision.io",
        "bilinear, antialiased",
        packer="pack_litdata",
        crop="crop_tensor",
        reads="litdata",
    ),
    "mosaic": Peer(
        "Mosaic streaming", "torch_peers", "mosaic", *_PIL, crop="crop_pil", packer="pack_mosaic", reads="mosaic"
    ),
    "webdataset": Peer(
        "recipe of webdataset's README", "torch_peers", "webdataset", *_PIL, crop="crop_pil", reads="ours"
    ),
    "imagefolder": Peer("torchvision ImageFolder", "torch_peers", "imagefolder", *_PIL, crop="crop_pil"),
    "originals": Peer(
        "ImageFolder on the originals", "torch_peers", "imagefolder", *_PIL, crop="crop_pil", reads="originals"
    ),
}
# What a team adds to the loader, beside the loader alone and webdataset's recipe; `loaders.py --doors` compares them.
DOORS = {
    "ours": PEERS["ours"],
    "no-op": Peer("with a transform that does nothing", "doors", "no_op", *_OURS, reads="ours"),
    "mask": Peer("with a mask beside the image", "doors", "mask", *_OURS, packer="pack_masks", reads="mask"),
    "torchvision": Peer("with torchvision's TrivialAugmentWide", "doors", "torchvision", *_OURS, reads="ours"),
    "webdataset-torchvision": Peer(
        "webdataset's recipe with TrivialAugmentWide", "doors", "webdataset", *_PIL, reads="ours"
    ),
    "samples": Peer("webdataset's stages behind ShardSamples", "doors", "samples", *_PIL, reads="ours"),
    "webdataset": PEERS["webdataset"],
}
ALL = PEERS | DOORS
