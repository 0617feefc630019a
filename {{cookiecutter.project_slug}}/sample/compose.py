"""Pictures with masks or boxes out of the sample's garments: several lie on one canvas, and each pixel has its class.

    uv run python sample/compose.py sample/fashion-mnist-10k.zip data/clothes.zip
    uv run python sample/compose.py sample/fashion-mnist-10k.zip data/clothes.zip --boxes

A canvas has 48 x 48 pixels, or 64 x 64 for boxes, and up to four garments, each at a place of its own. Where a garment
is brighter than FABRIC, the mask has its class, 1 to 10 in the order of `sample/classes.txt`. Background is 0. A dim
edge, which is neither fabric nor background for sure, is 255: it counts nowhere. What lies above covers what lies
below. A box is drawn around what is seen of a garment, where that is a third of it or more; boxes are annotations in
COCO's form. All chance comes from one seed, and each garment is used once, in its own split.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import cv2
import numpy as np
from numpy.typing import NDArray

GARMENTS, SIDES = 4, {"masks": 48, "boxes": 64}
BACKGROUND, FABRIC = 10, 40  # gray values: up to the one, and above the other; between them it is not certain
IGNORED = 255
SEEN = 1 / 3  # of a garment, so that it has a box
Pixels = NDArray[np.uint8]
Garment = tuple[int, Pixels]  # its class, and what it looks like


def compose(garments: list[Garment], side: int, chance: np.random.Generator) -> tuple[Pixels, Pixels, NDArray[Any]]:
    """Image and mask, uint8 (side, side) each, of garments, of which the first lies lowest; and which of them each
    pixel is of, counted from 1."""
    image, mask, whose = np.zeros((3, side, side), np.uint8)
    for place, (number, garment) in enumerate(garments, 1):
        height, width = garment.shape
        top, left = chance.integers(0, (side - height + 1, side - width + 1)).tolist()
        there = np.s_[top : top + height, left : left + width]
        fabric, edge = garment > FABRIC, (garment > BACKGROUND) & (garment <= FABRIC)
        image[there][fabric | edge] = garment[fabric | edge]
        mask[there][fabric], mask[there][edge] = number, IGNORED
        whose[there][fabric], whose[there][edge] = place, 0
    return image, mask, whose


def boxes(garments: list[Garment], whose: NDArray[Any]) -> list[tuple[int, list[int]]]:
    """Class, and left, top, width and height, of each garment of which enough is seen."""
    found = []
    for place, (number, garment) in enumerate(garments, 1):
        rows, columns = (np.flatnonzero((whose == place).any(axis)) for axis in (1, 0))
        if (whose == place).sum() >= SEEN * (garment > FABRIC).sum() > 0:
            left, top = int(columns[0]), int(rows[0])
            found.append((number, [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]))
    return found


def read(archive: ZipFile, classes: list[str]) -> dict[str, list[Garment]]:
    """The garments of each split, with the numbers of their classes."""
    found: dict[str, list[Garment]] = {}
    for name in sorted(archive.namelist()):
        if name.endswith(".png"):
            split, kind = PurePosixPath(name).parts[-3:-1]
            pixels = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_GRAYSCALE)
            assert pixels is not None
            found.setdefault(split, []).append((classes.index(kind), pixels.astype(np.uint8)))
    return found


def write(archive: ZipFile, name: str, content: Pixels | dict[str, Any]) -> None:
    """Add a PNG or JSON; without a date, so that the same garments make the same file."""
    data = json.dumps(content) if isinstance(content, dict) else cv2.imencode(".png", content)[1].tobytes()
    archive.writestr(ZipInfo(name), data)


def main(source: Path, dest: Path, what: str) -> None:
    """Write the pictures of all splits to the zip `dest`, all of them or none; `what`: masks or boxes."""
    classes = (Path(__file__).parent / "classes.txt").read_text().split()
    made, chance = io.BytesIO(), np.random.Generator(np.random.Philox(0))
    with ZipFile(source) as garments, ZipFile(made, "w", ZIP_STORED) as archive:
        for split, there in read(garments, classes).items():
            order = chance.permutation(len(there)).tolist()
            images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
            while order:
                number = len(order)
                taken = [there[order.pop()] for _ in range(min(len(order), int(chance.integers(2, GARMENTS + 1))))]
                image, mask, whose = compose(taken, SIDES[what], chance)
                write(archive, f"{split}/images/{number:05d}.png", image)
                if what == "masks":
                    write(archive, f"{split}/masks/{number:05d}.png", mask)
                images.append({"id": number, "file_name": f"{number:05d}.png"})
                for kind, box in boxes(taken, whose):
                    about = {"id": len(annotations) + 1, "image_id": number, "category_id": kind, "bbox": box}
                    annotations.append({**about, "area": box[2] * box[3], "iscrowd": 0})
            if what == "boxes":
                categories = [{"id": kind, "name": name} for kind, name in enumerate(classes) if kind]
                content = {"images": images, "annotations": annotations, "categories": categories}
                write(archive, f"annotations/instances_{split}.json", content)
    dest.parent.mkdir(parents=True, exist_ok=True)
    temporary = dest.with_name(f"{dest.name}.tmp")
    temporary.write_bytes(made.getvalue())
    temporary.replace(dest)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or sys.argv[3:] not in ([], ["--boxes"]):
        sys.exit("give two files: the sample's zip, and the one to write; and --boxes for boxes in place of masks")
    main(Path(sys.argv[1]), Path(sys.argv[2]), "boxes" if sys.argv[3:] else "masks")
