"""Arrays out of a NumPy zip that anybody may have made: no pickles, and never more memory than the file is long."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 1 << 30
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# NumPy parses headers by `ast`, in which CPython 3.11 fails now and then where threads take turns (gh-106905).
_parsing = threading.Lock()


def read_arrays(path: Path, kinds: Mapping[str, tuple[str, int]]) -> dict[str, NDArray[Any]]:
    """The arrays of the file `path`: `kinds` says of which type and how many dimensions.

    Raises for a file that is missing, damaged, compressed or lacks one, whatever zipfile and NumPy raise.
    """
    with path.open("rb") as file, zipfile.ZipFile(io.BytesIO(file.read(MOST_BYTES))) as archive:
        return {name: _read_array(archive, f"{name}.npy", *kind) for name, kind in kinds.items()}


def _read_array(archive: zipfile.ZipFile, name: str, kind: str, dimensions: int) -> NDArray[Any]:
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    content = io.BytesIO(archive.read(member))  # checks its CRC-32
    with _parsing:
        shape, turned, dtype = _HEADERS[np.lib.format.read_magic(content)](content)
    right = dtype.kind == kind if len(kind) == 1 else dtype == np.dtype(kind)
    if not right or turned or len(shape) != dimensions or not dtype.itemsize:
        raise ValueError(f"{name} is of another type")
    return np.ndarray(shape, dtype, content.getbuffer(), content.tell())
