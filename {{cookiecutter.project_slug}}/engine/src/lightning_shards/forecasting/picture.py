"""A forecast as a picture: bars of images/s, an SVG file that stands alone and reads in light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..cost.usage import duration, money
from ..errors import InputError
from ..files import write_durably
from .render import label

ROW, LEFT, BARS, WIDTH = 26, 150, 380, 760  # pixels
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222 } .note { fill: #666 } .head { font-weight: 600 }
rect { fill: #7aa6d8 } rect.slow { fill: #d9803f } rect.estimate { fill: none; stroke: #7aa6d8; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .note { fill: #aaa } }
"""


def save(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture. Raises InputError where it cannot be written."""
    try:
        write_durably(path, picture(report).encode())
    except OSError as error:
        raise InputError(f"--picture {path} cannot be written ({error.strerror})") from None


def picture(report: Mapping[str, Any]) -> str:
    """The parts of the training on this machine, then what other GPUs would reach; rates on a logarithmic scale."""
    images, currency = report["images"], report["currency"]
    parts = [
        (label(name, report), stage["images_per_second"], "slow" if name == report["bottleneck"] else "", "")
        for name, stage in report["stages"].items()
        if stage["images_per_second"]
    ]
    others = [
        (gpu["name"], gpu["images_per_second"], "estimate", "" if gpu["rent"] is None else money(gpu["rent"], currency))
        for gpu in report["gpus"]
        if gpu["kind"] == "estimated"
    ]
    most = max(rate for _, rate, *_ in parts + others)
    least = min(rate for _, rate, *_ in parts + others) / 2
    lines = [f'<text x="8" y="22" class="head">{escape(_title(report))}</text>']
    y = 46
    for heading, rows in (
        (f"measured: images/s, time for {images:,}", parts),
        ("estimated, and the rent for it", others),
    ):
        lines.append(f'<text x="8" y="{y}" class="note">{escape(heading)}</text>')
        for name, rate, kind, rent in rows:
            y += ROW
            length = max(2.0, BARS * _share(rate, least, most))
            shown = f"{rate:,.0f}/s · {duration(images / rate)}" + (f" · {rent}" if rent else "")
            lines += [
                f'<text x="{LEFT - 8}" y="{y}" text-anchor="end">{escape(name)}</text>',
                f'<rect x="{LEFT}" y="{y - 13}" width="{length:.1f}" height="17" rx="2" class="{kind}"/>',
                f'<text x="{LEFT + length + 6:.1f}" y="{y}" class="note">{escape(shown)}</text>',
            ]
        y += ROW + 8
    size = f'width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}"'
    body = "\n".join(lines)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>\n{body}\n</svg>\n'


def _title(report: Mapping[str, Any]) -> str:
    return f"{report['model']} at {report['inputs']} on {report['devices']} x {report['hardware']}"


def _share(rate: float, least: float, most: float) -> float:
    """Where `rate` lies between `least` and `most`, on a logarithmic scale."""
    return math.log(rate / least) / math.log(most / least)
