"""Fields and transforms of a team's own, as they live in a module of theirs; decoding processes import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from lightning_shards.data import SIDE, DecodeError, View
from numpy.typing import NDArray


@dataclass(frozen=True)
class Depth:
    """A depth for each pixel: float32 (S, S), little-endian float16 behind two sizes of two bytes."""

    names: tuple[str, ...] = ("depth",)
    shape: ClassVar[tuple[int, ...]] = (SIDE, SIDE)
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float32)
    required: bool = True

    def decode(self, data: bytes, view: View | None, out: NDArray[Any] | None) -> Any:
        height, width = np.frombuffer(data[:4], "<u2").tolist()
        if len(data) != 4 + 2 * height * width:
            raise DecodeError("the depths are cut short")
        depths = np.frombuffer(data[4:], "<f2").astype(np.float32).reshape(height, width)
        if view is None or out is None:
            return depths
        view.cut(depths, out)
        return out

    def describe(self) -> dict[str, Any]:
        return {"kind": "depth"}


def noise(sample: dict[str, Any], random: np.random.Generator) -> None:
    """Changes pixels in place, replaces the target, and cuts the text."""
    sample["image"] += random.integers(0, 50, sample["image"].shape, dtype=np.uint8)
    sample["target"] = (sample["target"] + int(random.integers(3))) % 3


def nothing(sample: dict[str, Any], random: np.random.Generator) -> None:
    pass


def raises_on_some(sample: dict[str, Any], random: np.random.Generator) -> None:
    if sample["target"] == 1:
        raise ValueError("no green ones")


def raises(sample: dict[str, Any], random: np.random.Generator) -> None:
    raise ValueError("never\nmind")


def larger(sample: dict[str, Any], random: np.random.Generator) -> None:
    sample["image"] = np.zeros((99, 99, 3), np.uint8)


def floats(sample: dict[str, Any], random: np.random.Generator) -> None:
    sample["image"] = sample["image"] / 255


def more(sample: dict[str, Any], random: np.random.Generator) -> None:
    sample["more"] = 1


class Dims:
    """A transform with settings."""

    evaluation = True

    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, sample: dict[str, Any], random: np.random.Generator) -> None:
        sample["image"] //= self.by


class Foreign:
    """As albumentations has it, from 1.4.19 on: set_random_seed, then keywords in and out."""

    additional_targets: dict[str, str] = {}  # noqa: RUF012

    def set_random_seed(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def __call__(self, **given: Any) -> dict[str, Any]:
        shift = int(self.random.integers(1, 9))
        return {name: np.roll(value, shift, 1) if name in ("image", "mask") else value for name, value in given.items()}
