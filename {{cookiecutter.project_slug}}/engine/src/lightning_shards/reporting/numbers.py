"""Numbers as people read them."""

from __future__ import annotations

import math
import re
from typing import Any

from ..cost import usage

SHARES = (
    *("accuracy", "accuracy_top5", "knn_accuracy", "average_precision", "f1", "precision", "recall"),
    *("balanced_accuracy", "auroc", "mean_iou", "pixel_accuracy", "map", "map_50"),
    *("calibration_error", "calibration_error_unscaled", "data_wait_fraction"),
)
NOT_KNOWN = "-"
_NAMES = {"iou": "IoU", "auroc": "AUROC", "f1": "F1", "map": "mAP", "ap": "AP"}
_OF_EACH = ("iou", "ap", "ap_50")  # shares that each class has
_STUDENT = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
)


def is_share(name: str) -> bool:
    """Whether the metric lies between 0 and 1."""
    kind, _, last = name.rpartition("/")
    return last in SHARES or kind.rpartition("/")[2] in _OF_EACH


def title(name: str) -> str:
    """`mean_iou` as `mean IoU`, `auroc` as `AUROC`."""
    return re.sub(rf"\b({'|'.join(_NAMES)})\b", lambda found: _NAMES[found[0]], name.replace("_", " "))


def heading(title: str) -> str:
    """With a large first letter, but for names such as mAP."""
    return title if title.startswith("mAP") else title[:1].upper() + title[1:]


def metric(name: str, value: float, digits: int = 1) -> str:
    """`0.8964` as `89.6%` where the metric is a share, else with four digits."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.{digits}%}" if is_share(name) else f"{value:.4g}"


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


def student(freedom: int) -> float:
    """How many standard errors a mean's 95% interval reaches to either side, at so many degrees of freedom.

    From a table (Student, 1908; Fisher and Yates, 1938); above it by Cornish and Fisher's expansion, right to 0.001.
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def interval(share: float, total: int) -> tuple[float, float]:
    """The 95% interval of a share that was counted over `total` images (Wilson, 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return middle - half, middle + half
