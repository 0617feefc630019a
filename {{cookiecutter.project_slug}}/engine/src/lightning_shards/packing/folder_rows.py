"""The rows of a folder or of a zip: class folders, `images/` beside `masks/`, or images with COCO's annotations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..data.file_names import is_image_file
from ..errors import InputError
from .coco import coco_rows, is_for_boxes
from .field_columns import FieldColumn, describe_listed
from .image_files import MOST_DEEP, ImageFiles, walk
from .source_table import Row
from .spelling import SPLITS, clean, split_of, split_within

Tree = dict[str, dict[str, dict[str, Any]]]  # folder -> folders in it -> folders in these
Files = list[tuple[str, int]] | None  # of a zip, as `walk` gives them
IMAGES, MASKS = "images", "masks"
_MASK = FieldColumn("mask", MASKS, "mask")


def folder_rows(
    root: Path, files: Files, reader: ImageFiles, coco: Sequence[Path], about: dict[str, Any]
) -> Iterator[Row]:
    """The images of a folder, or of a zip's `files`, with or without split folders; `about` gets what is said of all.

    Where there are folders `images` and `masks`, and no others, each image has the mask of the same name. Where there
    are annotations with boxes, in the folder or in the files `coco`, each image that they name has its boxes.
    """
    (tree, annotated), lead = _tree(root, files), ""
    if about["task"] == "detection" or (annotated and about["task"] is None):
        about["task"] = "detection"
        return coco_rows(root, _listed(root, files), reader, coco, about)
    while (wrapper := _wrapper(tree)) and lead.count("/") < MOST_DEEP:
        lead, tree = f"{lead}{wrapper}/", tree[wrapper]
        if _wrapper(tree):  # of what lies deeper too little is known
            tree, _ = _tree(root, files, lead)
    about |= {"lead": lead, "ignored": 0, "ignored_example": ""}
    if (depth := _depth_of_masks(tree)) is not None:
        about |= {"task": "segmentation", "fields": [describe_listed(_MASK)]}
        return _masked_rows(root, files, about, depth)
    about["task"] = "single_label"
    return _class_rows(root, files, about, _splits(root, lead, tree))


def _tree(root: Path, files: Files, lead: str = "") -> tuple[Tree, bool]:
    """Three levels of the folders below `lead`, and whether there are annotations with boxes, by their names."""
    tree: Tree = {}
    annotated = False
    for name, _ in _listed(root, files):
        annotated = annotated or is_for_boxes(name)
        place: dict[str, Any] = tree
        for folder in name[len(lead) :].split("/", 4)[:-1][:3] if name.startswith(lead) else ():
            place = place.setdefault(folder, {})
    return tree, annotated


def _listed(root: Path, files: Files) -> Iterable[tuple[str, int]]:
    return walk(root) if files is None else files  # of a zip there may be none


def _wrapper(tree: Tree) -> str:
    """The one folder that holds all others, such as a zip's; empty where there is none."""
    only = next(iter(tree), "")
    return only if len(tree) == 1 and tree[only] and not split_of(only) else ""


def _splits(root: Path, lead: str, tree: Tree) -> dict[str, str]:
    """The split of each folder, if all are one."""
    splits = {top: split for top in sorted(tree) if (split := split_of(top))}
    if len(splits) > 1 and splits.keys() != tree.keys():
        raise InputError(f"{root} has split folders beside {min(tree.keys() - splits)!r}: keep one or the other")
    if not splits or splits.keys() != tree.keys():
        _check_classes(root, tree)
        return {}
    if twice := [top for top in splits if list(splits.values()).count(splits[top]) > 1]:
        raise InputError(f"{root} has the folders {', '.join(twice)} for one split: put their images into one folder")
    if not any(tree[top] for top, split in splits.items() if split == "train"):
        raise InputError(f"{root} has split folders, but no {lead}train/<class>/<image>: put images to train on there")
    return splits


