"""The folder that `predict --masks` writes: a mask for each image, under the image's own name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..data.decode import Pixels
from ..data.mask_file import PALETTE_END, has_our_palette, palette_png
from ..errors import InputError, RunError
from ..files import fsync_folder, writing


class MaskFolder:
    """Files below `folder`, which will be called `named`."""

    def __init__(self, folder: Path, named: Path) -> None:
        self.folder, self._named = folder, named

    def write(self, name: str, mask: Pixels) -> str:
        """Write the mask of the image called `name`; returns its path in the folder.

        That is the image's with the ending .png; where another image has it already, .png comes behind its own ending,
        as often as it takes.
        Raises RunError for a name that leads out of the folder.
        """
        parts = [part for part in PurePosixPath(name).parts if part != "/"]
        if not parts or ".." in parts:
            raise RunError(f"{name!a} is no name for a file below {self._named}: rename the image")
        place = self.folder.joinpath(*parts).with_suffix(".png")
        name = parts[-1]
        with writing(self._named):
            while place.exists():
                place = place.with_name(name := f"{name}.png")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(palette_png(mask))
        return place.relative_to(self.folder).as_posix()


def check_new_folder(folder: Path, force: bool) -> None:
    """Raise InputError for a folder that cannot be written, or that would replace one without `force`."""
    if not folder.absolute().parent.is_dir():
        raise InputError(f"there is no folder {folder.parent} to write {folder.name} into")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder: choose another name")
    if folder.is_dir() and not holds_masks_alone(folder):
        raise InputError(f"{folder} exists and has other files than masks: choose another name")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise InputError(f"{folder} exists: choose another name, or replace it by --force")


def holds_masks_alone(folder: Path) -> bool:
    """Whether all files in it are masks as `predict` writes them, with its palette: no person's own images."""
    return all(path.is_dir() or _is_ours(path) for path in folder.rglob("*"))


def _is_ours(path: Path) -> bool:
    if not path.is_file():  # a pipe would be waited for
        return False
    with path.open("rb") as file:
        return has_our_palette(file.read(PALETTE_END))


@contextmanager
def replacing_folder(folder: Path | None) -> Iterator[MaskFolder | None]:
    """A folder to write into, which gets the name `folder` at the end: there are all masks or none. None: none."""
    if folder is None:
        yield None
        return
    folder = folder.absolute()
    work, old = (folder.with_name(f".{folder.name}.{what}") for what in ("predicting", "old"))
    shutil.rmtree(work, ignore_errors=True)
    try:
        with writing(folder):
            work.mkdir()
            yield MaskFolder(work, folder)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)
            work.rename(folder)
            fsync_folder(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
