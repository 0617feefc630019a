"""What the weights that a network starts from expect of its images; it goes with them, into checkpoints too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in 0..1: what most weights expect
USUAL_SIZE = 224  # side of the images, in pixels, that most weights were trained on


@dataclass(frozen=True)
class Pretrained:
    """How the images were made on which weights were trained.

    Attributes:
        mean, std: of red, green and blue in 0..1: what is subtracted, then what is divided by.
        image_size: side of the images, in pixels; None: not known.
        large_stem: the network has the stem that it was published with, however small the images are.
        anew: names of the tensors that the weights did not have in this shape, so that they start from random ones.
    """

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    image_size: int | None = None
    large_stem: bool = False
    anew: tuple[str, ...] = ()

    @classmethod
    def of(cls, network: nn.Module, given: Mapping[str, Any] | None) -> Pretrained:
        """What holds for `network`: what is `given`, as in a config or a checkpoint, over what its weights say.

        Raises InputError for what cannot be.
        """
        found: Pretrained = getattr(network, "pretrained", cls())
        return found.updated(given or {})

    def updated(self, given: Mapping[str, Any]) -> Pretrained:
        """With what is `given` by name. Raises InputError for other names and for values that cannot be."""
        known = {"mean": _colours, "std": _colours, "image_size": _side, "large_stem": _flag}
        if not isinstance(given, Mapping) or (wrong := set(given) - set(known)):
            wrong = wrong if isinstance(given, Mapping) else {repr(given)}
            raise InputError(f"model.pretrained has no {', '.join(sorted(map(str, wrong)))}: it has {', '.join(known)}")
        try:
            values = vars(self) | {name: known[name](value) for name, value in given.items()}
        except (TypeError, ValueError, OverflowError):
            values = {"std": [0]}
        if min(values["std"]) <= 0:
            raise InputError(
                f"model.pretrained is {dict(given)}: mean and std are three numbers each for red, green and blue in"
                " 0..1, std above 0, and image_size is a number of pixels"
            )
        return Pretrained(**values)

    def settings(self) -> dict[str, Any] | None:
        """As plain data, from which `updated` makes it again; None where it is what holds without any weights."""
        if self == Pretrained(anew=self.anew):
            return None
        plain = {"mean": list(self.mean), "std": list(self.std), "image_size": self.image_size}
        return plain | {"large_stem": self.large_stem}

    def note(self, image_size: int) -> str:
        """What a person should know when a training with images of `image_size` begins; empty: nothing."""
        said = []
        if self.image_size not in (None, image_size):
            said.append(
                f"the weights were trained with images of {self.image_size} pixels, data.image_size is {image_size}"
            )
        if self.anew:
            more = f" and {len(self.anew) - 3} more" if len(self.anew) > 3 else ""
            said.append(f"random weights begin {', '.join(self.anew[:3])}{more}")
        return "; ".join(said)


def _colours(value: Any) -> tuple[float, ...]:
    red, green, blue = map(float, value)
    if not all(map(math.isfinite, (red, green, blue))):
        raise ValueError
    return red, green, blue


def _side(value: Any) -> int | None:
    if value is not None and int(value) < 1:
        raise ValueError
    return None if value is None else int(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value
