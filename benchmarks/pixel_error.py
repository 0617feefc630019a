"""How far each loader's pixels are from PIL's antialiased bilinear filter, on the same boxes of the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning_shards.data.crop import Crop
from peers import CROP_SCALE, PEERS, Box

IMAGES = 200


def pixel_error(name: str, folder: Path, size: int) -> float:
    """Mean absolute difference, of 255, over the pixels of IMAGES crops."""
    crop = FILTERS[name] if name in FILTERS else PEERS[name].cropper()
    reference = PEERS["imagefolder"].cropper()
    boxes = Crop(size, scale=CROP_SCALE)
    files = sorted(folder.glob("*/*-0.*"))  # the first of each file's copies
    random = np.random.default_rng(0)
    errors = []
    for at in random.permutation(len(files))[:IMAGES]:
        data = files[at].read_bytes()
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        top, left, *shape = boxes.box(image.shape[0], image.shape[1], random.random(boxes.draws))
        box: Any = tuple(x // 2 * 2 for x in (top, left, *shape))  # FFmpeg cuts at even places only
        pair = (np.asarray(how(data, box, size), np.int16) for how in (crop, reference))
        errors.append(np.abs(np.subtract(*pair)).mean())
    return float(np.mean(errors))


def _opencv(interpolation: int) -> Any:
    def crop(data: bytes, box: Box, size: int) -> Any:
        top, left, height, width = box
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert image is not None
        return cv2.resize(image[top : top + height, left : left + width], (size, size), interpolation=interpolation)

    return crop


FILTERS = {"OpenCV linear": _opencv(cv2.INTER_LINEAR), "OpenCV area": _opencv(cv2.INTER_AREA)}
