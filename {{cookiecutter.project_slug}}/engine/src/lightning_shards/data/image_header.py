"""What the first bytes of an image file say: its format, and of a JPEG its size and kind (ITU-T T.81, annex B)."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_PIXELS = 1 << 27  # a bomb of 80,000 x 80,000 pixels must not take the machine's memory
# EXIF tag 0x0112 of any type, value 2 to 8, in both byte orders: the image is stored turned or mirrored
_TURNED = re.compile(rb"\x01\x12\0.{5}\0[\x02-\x08]|\x12\x01.\0.{4}[\x02-\x08]\0", re.DOTALL)
_APP1, _SCAN, _FILL = 0xE1, 0xDA, 0xFF
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x00, 0x01, *range(0xD0, 0xDA)}  # have no length, and no place in a header


def image_format(data: bytes) -> str | None:
    """`jpg`, `png` or `webp`; None for anything else."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def is_turned(data: bytes, start: int = 0, end: int | None = None) -> bool:
    """Whether EXIF data between these places says that the image is stored turned or mirrored."""
    return _TURNED.search(data, start, len(data) if end is None else end) is not None


class Frame(NamedTuple):
    """Of the image in a JPEG file, as it is stored."""

    height: int
    width: int
    components: int  # 1 gray, 3 colour, 4 CMYK
    process: int  # 0 baseline, 1 extended sequential, 2 progressive; others are rare
    bits: int  # of a component
    at: int  # where the height lies in the file, 2 bytes
    turned: bool  # an EXIF tag says so
    one_scan: bool  # all components together, rows of blocks from top to bottom
    scan: int  # where the first scan lies in the file


def has_end(data: bytes, frame: Frame | None) -> bool:
    """Whether the end mark of a JPEG is there. Behind it may be anything: phones put films there.

    Within a scan the two bytes mean the end and nothing else; in what comes before it they may be a preview's.
    """
    return data.rfind(b"\xff\xd9", -4096) >= 0 or data.find(b"\xff\xd9", frame.scan if frame else 2) >= 0


def read_frame(data: bytes) -> Frame | None:
    """The frame of a JPEG file; None where its header cannot be followed up to the first scan."""
    start, turned, at, end = 0, False, 2, len(data) - 9
    while at < end and data[at] == 0xFF and (marker := data[at + 1]) not in _ALONE:
        if marker == _FILL:
            at += 1
            continue
        after = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == _APP1:
            turned = turned or is_turned(data, at, after)
        elif marker in _FRAMES:
            start = at
        elif marker == _SCAN:
            if not start:
                return None
            kind, bits, h1, h0, w1, w0, components = data[start + 1], *data[start + 4 : start + 10]
            process = kind & 0xF
            together = process < 2 and data[at + 4] == components
            return Frame(h1 << 8 | h0, w1 << 8 | w0, components, process, bits, start + 5, turned, together, at)
        at = after
    return None
