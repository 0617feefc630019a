"""Pictures with masks out of the sample's garments: several lie on one canvas, and each pixel has its class.

    uv run python sample/compose.py sample/fashion-mnist-10k.zip data/clothes.zip

A canvas has 48 x 48 pixels and up to four garments, each at a place of its own. Where a garment is brighter than
FABRIC, the mask has its class, 1 to 10 in the order of `sample/classes.txt`. Background is 0. A dim edge, which is
neither fabric nor background for sure, is 255: it counts nowhere. What lies above covers what lies below. All chance
comes from one seed, and each garment is used once, in its own split.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path, PurePosixPath
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE, GARMENTS = 48, 4
BACKGROUND, FABRIC = 10, 40  # gray values: up to the one, and above the other; between them it is not certain
IGNORED = 255
Pixels = NDArray[np.uint8]


def compose(garments: list[tuple[int, Pixels]], chance: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Image and mask, uint8 (SIDE, SIDE) each, of garments with their classes; the first lies lowest."""
    image, mask = np.zeros((2, SIDE, SIDE), np.uint8)
    for number, garment in garments:
        height, width = garment.shape
        top, left = chance.integers(0, (SIDE - height + 1, SIDE - width + 1)).tolist()
        place = np.s_[top : top + height, left : left + width]
        fabric, edge = garment > FABRIC, (garment > BACKGROUND) & (garment <= FABRIC)
        image[place][fabric | edge] = garment[fabric | edge]
        mask[place][fabric], mask[place][edge] = number, IGNORED
    return image, mask


def read(archive: ZipFile, classes: list[str]) -> dict[str, list[tuple[int, Pixels]]]:
    """The garments of each split, with the numbers of their classes."""
    found: dict[str, list[tuple[int, Pixels]]] = {}
    for name in sorted(archive.namelist()):
        if name.endswith(".png"):
            split, kind = PurePosixPath(name).parts[-3:-1]
            pixels = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_GRAYSCALE)
            assert pixels is not None
            found.setdefault(split, []).append((classes.index(kind), pixels.astype(np.uint8)))
    return found


def write(archive: ZipFile, name: str, pixels: Pixels) -> None:
    """Add a PNG; without a date, so that the same garments make the same file."""
    archive.writestr(ZipInfo(name), cv2.imencode(".png", pixels)[1].tobytes())


def main(source: Path, dest: Path) -> None:
    """Write the pictures of all splits to the zip `dest`, all of them or none."""
    classes = (Path(__file__).parent / "classes.txt").read_text().split()
    made, chance = io.BytesIO(), np.random.Generator(np.random.Philox(0))
    with ZipFile(source) as garments, ZipFile(made, "w", ZIP_STORED) as archive:
        for split, there in read(garments, classes).items():
            order = chance.permutation(len(there)).tolist()
            while order:
                number = len(order)
                taken = [there[order.pop()] for _ in range(min(len(order), int(chance.integers(2, GARMENTS + 1))))]
                image, mask = compose(taken, chance)
                write(archive, f"{split}/images/{number:05d}.png", image)
                write(archive, f"{split}/masks/{number:05d}.png", mask)
    dest.parent.mkdir(parents=True, exist_ok=True)
    temporary = dest.with_name(f"{dest.name}.tmp")
    temporary.write_bytes(made.getvalue())
    temporary.replace(dest)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("give two files: the sample's zip, and the one to write")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
