"""Boxes that were found, as a file in COCO's form: images, categories, and an annotation with a score for each box."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

from ..files import replacing, writing
from .predict import Prediction


class CocoFile:
    """Writes images as they come; their annotations wait in a second file.

    Args:
        images: the file, open.
        annotations: a file that is gone afterwards.
        classes: their names; the id of a category is its number + 1.
    """

    def __init__(self, images: TextIO, annotations: TextIO, classes: Sequence[str]) -> None:
        self._images, self._annotations, self._count, self._boxes = images, annotations, 0, 0
        categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
        images.write(json.dumps({"categories": categories}).removesuffix("}") + ',\n"images": [\n')

    def add(self, of: Prediction) -> None:
        """An image with all of its boxes, however sure. One that could not be decoded is left out."""
        if of.boxes is None:
            return
        self._images.write(",\n" * (self._count > 0))
        self._count += 1
        height, width = of.size
        json.dump({"id": self._count, "file_name": of.name, "width": width, "height": height}, self._images)
        for left, top, right, bottom, score, number in of.boxes.astype(float).round(6).tolist():
            self._annotations.write(",\n" * (self._boxes > 0))
            self._boxes += 1
            bbox = [round(value, 3) for value in (left, top, right - left, bottom - top)]
            about = {"id": self._boxes, "image_id": self._count, "category_id": int(number) + 1, "bbox": bbox}
            json.dump({**about, "area": round(bbox[2] * bbox[3], 2), "iscrowd": 0, "score": score}, self._annotations)

    def finish(self) -> None:
        self._images.write('],\n"annotations": [\n')
        self._annotations.seek(0)
        shutil.copyfileobj(self._annotations, self._images)
        self._images.write("]}\n")


@contextmanager
def coco_file(path: Path | None, classes: Sequence[str]) -> Iterator[CocoFile | None]:
    """A file to add images to, which is there when all were added. None: none is written."""
    if path is None:
        yield None
        return
    with (
        writing(path),
        replacing(path) as new,
        new.open("w", encoding="utf-8", errors="surrogateescape") as file,
        TemporaryFile("w+", dir=path.parent, encoding="utf-8") as annotations,
    ):
        made = CocoFile(file, annotations, classes)
        yield made
        made.finish()
