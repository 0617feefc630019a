"""Make the sample images that every generated project ships, from Debian's package `dataset-fashion-mnist`.

    apt install dataset-fashion-mnist
    python benchmarks/make_sample.py [FOLDER WITH THE FOUR .gz FILES]

Writes `sample/fashion-mnist-10k.zip` (folders <split>/<class>/<number>.png) and `sample/targets.csv` (other
targets for the same images). Nothing is random: the first images of each class in the order of the original
files, so the same libraries write the same bytes. The pictures for training come from the original training
file, those for validation and test from the original test file.
"""

from __future__ import annotations

import csv
import gzip
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

SAMPLE = Path(__file__).parents[1] / "{{cookiecutter.project_slug}}" / "sample"
# class -> attributes for the multi-label task; the set of attributes tells the class
CLASSES = {
    "t-shirt": "upper-body|sleeves",
    "trouser": "lower-body",
    "pullover": "upper-body|sleeves|warm",
    "dress": "upper-body|lower-body",
    "coat": "upper-body|sleeves|buttons|warm",
    "sandal": "footwear",
    "shirt": "upper-body|sleeves|buttons",
    "sneaker": "footwear|closed-shoe",
    "bag": "bag",
    "ankle-boot": "footwear|closed-shoe|warm",
}
# split -> (original file, first and last of each class's images in it)
SPLITS = {"train": ("train", 0, 800), "val": ("t10k", 0, 100), "test": ("t10k", 100, 200)}


def read(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, 28, 28) and classes (N,) of one original pair of files (IDX: headers of 16 and 8 bytes)."""
    images = gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes())[8:]
    return np.frombuffer(images, np.uint8).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8)


def main(folder: Path) -> None:
    """Write the zip and the table."""
    SAMPLE.mkdir(parents=True, exist_ok=True)
    rows = []
    with zipfile.ZipFile(
        SAMPLE / "fashion-mnist-10k.zip", "w", zipfile.ZIP_STORED
    ) as archive:  # PNG is compressed already
        for split, (original, first, last) in SPLITS.items():
            images, labels = read(folder, original)
            for number, (name, attributes) in enumerate(CLASSES.items()):
                for place in np.flatnonzero(labels == number)[first:last]:
                    path = f"{split}/{name}/{place:05d}.png"
                    png = cv2.imencode(".png", images[place], [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
                    entry = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
                    entry.external_attr = 0o644 << 16
                    archive.writestr(entry, png.tobytes())
                    rows.append((path, split, attributes, f"{images[place].mean() / 255:.4f}"))
    with (SAMPLE / "targets.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "split", "attributes", "coverage"))
        table.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist"))
