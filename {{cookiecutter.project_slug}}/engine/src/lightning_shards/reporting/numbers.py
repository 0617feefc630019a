"""Numbers as people read them."""

from __future__ import annotations

import math
from typing import Any

from ..cost import usage

SHARES = ("accuracy", "accuracy_top5", "average_precision", "f1", "precision", "recall", "data_wait_fraction")
NOT_KNOWN = "-"


def metric(name: str, value: float) -> str:
    """`0.8964` as `89.6%` where the metric is a share, else with four digits."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.1%}" if name.rpartition("/")[2] in SHARES else f"{value:.4g}"


def count(value: float | None) -> str:
    """Whole, with thousands set apart."""
    return NOT_KNOWN if value is None else f"{value:,.0f}"


def rate(images_per_second: float | None) -> str:
    return NOT_KNOWN if images_per_second is None else f"{images_per_second:,.0f}/s"


def duration(seconds: float | None) -> str:
    return NOT_KNOWN if seconds is None else usage.duration(seconds)


def energy(kwh: float | None) -> str:
    return NOT_KNOWN if kwh is None else f"{usage.number(kwh)} kWh"


def money(cost: float | None, currency: Any = None) -> str:
    return NOT_KNOWN if cost is None else usage.money(cost, currency)


def interval(share: float, total: int) -> tuple[float, float]:
    """The 95% interval of a share that was counted over `total` images (Wilson, 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return middle - half, middle + half
