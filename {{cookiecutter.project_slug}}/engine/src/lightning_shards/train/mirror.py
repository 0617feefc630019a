"""Test-time augmentation: a model's scores over each image and its mirror image."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from ..errors import InputError
from ..vision.calibration import Calibration


class Mirrored:
    """The forward of a model, over the image and its mirror image.

    Where the model has a `calibration`, which knows what makes probabilities of its outputs, their probabilities are
    averaged; else its outputs are. Batches are looked at twice, so their size plays no part.

    Args:
        model: whose forward takes its `inputs`, in this order, and gives (B, T), or (B, T, S, S) of pixels, which are
            mirrored back.

    Attributes:
        calls: how often it ran.
    """

    def __init__(self, model: LightningModule) -> None:
        self._title = type(model).__name__
        self._forward, self._place = model.forward, _inputs(model).index("image")
        found = getattr(model, "calibration", None)
        self._calibration = found if isinstance(found, Calibration) else Calibration(None)
        self.calls = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Outputs (B, T) or (B, T, S, S). Raises InputError where they have another form."""
        self.calls += 1
        mirrored = [one.flip(-1) if place == self._place else one for place, one in enumerate(inputs)]
        views = [self._forward(*inputs), self._forward(*mirrored)]
        if isinstance(views[1], Tensor) and views[1].ndim == 4:
            views[1] = views[1].flip(-1)
        if not isinstance(views[0], Tensor) or views[0].ndim not in (2, 4):
            raise InputError("--flip averages what a model says of whole images, (B, T), and this one says more")
        return self._calibration.pooled([view.float() for view in views])

    def check_called(self) -> None:
        """Raise InputError where the model was at work, and what it said did not come from its forward."""
        if not self.calls:
            raise InputError(f"the model {self._title} does not call its forward for what it says: leave out --flip")


def look_twice(model: LightningModule, config: dict[str, Any]) -> Mirrored:
    """Make `model`, trained by a run of this `config`, look at each image and at its mirror image.

    Raises InputError for a model that was trained without mirror images, or that looks at something else.
    """
    names, fields = _inputs(model), config["trained_on"].get("fields") or {}
    if "image" not in names:
        raise InputError(f"the model looks at {' and '.join(names)}, which have no mirror image: leave out --flip")
    if config["trained_on"].get("task") == "detection":
        raise InputError(
            "--flip averages what a model says of an image and its mirror image, and boxes have no average"
        )
    if not config["data"].get("flip", 1.0):
        raise InputError(
            "the run was trained with data.flip 0, as for text or digits: it knows no mirror images; leave out --flip"
        )
    if plane := [name for name in names if name != "image" and len(fields.get(name, [[]])[0] or ()) > 1]:
        raise InputError(f"the model looks at {plane[0]} too, which --flip would not mirror: leave out --flip")
    if not is_overridden("forward", model):
        raise InputError(f"the model {type(model).__name__} has no forward(image), which --flip would call twice")
    model.forward = mirrored = Mirrored(model)  # type: ignore[method-assign]
    return mirrored


def _inputs(model: LightningModule) -> tuple[str, ...]:
    return tuple(getattr(model, "inputs", ("image",)))
