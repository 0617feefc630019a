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
from ..vision.pretrained import USUAL_SIZE
from .images import Images, batches
from .squares import boxes, look_at, mask


class Prediction(NamedTuple):
    """Of one image."""

    name: str
    scores: NDArray[np.float32] | None  # (T,) probabilities, numbers, of a mask the shares of its classes, of boxes the
    # score of each class's surest
    error: str  # why there are none: it could not be decoded
    mask: NDArray[np.uint8] | None = None  # a class for each of its pixels, where the model gives them
    boxes: NDArray[np.float32] | None = None  # (M, 6), where it finds them: left, top, right, bottom, score, class
    size: tuple[int, int] = (0, 0)  # of the image, (height, width), where masks or boxes are found


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
    return int(model.hparams.get("image_size") or config["data"].get("image_size") or USUAL_SIZE)


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
    data = config["data"]
    crop, size = Crop(image_size(model, config), center=data.get("eval_crop", 1.0)), batch_size(data)
    task = config["trained_on"]["task"]
    shapes: dict[str, tuple[int | None, ...]] = {
        "segmentation": (targets, crop.size, crop.size),
        "detection": (None, 6),
    }
    shape = shapes.get(task, (targets,))

    def look(pixels: Pixels) -> NDArray[np.float32]:
        with torch.inference_mode():
            scores = network.scores(fabric.to_device(torch.from_numpy(pixels)).permute(0, 3, 1, 2))
            found: NDArray[np.float32] = scores.float().cpu().numpy()
        if len(found) != len(pixels) or not _fits(found.shape[1:], shape):
            raise InputError(f"the model's scores of {len(pixels)} images are {found.shape}, not one for each target")
        return found

    if task in ("segmentation", "detection"):
        join, place = (mask, "mask") if task == "segmentation" else (boxes, "boxes")
        of_classes = _shares if task == "segmentation" else _surest
        for seen in look_at(images, crop, size, look, transform, join):
            scores = None if seen.found is None else of_classes(seen.found, targets)
            yield Prediction(images.name(seen.number), scores, seen.error, size=seen.size, **{place: seen.found})
        return
    for first, pixels, errors in batches(images, crop, size, transform):
        scores = look(pixels)
        for row, error in enumerate(errors):
            yield Prediction(images.name(first + row), None if error else scores[row], error)


def _shares(mask: Pixels, targets: int) -> NDArray[np.float32]:
    """The share of a mask's pixels that each class has, (T,)."""
    return (np.bincount(mask.ravel(), minlength=targets) / mask.size).astype(np.float32)


def _surest(boxes: NDArray[np.float32], targets: int) -> NDArray[np.float32]:
    """The score of each class's surest box, (T,); 0 where it has none."""
    scores = np.zeros(targets, np.float32)
    np.maximum.at(scores, boxes[:, 5].astype(int), boxes[:, 4])
    return scores


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether a shape is the wanted one, in which None is any size."""
    return len(shape) == len(wanted) and all(w in (None, size) for size, w in zip(shape, wanted, strict=True))
