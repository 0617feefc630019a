"""Fashion-MNIST whole, as a packed dataset: its 60,000 images to train on, its 10,000 to test on.

The four original files are Debian's (package `dataset-fashion-mnist`) or downloaded by torchvision. The dataset has no
validation split: what is chosen is chosen on a part of the training images, and by nobody's look at the test images.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from make_sample import CLASSES, read

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
ORIGINALS = {"train": "train", "test": "t10k"}  # split -> begin of the original files' names


def complete(folder: Path) -> bool:
    """Whether a folder has the four files."""
    kinds = ("images-idx3", "labels-idx1")
    return all((folder / f"{name}-{kind}-ubyte.gz").is_file() for name in ORIGINALS.values() for kind in kinds)


def originals(download: Path) -> Path:
    """The folder of the four files: Debian's, or below `download`, where torchvision puts them."""
    if complete(DEBIAN):
        return DEBIAN
    import torchvision

    torchvision.datasets.FashionMNIST(str(download), download=True)
    return download / "FashionMNIST" / "raw"


def pack_whole(source: Path, dest: Path) -> None:
    """The originals' images as PNG in class folders of a zip, packed; the zip lies beside `dest` meanwhile."""
    import cv2

    archive = dest.with_suffix(".zip")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for split, original in ORIGINALS.items():
            images, labels = read(source, original)
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                png = cv2.imencode(".png", image)[1].tobytes()
                file.writestr(f"{split}/{list(CLASSES)[label]}/{number:05d}.png", png)
    pack = ["-m", "lightning_shards", "pack", str(archive.absolute()), str(dest.absolute()), "--val", "0"]
    subprocess.run([sys.executable, *pack], check=True, stdout=subprocess.DEVNULL)
    archive.unlink()
