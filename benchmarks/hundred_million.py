"""100 million samples through the loader once, killed and resumed on changing settings: does each come exactly once?

    make hundred-million                                                         # build/hundred_million.json
    make hundred-million HUNDRED="--shards 48 --each 500 --packs 1 --batch 16"   # a trial of half a minute

A training without a model takes ShardLoader's batches, looks at every target, and writes down every id. This program
kills it (SIGKILL, all ranks) at random places, seeded, and starts it again from its last state with other workers,
batches, ranks, or without the decoded arrays. At the end the ids are counted: each of the samples must be there once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hundred_parts.data import Size, make
from hundred_parts.ledger import Ledger, name_of, verdict
from hundred_parts.watch import Watch, below
from lightning_shards.cost.energy import EnergyMeter
from lightning_shards.cost.prices import Prices
from lightning_shards.cost.usage import JOULES_PER_KWH, Usage
from lightning_shards.data import ShardLoader
from lightning_shards.machine import cpus
from lightning_shards.train import hardware

PRICES = next(Path(__file__).parents[1].glob("*cookiecutter*/prices.yaml"))
ALL = 1 << 50  # of decoded_bytes
# ranks, workers of each, batch of each rank in multiples of --batch, decoded_bytes; the last one ends the epoch
SETTINGS = [(1, 2, 4, ALL), (2, 1, 1, ALL), (1, 1, 2, ALL), (1, 2, 2, 0), (2, 2, 3, ALL), (1, 2, 1, ALL)]
SHORT = 0.01  # of the epoch, for the attempt that decodes its images from the tars
POLL = 0.005  # seconds


def places(samples: int, seed: int) -> list[int]:
    """The images after which each attempt but the last is killed, where it has not ended before."""
    chance = random.Random(seed)
    cuts = sorted(chance.uniform(0.05, 0.95) for _ in SETTINGS[:-1])
    for number, (*_, kept) in enumerate(SETTINGS[:-1]):
        if not kept:
            cuts[number] = cuts[number - 1] + SHORT * chance.uniform(0.5, 1)
    return [int(cut * samples) for cut in cuts]


class Run:
    """The attempts at one epoch."""

    def __init__(self, given: argparse.Namespace, data: Path, ledger: Ledger) -> None:
        self.given, self.data, self.ledger, self.watch = given, data, ledger, Watch()
        self.attempts: list[dict[str, Any]] = []

    def attempt(self, setting: tuple[int, int, int, int], end: int | None) -> None:
        """Start a training with this setting, and kill it once `end` images were handed out."""
        world, workers, batch, kept = setting
        number, void, began = len(self.attempts), self.ledger.cut(), time.monotonic()
        before = sum(self.ledger.saved()[1].values())
        task = {
            "data": str(self.data), "ledger": str(self.ledger.folder), "attempt": number, "world": world,
            "workers": workers, "batch": batch * self.given.batch, "decoded_bytes": kept, "crop": self.given.crop,
            "each": self.given.each, "save_every": self.given.save_every or self.given.shards * self.given.each // 200,
        }  # fmt: skip
        tasks = [json.dumps({**task, "rank": rank}) for rank in range(world)]
        command = [sys.executable, "-m", "hundred_parts.training"]
        here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        processes = [subprocess.Popen([*command, one], env=here) for one in tasks]
        names, killed, first = [name_of(number, rank) for rank in range(world)], False, 0.0
        self.watch.start()
        sampled = began
        try:
            while any(process.poll() is None for process in processes):
                handed, now = before + self.ledger.written(names), time.monotonic()
                first = first or (now if handed > before else 0.0)
                if any(process.poll() for process in processes):
                    raise SystemExit(f"attempt {number} failed, see above")
                killed = end is not None and handed >= end
                if killed or now - sampled >= self.given.sample_seconds:
                    self.watch.sample([process.pid for process in processes], handed)
                    sampled = now
                if killed:
                    break
                time.sleep(POLL)
        finally:
            left = _kill(processes)
        seconds, first = time.monotonic() - began, first or time.monotonic()
        handed = self.ledger.written(names)
        self.attempts.append({
            "ranks": world, "workers": workers, "batch": task["batch"], "decoded": bool(kept), "began_at": before,
            "void_of_the_one_before": void, "handed_out": handed, "ended_by": "SIGKILL" if killed else "itself",
            "seconds": round(seconds, 1), "seconds_to_first_batch": round(first - began, 1),
            "images_per_second": round(handed / max(time.monotonic() - first, 1e-3)), "processes_left_behind": left,
        })  # fmt: skip
        print(json.dumps(self.attempts[-1]), flush=True)

    @property
    def done(self) -> bool:
        state, _ = self.ledger.saved()
        return bool(state and state["epoch"] > 0)


def _kill(processes: list[subprocess.Popen[bytes]]) -> int:
    """SIGKILL all trainers; how many of their decoding processes live on longer than 20 seconds."""
    decoding = below([process.pid for process in processes])
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()
    limit = time.monotonic() + 20
    while (alive := [pid for pid in decoding if _lives(pid)]) and time.monotonic() < limit:
        time.sleep(POLL)
    return len(alive)


def _lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    began = time.monotonic()
    data, facts = make(folder / "data", Size(given.shards, given.each, given.packs, tuple(given.sides)), given.seed)
    made = round(time.monotonic() - began, 1)
    print(f"{facts['samples']:,} samples in {facts['shards']:,} shards after {made} s", flush=True)
    (folder / "ledger").mkdir()
    ledger = Ledger(folder / "ledger")
    play, prices = Run(given, data, ledger), Prices.read(PRICES)
    meter, began = EnergyMeter(prices), time.monotonic()
    for setting, end in zip(SETTINGS, [*places(facts["samples"], given.seed), None], strict=True):
        if not play.done:
            play.attempt(setting, end)
    seconds, joules = time.monotonic() - began, meter.joules()
    void = ledger.cut()
    with_order = ShardLoader(data, given.batch, crop=given.crop, decoded_bytes=0)
    order, position = with_order._place.order, sum(ledger.saved()[1].values())  # type: ignore[union-attr]
    left = order.ids(0, position, len(order))
    with_order.close()
    kwh = None if joules is None else joules / JOULES_PER_KWH
    usage = Usage(seconds, kwh, prices.cost(seconds, joules), prices.currency)
    return {
        "command": " ".join(["python benchmarks/hundred_million.py", *sys.argv[1:]]),
        **facts,
        "crop": given.crop,
        "seed": given.seed,
        "kills": sum(one["ended_by"] == "SIGKILL" for one in play.attempts),
        "counted": verdict(ledger, facts["samples"], left),
        "void": void + sum(one["void_of_the_one_before"] for one in play.attempts),
        "attempts": play.attempts,
        **usage.to_dict(),
        "currency": prices.currency,
        "energy": f"{meter.source}: {prices.cpu_watts:g} W CPU, {prices.rest_watts:g} W rest, {prices.power_supply:g}",
        "images_per_second": round(facts["samples"] / seconds),
        "seconds_to_make_the_data": made,
        **play.watch.facts(seconds, os.cpu_count() or 1),
        "machine": hardware.device_name("cpu"),
        "cores": cpus(),
        "versions": hardware.versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=10_000, help="samples of a shard")
    parser.add_argument("--packs", type=int, default=3, help="different shards, in eights")
    parser.add_argument("--sides", type=int, nargs=2, default=[28, 64], help="least and most pixels of an image's side")
    parser.add_argument("--batch", type=int, default=256, help="the smallest batch; others are multiples of it")
    parser.add_argument("--crop", type=int, default=32, help="pixels of a side of what is handed out")
    parser.add_argument("--save-every", type=int, help="samples between two saved states (a 200th of all)")
    parser.add_argument("--sample-seconds", type=float, default=10, help="between two looks at rate and memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build/hundred-million"), help="where to work; emptied")
    parser.add_argument("--json", type=Path, help="where the figures go")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(f"ended by signal {number}"))  # the training ends, too
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    figures = run(given, given.folder)
    shown = {name: value for name, value in figures.items() if name not in ("series", "series_of", "attempts")}
    print(json.dumps(shown, indent=1))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(figures) + "\n")
    shutil.rmtree(given.folder)
    counted = figures["counted"]
    sys.exit(
        bool(counted["more_than_once"] or counted["lost"] or counted["never"] != counted["left_for_another_epoch"])
    )


if __name__ == "__main__":
    main()
