"""DALI without a GPU: its ImageNet pipeline on the CPU, with the decoder that reads only the crop."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

from . import CROP_SCALE, Box, Spec


@pipeline_def(batch_size=1, num_threads=1, device_id=None, exec_async=False, exec_pipelined=False)
def _one(size: int) -> Any:
    file, start, shape = (fn.external_source(name=name) for name in ("file", "start", "shape"))
    image = fn.decoders.image_slice(
        file, start=start, shape=shape, axis_names="HW", device="cpu", output_type=types.RGB
    )
    return fn.resize(image, size=(size, size), interp_type=types.INTERP_TRIANGULAR)


@functools.cache
def _one_image(size: int) -> Any:
    pipeline = _one(size)
    pipeline.build()
    return pipeline


def crop(data: bytes, box: Box, size: int) -> Any:
    pipeline = _one_image(size)
    pipeline.feed_input("file", [np.frombuffer(data, np.uint8)])
    pipeline.feed_input("start", [np.array(box[:2], np.int32)])
    pipeline.feed_input("shape", [np.array(box[2:], np.int32)])
    return np.asarray(pipeline.run()[0][0])


@pipeline_def
def _pipeline(folder: str, size: int) -> Any:
    files, labels = fn.readers.file(
        file_root=folder, random_shuffle=True, initial_fill=1024, pad_last_batch=True, name="files"
    )
    images = fn.decoders.image_random_crop(
        files, device="cpu", output_type=types.RGB, random_area=CROP_SCALE, random_aspect_ratio=(3 / 4, 4 / 3)
    )
    images = fn.resize(images, size=(size, size), interp_type=types.INTERP_TRIANGULAR)
    return fn.flip(images, horizontal=fn.random.coin_flip(probability=0.5)), labels


def batches(data: Path, spec: Spec) -> Iterator[Any]:
    pipeline = _pipeline(
        str(data), spec.size, batch_size=spec.batch, num_threads=spec.cores, device_id=None, prefetch_queue_depth=2
    )
    loader = DALIGenericIterator(
        pipeline, ["images", "labels"], reader_name="files", last_batch_policy=LastBatchPolicy.DROP, auto_reset=True
    )
    while True:
        for (batch,) in loader:
            yield batch["images"]
