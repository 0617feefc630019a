"""What a run's best weights say of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray

from ..data.crop import Crop
from ..train import hardware
from ..train.evaluate import batch_size
from .images import Images, batches


class Prediction(NamedTuple):
    """Of one image."""

    name: str
    scores: NDArray[np.float32] | None  # (T,) probabilities or numbers; None where it could not be decoded
    error: str  # why not


def predict(model: Any, config: dict[str, Any], images: Images) -> Iterator[Prediction]:
    """What `model`, trained by a run of this `config`, says of all images, in their order."""
    device = hardware.accelerator(config["trainer"]["accelerator"])  # or the CPU, where that is all there is
    hardware.quiet()
    hardware.prepare(device)
    fabric = Fabric(accelerator=device, devices=1, precision=hardware.precision(device))  # type: ignore[arg-type]
    network = fabric.setup_module(model.eval())
    crop = Crop(model.hparams["image_size"], center=config["data"]["eval_crop"])
    for first, pixels, errors in batches(images, crop, batch_size(config["data"])):
        with torch.inference_mode():
            outputs = network(fabric.to_device(torch.from_numpy(pixels)).permute(0, 3, 1, 2))
            scores = model.objective.scores(outputs.float()).cpu().numpy()
        for row, error in enumerate(errors):
            yield Prediction(images.name(first + row), None if error else scores[row], error)
