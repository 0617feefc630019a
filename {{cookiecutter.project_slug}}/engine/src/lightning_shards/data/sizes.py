"""A size schedule: small images first, the full size last, another size only at an epoch's begin.

Small images cost less, and what a network learns of them it keeps (Touvron et al., 2019; Tan & Le, 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from ..errors import InputError


def check_sizes(schedule: Mapping[int, float], image_size: int) -> None:
    """Raise InputError for sizes or shares that make no sense, whatever the number of epochs."""
    if not schedule:
        raise InputError("data.size_schedule is empty: name sizes with their shares, such as {160: 0.5}, or null")
    for side, share in schedule.items():
        if not 8 <= side < image_size:
            raise InputError(
                f"data.size_schedule has images of {side} pixels: at least 8, and fewer than data.image_size"
                f" {image_size}, which comes last"
            )
        if not 0 < share <= 1:
            raise InputError(
                f"data.size_schedule: the share of {side} pixels is {share:g}, it must be above 0, at most 1"
            )
    if sum(schedule.values()) > 1 + 1e-9:
        raise InputError(f"data.size_schedule: the shares come to {sum(schedule.values()):g}, at most 1 is possible")


def sides_of_epochs(schedule: Mapping[int, float], image_size: int, epochs: int) -> list[int]:
    """The side of the training's squares in each of `epochs`, in pixels: a function of the settings alone.

    The smallest size comes first. Where a share ends within an epoch, the size changes at the nearer end of it.

    Raises InputError where a size would get no epoch.
    """
    shares = dict(sorted(schedule.items()))
    left = 1 - sum(shares.values())
    if left > 1e-9:
        shares[image_size] = left
    ends = [int(end * epochs + 0.5 + 1e-9) for end in accumulate(shares.values())]
    sides: list[int] = []
    for side, end in zip(shares, ends, strict=True):
        if end <= len(sides):
            raise InputError(
                f"data.size_schedule leaves no epoch to images of {side} pixels, with trainer.max_epochs {epochs}: give"
                " more epochs, or fewer sizes"
            )
        sides += [side] * (end - len(sides))
    return sides


def relative_work(sides: Sequence[int] | None, epoch: int, epochs: int) -> list[float]:
    """The work of each of `epochs`, in units of what it is in `epoch`: it goes with the number of pixels.

    `sides`: of `sides_of_epochs`; None: all the same.
    """
    if not sides:
        return [1.0] * epochs
    now = sides[min(epoch, len(sides) - 1)]
    return [(side / now) ** 2 for side in sides]