def _check_classes(root: Path, tree: Tree) -> None:
    """Raise InputError where folders taken for classes look like splits: `seg_train` and `seg_test`, or `cat/train`."""
    rests: dict[str, dict[str, str]] = {}  # a name without its split -> split -> the name
    for top in sorted(tree):
        if found := split_within(top):
            rests.setdefault(found[1], {})[found[0]] = top
    if twins := next((names for names in rests.values() if "train" in names and len(names) > 1), None):
        raise InputError(
            f"{root} has the folders {', '.join(sorted(twins.values()))}, which look like splits: name them train,"
            " val and test, with the class folders in them"
        )
    inner = sorted({folder for folders in tree.values() for folder in folders})
    if len({split_of(folder) for folder in inner} - {None}) > 1 and all(map(split_of, inner)):
        raise InputError(
            f"{root} has the folders {', '.join(inner)} in its class folders: put split folders above the classes,"
            " as in train/<class>/<image>"
        )


def _class_rows(root: Path, files: Files, about: dict[str, Any], splits: dict[str, str]) -> Iterator[Row]:
    lead, depth, seen, declared = about["lead"], bool(splits), set[str](), set[str]()
    for name, stamp in _listed(root, files):
        parts = name.removeprefix(lead).split("/")
        inside = len(parts) >= 2 + depth and name.startswith(lead)
        if inside:
            declared.add(parts[depth])
        if inside and not name.endswith("/") and is_image_file(name):
            seen.add(parts[depth])
            split = SPLITS.index(splits[parts[0]]) if splits else -1
            yield Row("/".join(parts), split, [clean(parts[depth])], stamp)
        elif not name.endswith("/"):
            _ignore(about, name)
    if declared - seen:
        raise InputError(f"{root}: class folder {min(declared - seen)!r} has no image; fill it or remove it")


def _ignore(about: dict[str, Any], name: str) -> None:
    about["ignored"] += 1
    about["ignored_example"] = about["ignored_example"] or ascii(name)[1:-1]


def _depth_of_masks(tree: Tree) -> int | None:
    """0 for `images/` and `masks/`, which may have split folders in them; 1 for them in split folders; else None."""
    if {top.lower() for top in tree} == {IMAGES, MASKS}:
        return 0
    within = {folder.lower() for folders in tree.values() for folder in folders}
    return 1 if within == {IMAGES, MASKS} and all(map(split_of, tree)) else None


def _masked_rows(root: Path, files: Files, about: dict[str, Any], depth: int) -> Iterator[Row]:
    lead, stamp_of, masks, images = about["lead"], _stamps(root, files), 0, 0
    for name, stamp in _listed(root, files):
        parts = name.removeprefix(lead).split("/")
        kind = parts[depth].lower() if len(parts) > depth + 1 and name.startswith(lead) else ""
        if kind == IMAGES and is_image_file(name) and parts[-1]:
            images += 1
            found = ((mask, stamp_of(lead + mask)) for mask in _masks_of(parts, depth))
            mask, mask_stamp = next(((mask, when) for mask, when in found if when is not None), ("", 0))
            if not mask:
                wanted = lead + next(_masks_of(parts, depth))
                raise InputError(f"{root}: {name} has no mask {wanted}: add it, or take the image away")
            split = split_of(parts[0]) if depth else split_of(parts[1]) if len(parts) > 2 else None
            yield Row("/".join(parts), SPLITS.index(split) if split else -1, [], stamp ^ mask_stamp, [mask])
        elif kind == MASKS and name.lower().endswith(".png"):
            masks += 1
        elif parts[-1]:
            _ignore(about, name)
    if masks > images:
        about["ignored"] += masks - images
        about["ignored_example"] = about["ignored_example"] or f"{masks - images} masks without an image"


def _masks_of(parts: list[str], depth: int) -> Iterator[str]:
    """Where the mask of an image may lie: a PNG of the same name in the folder of masks."""
    stem = parts[-1].rpartition(".")[0] or parts[-1]
    for folder in (MASKS, MASKS.capitalize(), MASKS.upper()):
        for suffix in ("png", "PNG"):
            yield "/".join((*parts[:depth], folder, *parts[depth + 1 : -1], f"{stem}.{suffix}"))


def _stamps(root: Path, files: Files) -> Callable[[str], int | None]:
    """A function from a file's path to its stamp, None where there is no such file."""
    if files is not None:
        names = {name for name, _ in files}
        return lambda name: 0 if name in names else None

    def stamp(name: str) -> int | None:
        with suppress(OSError):
            stat = (root / name).stat()
            return stat.st_mtime_ns ^ stat.st_size
        return None

    return stamp
