"""This project's loader, and its decoder alone: what the loader could deliver if all else cost nothing.

Both come from the engine that is installed where the benchmark runs.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lightning_shards.data import Crop, ShardLoader

from . import CROP_SCALE, Box, Spec

CHUNK = 64  # images that a process of `bare` decodes between two looks at the time


def pack(images: Path, dest: Path, spec: Spec) -> None:
    """The command `pack`, with every file's bytes kept, in about 16 shards."""
    shard = sum(path.stat().st_size for path in images.glob("*/*")) // 16
    settings = ["--copy", "--val", "0", "--test", "0", "--shard-bytes", str(shard), "--force"]
    command = [sys.executable, "-m", "lightning_shards", "pack", str(images), str(dest), *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def ours(data: Path, spec: Spec) -> Iterator[Any]:
    loader = ShardLoader(data, spec.batch, crop=Crop(spec.size, scale=CROP_SCALE))
    while True:
        for batch in loader:
            yield batch["image"]


def crop(data: bytes, box: Box, size: int) -> Any:
    """Through the loader's own class, whose choice of a box is replaced by `box`."""
    fixed = type("Fixed", (Crop,), {"box": lambda *_: box})
    out = np.empty((size, size, 3), np.uint8)
    fixed(size, flip=0)(data, None, out)
    return out


def bare(data: Path, spec: Spec) -> Iterator[Any]:
    """Decode, crop, resize and flip files in memory, in a process a core; nothing is read, ordered or handed over.

    Gives the first chunk of pixels, and then ranges that are as long as what was decoded meanwhile.
    """
    crop = Crop(spec.size, scale=CROP_SCALE)
    files = [path.read_bytes() for path in sorted(data.glob("*/*"))]
    random = np.random.default_rng(0)
    draws = random.random((1024, crop.draws))
    order = random.permutation(len(files)).tolist()
    out = np.empty((CHUNK, spec.size, spec.size, 3), np.uint8)
    context, parent = multiprocessing.get_context("fork"), os.getpid()
    done = context.Value("q", 0)

    def chunk(number: int) -> None:
        for row in range(CHUNK):
            at = number * CHUNK + row
            crop(files[order[at % len(files)]], draws[at % len(draws)], out[row])

    def work(core: int) -> None:
        for number in itertools.count(core, spec.cores):
            if os.getppid() != parent:
                return
            chunk(number)
            with done.get_lock():
                done.value += CHUNK

    chunk(0)
    yield out
    for core in range(spec.cores):
        context.Process(target=work, args=(core,)).start()
    seen = 0
    while True:
        time.sleep(0.002)
        if (now := done.value) > seen:
            yield range(now - seen)
            seen = now
