"""SPDL: its pipeline of threads, with FFmpeg's decoder and one filter graph an image for crop, resize and flip."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import spdl.io
from spdl.pipeline import PipelineBuilder

from . import CROP_SCALE, Box, Spec


def _paths(folder: Path) -> Iterator[str]:
    """The files in a new order every epoch, for ever."""
    paths = [str(path) for path in sorted(folder.glob("*/*"))]
    while True:
        random.shuffle(paths)
        yield from paths


def _box(height: int, width: int) -> Box:
    """torchvision's RandomResizedCrop without a tensor: top, left, height, width."""
    for _ in range(10):
        area = random.uniform(*CROP_SCALE) * height * width
        aspect = (4 / 3) ** random.uniform(-1, 1)
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if w <= width and h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def _decode(source: str | bytes, box: Box | None, size: int, flip: bool) -> Any:
    packets = spdl.io.demux_image(source)
    top, left, h, w = box or _box(packets.height, packets.width)
    graph = f"crop={w}:{h}:{left}:{top},scale={size}:{size}:flags=bilinear{',hflip' * flip},format=rgb24"
    return spdl.io.decode_packets(packets, filter_desc=graph)


def crop(data: bytes, box: Box, size: int) -> Any:
    return spdl.io.to_numpy(spdl.io.convert_frames(_decode(data, box, size, False)))


def batches(data: Path, spec: Spec) -> Iterator[Any]:
    def decode(path: str) -> Any:
        return _decode(path, None, spec.size, random.random() < 0.5)

    decode(next(_paths(data)))  # a missing FFmpeg is told here; the pipeline would only end
    builder = PipelineBuilder().add_source(_paths(data)).pipe(decode, concurrency=spec.cores)
    builder = builder.aggregate(spec.batch, drop_last=True).pipe(spdl.io.convert_frames)
    pipeline = builder.add_sink(4).build(num_threads=spec.cores + 1)
    with pipeline.auto_stop():
        for buffer in pipeline:
            yield spdl.io.to_torch(buffer)
