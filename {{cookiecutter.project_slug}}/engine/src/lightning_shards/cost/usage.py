"""What something takes: time, energy and money, and how a person reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Usage:
    """Seconds, kWh and money; None where it is not known. It reads `1.2 h, 0.4 kWh, 0.12 EUR`."""

    seconds: float
    kwh: float | None = None
    cost: float | None = None
    currency: str | None = None

    def __str__(self) -> str:
        parts = [duration(self.seconds), "energy not known" if self.kwh is None else f"{number(self.kwh)} kWh"]
        return ", ".join(parts + ([] if self.cost is None else [money(self.cost, self.currency)]))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"seconds": self.seconds, "hours": self.seconds / 3600, "kwh": self.kwh, "cost": self.cost}


def check_amounts(images: int, seconds: float) -> None:
    """Raise InputError for what nothing can be forecast for, or measured in."""
    for name, value in (("--images", images), ("--seconds", seconds)):
        if not 0 < value < math.inf:
            raise InputError(f"{name} is {value:g}, it must be a number above 0")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever a person would say."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{number(seconds / 3600)} h"


def number(value: float) -> str:
    """Three digits at least, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def money(value: float, currency: str | None = None) -> str:
    text = f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 or not value else f"{value:.2g}"
    return f"{text} {currency or ''}".rstrip()
