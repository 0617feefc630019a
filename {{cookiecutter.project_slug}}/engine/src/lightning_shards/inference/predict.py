"""What a run's best weights say of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray

from ..data.crop import Crop
from ..data.decode import Pixels
from ..data.transform import Transform
from ..errors import InputError
from ..train import hardware
from ..train.contract import inputs
from ..train.evaluate import batch_size
from ..vision.calibration import Calibration
from .images import Images, batches
from .masks import masks


class Prediction(NamedTuple):
    """Of one image."""

    name: str
    scores: NDArray[np.float32] | None  # (T,) probabilities, numbers, or of a mask the shares of its classes
    error: str  # why there are none: it could not be decoded
    mask: NDArray[np.uint8] | None = None  # a class for each of its pixels, where the model gives them


def predict(
    model: Any, config: dict[str, Any], images: Images, transform: Transform | None = None
) -> Iterator[Prediction]:
    """What `model`, trained by a run of this `config`, says of all images, in their order.

    Args:
        transform: what was done to the samples that it was measured on.

    Raises InputError, before any is read, for a model that has no `scores` of an image alone.
    """
    check(model)
    return _predictions(model, config, images, transform)


def check(model: Any) -> None:
    """Raise InputError for a model that has no `scores` of an image alone."""
    if (wanted := inputs(model, "used to predict")) != ("image",):
        raise InputError(f"the model looks at {' and '.join(wanted)}, and predict reads images alone: use load_model")


def cutoffs(model: Any) -> list[float] | None:
    """From which probability on each label counts as there, (T,); None where the model says nothing of it."""
    calibration = getattr(model, "calibration", None)
    found = calibration.cutoffs if isinstance(calibration, Calibration) else None
    return None if found is None else found.tolist()


def image_size(model: Any, config: dict[str, Any]) -> int:
    """Side of the images that the model was trained on, in pixels."""
    return int(model.hparams.get("image_size") or config["data"]["image_size"])


def _predictions(
    model: Any, config: dict[str, Any], images: Images, transform: Transform | None
) -> Iterator[Prediction]:
    targets = len(config["trained_on"]["targets"])
    device = hardware.accelerator(config["trainer"]["accelerator"])  # or the CPU, where that is all there is
    hardware.quiet()
    hardware.prepare(device)
    fabric = Fabric(accelerator=device, devices=1, precision=hardware.precision(device))  # type: ignore[arg-type]
    network = fabric.setup_module(model.eval())
    network.mark_forward_method("scores")
    crop, size = Crop(image_size(model, config), center=config["data"]["eval_crop"]), batch_size(config["data"])
    of_pixels = (crop.size, crop.size) if config["trained_on"]["task"] == "segmentation" else ()

    def look(pixels: Pixels) -> NDArray[np.float32]:
        with torch.inference_mode():
            scores = network.scores(fabric.to_device(torch.from_numpy(pixels)).permute(0, 3, 1, 2))
            found: NDArray[np.float32] = scores.float().cpu().numpy()
        if found.shape != (len(pixels), targets, *of_pixels):
            raise InputError(f"the model's scores of {len(pixels)} images are {found.shape}, not one for each target")
        return found

    if of_pixels:
        for number, mask, error in masks(images, crop, size, look, transform):
            shares = None if mask is None else _shares(mask, targets)
            yield Prediction(images.name(number), shares, error, mask)
        return
    for first, pixels, errors in batches(images, crop, size, transform):
        scores = look(pixels)
        for row, error in enumerate(errors):
            yield Prediction(images.name(first + row), None if error else scores[row], error)


def _shares(mask: Pixels, targets: int) -> NDArray[np.float32]:
    """The share of a mask's pixels that each class has, (T,)."""
    return (np.bincount(mask.ravel(), minlength=targets) / mask.size).astype(np.float32)
