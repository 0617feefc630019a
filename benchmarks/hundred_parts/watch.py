"""Processes that are watched while they work: their memory and CPU time, and the machine's."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from measure import machine_seconds, seconds_of, tree

_PARTS = re.compile(r"^(Rss|Pss|Pss_Anon|Pss_Shmem): +(\d+)", re.MULTILINE)


def below(pids: Sequence[int]) -> list[int]:
    """All processes that these have started, and theirs."""
    return [pid for top in pids for pid in tree(top) if pid != top]


def memory_mb(pids: Sequence[int]) -> tuple[int, int]:
    """(RSS, anonymous and shared memory) of processes: RSS counts mapped files, which are page cache, too."""
    rss = own = 0
    for pid in pids:
        with suppress(OSError):
            parts = dict(_PARTS.findall(Path(f"/proc/{pid}/smaps_rollup").read_text()))
            rss += int(parts["Rss"])
            own += int(parts["Pss_Anon"]) + int(parts["Pss_Shmem"])
    return rss // 1024, own // 1024


class Watch:
    """What a training takes, from one sample to the next.

    Attributes:
        series: [seconds since the begin, images handed out and not void, images/s, MB of the trainers, MB of the
            decoding processes, MB of both with mapped files] each time.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.series: list[list[float]] = []
        self.own = self.machine = 0.0  # CPU seconds
        self._last: tuple[float, int, float, float] | None = None

    def start(self) -> None:
        """Of an attempt."""
        self._last = None

    def sample(self, trainers: Sequence[int], images: int) -> None:
        decoding = below(trainers)
        rss, trainer_mb = memory_mb(trainers)
        rss_below, decoding_mb = memory_mb(decoding)
        now = time.monotonic(), images, seconds_of([*trainers, *decoding]), machine_seconds()
        if self._last:
            passed, done, own, machine = (new - old for new, old in zip(now, self._last, strict=True))
            self.own, self.machine = self.own + own, self.machine + max(machine, own)
            rate = round(done / passed)
            at = round(now[0] - self.began, 1)
            self.series.append([at, images, rate, trainer_mb, decoding_mb, rss + rss_below])
        self._last = now

    def facts(self, seconds: float, cores: int) -> dict[str, Any]:
        names = ("seconds", "images", "images_per_second", "trainers_mb", "decoding_mb", "rss_mb")
        return {
            "others": round((self.machine - self.own) / seconds / cores, 3),
            "own": round(self.own / seconds / cores, 3),
            "most_trainers_mb": max((row[3] for row in self.series), default=None),
            "most_decoding_mb": max((row[4] for row in self.series), default=None),
            "series_of": names,
            "series": self.series,
        }
