"""The rows of images whose boxes are in files of COCO's form: `images`, `annotations` and `categories` in one JSON.

The files lie beside the images, as COCO's own (`annotations/instances_train2017.json`) or Roboflow's
(`train/_annotations.coco.json`), or are named by `--coco`. Boxes go into the listing as JSON of ours.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..data.box_text import of_single_things
from ..data.file_names import is_image_file
from ..errors import InputError
from .field_columns import FieldColumn, describe_listed
from .image_files import ImageFiles
from .source_table import Row
from .spelling import SPLITS, clean, split_of

BOXES = FieldColumn("boxes", "boxes", "boxes")
_OF_BOXES = re.compile(r"(^|.*/)(annotations/instances[^/]*|_annotations\.coco)\.json")
MOST_JSON = 1 << 33  # bytes of annotations
_PARTS = ("images", "annotations", "categories")


def is_for_boxes(name: str) -> bool:
    """Whether a file's path is one that COCO or Roboflow give to annotations with boxes."""
    return name.endswith(".json") and bool(_OF_BOXES.fullmatch(name))


@dataclass(frozen=True)
class _Annotations:
    """One file in COCO's form."""

    name: str
    split: int  # -1 where its name says none
    content: Mapping[str, Any]
    categories: Mapping[int, str]  # their names by id


def coco_rows(
    root: Path, listing: Iterable[tuple[str, int]], files: ImageFiles, given: Sequence[Path], about: dict[str, Any]
) -> Iterator[Row]:
    """The images that the annotations name, in their order; `about` gets what is said of all.

    Args:
        root: the folder or zip of the images.
        listing: the paths in it, with their stamps.
        files: reads them.
        given: the files of annotations; empty: those in `listing`.

    Raises InputError for annotations that are none, and for images that are not there.
    """
    stamps = {name: stamp for name, stamp in listing if not name.endswith("/")}
    annotations = _read(root, stamps, files, given)
    classes = _classes(annotations)
    about |= {"names": list(classes), "fields": [describe_listed(BOXES, list(classes))]}
    images: dict[str, list[str]] = defaultdict(list)  # name of a file -> its paths
    for name in stamps:
        if is_image_file(name):
            images[PurePosixPath(name).name].append(name)
    taken = dict[str, str]()
    for file in annotations:
        for path, things in _images(root, file, images):
            if path in taken:
                raise InputError(f"{file.name} names the image {path}, as {taken[path]} does: leave out one")
            taken[path] = file.name
            yield Row(path, file.split, [], stamps[path], [_boxes(file, things, classes)])
    left = [path for paths in images.values() for path in paths if path not in taken]
    about |= {"ignored": len(left), "ignored_example": ascii(left[0])[1:-1] if left else ""}


def _read(root: Path, stamps: Iterable[str], files: ImageFiles, given: Sequence[Path]) -> list[_Annotations]:
    names = [name for name in stamps if name.lower().endswith(".json")]
    names = [str(path) for path in given] or [name for name in names if is_for_boxes(name)] or names
    if not names:
        raise InputError(f"{root} has no annotations in COCO's form: name the file by --coco FILE")
    found = []
    for name in sorted(names):
        try:
            content = json.loads(Path(name).read_bytes() if given else files.read(name, MOST_JSON))
        except OSError as error:
            raise InputError(f"the annotations {name} cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"the annotations {name} are no JSON ({error})") from None
        if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in _PARTS):
            raise InputError(
                f"{name} is not in COCO's form for boxes, with lists of {', '.join(_PARTS)}: name the file that is"
                " by --coco FILE"
            )
        found.append(_Annotations(name, _split(name), content, _categories(name, content["categories"])))
    return found


def _split(name: str) -> int:
    """What a word in the file's name says, such as `instances_train2017.json`, else its folder's name; -1: nothing."""
    path = PurePosixPath(name)
    words = [*re.split(r"[^A-Za-z0-9]+", path.stem), *path.parts[-2:-1]]
    return next((SPLITS.index(split) for split in map(split_of, words) if split), -1)


def _classes(annotations: Sequence[_Annotations]) -> dict[str, int]:
    """The number of each class: in the order of the categories' ids, those of the first file first."""
    found: dict[str, int] = {}
    for file in annotations:
        for _, name in sorted(file.categories.items()):
            found.setdefault(name, len(found))
    return found


def _categories(file: str, categories: Sequence[Any]) -> dict[int, str]:
    found: dict[int, str] = {}
    for one in categories:
        try:
            number, name = one["id"], clean(one["name"])
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{file}: the category {str(one)[:80]} has no id and name") from None
        if not isinstance(number, int) or number in found or name in found.values() or not name:
            raise InputError(f"{file}: the category {str(one)[:80]} is there twice, or has no name")
        found[number] = name
    return found


def _images(root: Path, file: _Annotations, there: Mapping[str, list[str]]) -> Iterator[tuple[str, list[Any]]]:
    """The path and the annotations of each image that `file` names."""
    things: dict[Any, list[Any]] = {}
    names: dict[Any, str] = {}
    for one in file.content["images"]:
        try:
            number, name = one["id"], str(one["file_name"])
            twice = number in names
        except (KeyError, TypeError):
            raise InputError(f"{file.name}: the image {str(one)[:80]} has no id and file_name") from None
        if twice:
            raise InputError(f"{file.name}: two images have the id {str(number)[:80]}")
        names[number], things[number] = name, []
    for one in file.content["annotations"]:
        try:
            things[one["image_id"]].append(one)
        except (KeyError, TypeError):
            raise InputError(f"{file.name}: the annotation {str(one)[:80]} is of no image in the file") from None
    for number, name in names.items():
        yield _find(root, file, name, there), things[number]


def _find(root: Path, file: _Annotations, name: str, there: Mapping[str, list[str]]) -> str:
    """Where an image lies that an annotation calls `name`: of several places the one nearest to the file."""
    name = name.replace("\\", "/").removeprefix("./")
    found = [path for path in there.get(PurePosixPath(name).name, []) if f"/{path}".endswith(f"/{name}")]
    if len(found) > 1:
        near = [path for path in found if path == str(PurePosixPath(file.name).parent / name)]
        found = near or [path for path in found if _named_by(file, path)] or found
    if len(found) == 1:
        return found[0]
    what = f"lies at {' and '.join(found[:2])}: keep one" if found else f"is not in {root}"
    raise InputError(f"{file.name}: the image {name[:200]} {what}")


def _named_by(file: _Annotations, path: str) -> bool:
    """Whether the annotations' name has that of one of the image's folders, as `instances_val2017` has `val2017`."""
    words = re.split(r"[^A-Za-z0-9]+", PurePosixPath(file.name).stem)
    return any(folder in words for folder in PurePosixPath(path).parts[:-1])


def _boxes(file: _Annotations, annotations: Sequence[Any], classes: Mapping[str, int]) -> str:
    """The boxes of an image, as JSON of ours; whether they can be any is seen where the image's size is known."""
    boxes, labels = list[list[float]](), list[int]()
    for one in of_single_things(annotations):
        try:
            left, top, width, height = map(float, one["bbox"])
            labels.append(classes[file.categories[one["category_id"]]])
        except (KeyError, TypeError, ValueError):
            what = "has no bbox of four numbers, or no category of the file"
            raise InputError(f"{file.name}: the annotation {str(one)[:120]} {what}") from None
        boxes.append([left, top, left + width, top + height])
    return json.dumps({"boxes": boxes, "labels": labels})
