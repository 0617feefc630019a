"""Files in a folder or in a zip: which there are, and what is in one; for `pack` and its processes, and `predict`."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.file_names import is_system_file
from ..errors import InputError

MOST_BYTES = 1 << 28  # no image file is larger; a zip bomb would be
MOST_DEEP = 200  # folders within each other
_LOCAL_HEADER = 30  # bytes of it before the name
_MEMBER = np.dtype([("hash", "u8"), ("offset", "i8"), ("size", "i8"), ("check", "u4"), ("method", "i2")])
_ODD = ("\\", "..", ":", "||", "|/", "|.", "| ", " |")  # in paths with a stroke between them
_UNREADABLE = -1  # as a method: encrypted, or packed in a rare way


class ImageFiles:
    """The files below the folder or in the zip `root`, by their paths.

    Args:
        root: a folder or a zip.
        members: where those of a zip lie, as `list_zip` found them.
    """

    def __init__(self, root: Path, members: NDArray[Any] | None = None) -> None:
        self.root, self._members, self._zip = root, members, -1
        if members is not None:
            self._zip = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
            self._bytes = os.fstat(self._zip).st_size

    def close(self) -> None:
        if self._zip >= 0:
            os.close(self._zip)
            self._zip = -1

    def read(self, path: str, most: int | None = None) -> bytes:
        """A file's bytes, at `most` so many, else as many as an image may have.

        Raises OSError or ValueError where it is missing, damaged or larger.
        """
        most = MOST_BYTES if most is None else most
        data = self._read_file(path, most) if self._members is None else self._read_member(path, most)
        if len(data) > most:
            raise ValueError(f"is larger than {most >> 20} MB")
        return data

    def _read_file(self, path: str, most: int) -> bytes:
        try:
            file = os.open(self.root / path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            other = next((form for form in _forms(path) if (self.root / form).exists()), None)
            if other is None:
                raise
            file = os.open(self.root / other, os.O_RDONLY | os.O_CLOEXEC)
        try:  # to read `most` would take that much memory for a while
            size = min(os.fstat(file).st_size, most) + 1
            if size <= MOST_BYTES:
                return os.read(file, size)
            with open(file, "rb", closefd=False) as whole:  # one call gives 2 GB at most
                return whole.read(size)
        finally:
            os.close(file)

    def _read_member(self, path: str, most: int) -> bytes:
        members, place = self._members, _hash(path)
        assert members is not None
        found = int(np.searchsorted(members["hash"], place))
        if found == len(members) or members["hash"][found] != place:
            raise ValueError("is not in the zip")
        _, offset, size, check, method = members[found].tolist()
        if method == _UNREADABLE:
            raise ValueError("is encrypted or packed in a rare way: unzip it first")
        head = os.pread(self._zip, _LOCAL_HEADER, offset)
        skip = _LOCAL_HEADER + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        if head[:4] != b"PK\3\4" or offset + skip + size > self._bytes:
            raise ValueError("is damaged in the zip: it does not lie where the zip says")
        if size > most:
            raise ValueError(f"is larger than {most >> 20} MB")
        data = self._bytes_at(offset + skip, size)
        try:
            if method == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-15).decompress(data, most + 1)
        except zlib.error as error:
            raise ValueError(f"is damaged in the zip ({error})") from None
        if zlib.crc32(data) != check and len(data) <= most:
            raise ValueError("is damaged in the zip: wrong checksum")
        return data

    def _bytes_at(self, offset: int, size: int) -> bytes:
        data = os.pread(self._zip, size, offset)
        while 0 < len(data) < size and (more := os.pread(self._zip, size - len(data), offset + len(data))):
            data += more  # one call gives 2 GB at most
        return data


def _forms(path: str) -> Iterator[str]:
    """The same name as other systems write it: letters with marks in one piece or in two."""
    return (unicodedata.normalize(form, path) for form in ("NFC", "NFD") if not path.isascii())


def _hash(name: str) -> np.uint64:
    name = name if name.isascii() else unicodedata.normalize("NFC", name)
    return np.uint64(int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little"))


def check_root(images: Path) -> None:
    """Raise InputError where the paths of a table can lie below no such place."""
    if not images.is_dir() and not (images.is_file() and images.suffix.lower() == ".zip"):
        raise InputError(f"--images {images} is no folder and no zip")


def list_zip(path: Path) -> tuple[list[str], NDArray[Any]]:
    """The names of a zip's files and empty folders, sorted as `walk` does, and where each lies, by their hashes.

    `zipfile` takes about 1 kB of memory a member while it lists; reading does not go through it. Names are made those
    of a path with slashes: some programs write backslashes. Raises InputError for what is no zip, and for names that
    point out of it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {_name(member): member for member in archive.infolist()}  # of two, the last, as unzip does
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OverflowError, IndexError) as error:
        if isinstance(cause := error.__context__, OSError) and cause.errno == errno.EIO:  # zipfile calls it no zip
            raise InputError(f"{path} cannot be read ({cause.strerror})") from None
        raise InputError(f"{path} is no whole zip ({error}): copy or download it again") from None
    for name in members:
        if name.startswith("/") or ".." in name.split("/") or re.match("[A-Za-z]:", name):
            raise InputError(f"{path}: member {name!r} points out of the zip; such a zip is not read")
    size = path.stat().st_size  # places behind it would not go into the table
    rows = [
        (
            _hash(name), min(member.header_offset, size), min(member.compress_size, size), member.CRC,
            member.compress_type
            if not member.flag_bits & 1 and member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            else _UNREADABLE,
        )
        for name, member in members.items()
    ]  # fmt: skip
    names = sorted((name for name in members if not _hidden(name)), key=lambda name: name.split("/"))
    return names, np.sort(np.array(rows, _MEMBER), order="hash")


