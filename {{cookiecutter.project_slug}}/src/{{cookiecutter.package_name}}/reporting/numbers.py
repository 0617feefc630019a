"""Numbers as people read them."""

from __future__ import annotations

import math
from typing import Any

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
    if seconds is None:
        return NOT_KNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    if hours < 1:
        return f"{int(minutes)} min {seconds % 60:.0f} s" if minutes < 10 else f"{minutes:.0f} min"
    return f"{int(hours)} h {minutes % 60:.0f} min" if hours < 48 else f"{hours / 24:.1f} days"


def energy(kwh: float | None) -> str:
    if kwh is None:
        return NOT_KNOWN
    return f"{kwh * 1000:.3g} Wh" if kwh < 0.1 else f"{kwh:,.3g} kWh" if kwh < 1000 else f"{kwh:,.0f} kWh"


def money(cost: float | None, currency: Any = None) -> str:
    """With its currency, where that is known."""
    if cost is None:
        return NOT_KNOWN
    amount = f"{cost:,.2f}" if cost >= 1 else f"{cost:.2g}"
    return f"{amount} {currency}" if currency else amount


def interval(share: float, total: int) -> tuple[float, float]:
    """The 95% interval of a share that was counted over `total` images (Wilson, 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return middle - half, middle + half