def _name(member: zipfile.ZipInfo) -> str:
    name = member.filename
    if not name.isascii() and not member.flag_bits & 0x800:  # some write UTF-8 and do not say so
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/").removeprefix("./")


def walk(folder: Path, prefix: str = "", above: tuple[Path, ...] = ()) -> Iterator[tuple[str, int]]:
    """Relative path and stamp of each file, sorted; an empty folder as `path/`. Links are followed.

    Hidden files, and folders that a system made, are left out.
    """
    if folder.resolve() in above:
        raise InputError(f"{folder} is a link to a folder above itself; remove it")
    if len(above) > MOST_DEEP:
        raise InputError(f"{folder} lies more than {MOST_DEEP} folders deep")
    entries = sorted((entry for entry in os.scandir(folder) if not entry.name.startswith(".")), key=lambda e: e.name)
    if not entries and prefix:
        yield prefix, 0
    for entry in entries:
        if entry.is_dir():
            if not is_system_file(entry.name):
                yield from walk(folder / entry.name, f"{prefix}{entry.name}/", (*above, folder.resolve()))
        elif entry.is_file() or entry.is_symlink():  # a broken link is found when it is read; no pipes and sockets
            stat = entry.stat(follow_symlinks=entry.is_file())
            yield prefix + entry.name, stat.st_mtime_ns ^ stat.st_size


def _hidden(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return file.startswith(".") or (folder != "" and is_system_file(folder))


def are_plain(paths: Sequence[object]) -> bool:
    """Whether `below` leaves all these cells as they are, as nearly all are; false where that takes a closer look."""
    try:
        text = f"|{'|'.join(paths)}|"  # type: ignore[arg-type]
    except TypeError:  # a list among them
        return False
    return text.isascii() and text.isprintable() and not any(odd in text for odd in _ODD)


def below(root: Path, path: str, where: str) -> str:
    """The path in a table's cell as one below `root`, whichever system wrote it. Raises InputError, with `where`."""
    found = path.strip().replace("\\", "/").removeprefix("./")
    if "://" in found:
        raise InputError(f"{where} has the URL {path[:300]!r}: fetch the images first, and give the paths of files")
    if found.startswith("/"):  # absolute paths are common, and fine below the root
        found = found.removeprefix(f"{root}".rstrip("/") + "/")
    if found.startswith("/"):
        folder, _, name = found.rpartition("/")
        found = _through_links(root, folder) + name
    if not found or found.startswith("/") or ".." in found.split("/") or re.match("[A-Za-z]:", found):
        raise InputError(f"{where} has the path {path[:300]!r}; paths must lie below {root}/ (or below --images)")
    return found


@lru_cache(1 << 14)
def _through_links(root: Path, folder: str) -> str:
    """An absolute folder as one below `root`, with a slash at its end, where links lead there; else as it is."""
    right, above = os.path.realpath(root), folder
    while above not in ("/", ""):
        if os.path.realpath(above) == right:
            return f"{folder}/"[len(above) + 1 :]
        above = above.rpartition("/")[0]
    return f"{folder}/"
