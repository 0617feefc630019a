"""This project's loader beside others, on the same images, in one run.

    make bench                                      # every loader and case, then a table and build/loaders.json
    make bench BENCH="--only ours,ffcv --cases 256short --rounds 3"

Every loader runs alone, in a process of its own, in turn over several rounds; the clock starts after a warm-up. All
deliver batches of 128 random crops of 224 pixels (32 in the case `32`), a quarter of the image or more, mirrored half
of the time, as uint8, from files in the page cache. Loaders that are not installed are named with the reason.

    500       photos of 500 x 375 pixels
    256short  the same photos, made smaller to a shorter side of 256 pixels (what `pack` does)
    256long   the same photos, made smaller to a longer side of 256 pixels (as FFCV does)
    32        squares of 32 pixels, PNG
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import report
from peers import PEERS, Spec

CASES = {"500": 224, "256short": 224, "256long": 224, "32": 32}  # and the side of their crops
LIBRARIES = (
    "torch torchvision pillow opencv-python-headless numpy webdataset litdata mosaicml-streaming nvidia-dali-cuda130"
    " spdl-io ffcv numba"
).split()
BATCH = 128
DISTURBED, TRIES = 0.05, 4  # share of the machine's cores that others may use while one loader runs


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in thread.read_text().split():
            yield from tree(int(child))


def memory_mb() -> float:
    """Memory of this process and those below it: anonymous and shared, each shared page counted once (PSS).

    Mapped files are left out: they are page cache, which the kernel takes back when it needs room.
    """
    total = 0
    for pid in tree(os.getpid()):
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += sum(int(kb) for kb in re.findall(r"^Pss_(?:Anon|Shmem): +(\d+)", rollup, re.MULTILINE))
    return total / 1024


def cpu_seconds() -> tuple[float, float]:
    """CPU time of this process and those below it, and of the whole machine."""
    ticks = 0
    for pid in tree(os.getpid()):
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    user, nice, system, _, _, interrupts, soft, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    hertz = os.sysconf("SC_CLK_TCK")
    return ticks / hertz, (user + nice + system + interrupts + soft) / hertz


def measure(name: str, data: Path, spec: Spec, warmup: float, seconds: float) -> dict[str, float]:
    """Images per second of one loader in this process, and its memory: the most seen in the warm-up and at the end."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec.cores])
    batches = PEERS[name].batches(data, spec)
    first = next(batches)
    if str(first.dtype).split(".")[-1] != "uint8" or sorted((*first.shape[1:], 3))[2:] != [spec.size, spec.size]:
        raise SystemExit(f"{name} gives {first.dtype} {tuple(first.shape)}, not uint8 crops of {spec.size} pixels")
    memory, began = 0.0, time.perf_counter()
    while time.perf_counter() - began < warmup:
        next(batches)
        memory = max(memory, memory_mb())
    own, machine = cpu_seconds()
    rows, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        rows += len(next(batches))
    own, machine = (after - before for after, before in zip(cpu_seconds(), (own, machine), strict=True))
    memory = max(memory, memory_mb())
    return {
        "images_per_second": rows / elapsed,
        "images_per_cpu_second": rows / own,
        "others": max(0.0, machine - own) / elapsed / (os.cpu_count() or 1),
        "memory_mb": memory,
        "mean": float(first[: spec.batch].numpy().mean() if hasattr(first, "numpy") else first.mean()),
    }


def child(task: dict[str, Any]) -> None:
    """What a process of its own does: pack, or measure and print the figures as JSON."""
    spec, data = Spec(**task["spec"]), Path(task["data"])
    if "images" in task:
        PEERS[task["name"]].pack(Path(task["images"]), data, spec)
        return
    print(json.dumps(measure(task["name"], data, spec, task["warmup"], task["seconds"])), flush=True)
    os._exit(0)  # worker processes and threads that do not want to end are not our concern


def in_own_process(task: dict[str, Any]) -> dict[str, float] | str:
    """The figures of a task, or why there are none."""
    command = [sys.executable, __file__, "--task", json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        return "did not end within 10 minutes"
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        missing = re.search(r"No module named '(\w+)", done.stderr)
        why = f"not installed: no module {missing[1]}" if missing else f"failed: {said[-1][:300]}"
        needs = PEERS[task["name"]].needs
        return why + f"; on Debian it needs: apt install {needs}" * bool(needs)
    return json.loads(done.stdout.splitlines()[-1]) if "seconds" in task else {}


def undisturbed(task: dict[str, Any]) -> dict[str, float] | str:
    """The figures of a task; measured again, a few times, while other programs use the machine, the best is kept."""
    runs: list[dict[str, float]] = []
    for _ in range(TRIES):
        found = in_own_process(task)
        if isinstance(found, str):
            return found
        runs.append(found)
        if found["others"] < DISTURBED:
            break
    return min(runs, key=lambda run: run["others"])


def prepare(arguments: argparse.Namespace, cases: list[str]) -> dict[str, Path]:
    """The folder of images of each case, made where it is missing."""
    import photos

    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    source = arguments.images
    if not source:
        source = photos.once(work / "photos", lambda folder: photos.make_photos(folder, arguments.photos))
    folders = {}
    for case in dict.fromkeys([*cases, "500"]):
        count = min(photos.IMAGES[case], arguments.epoch or photos.IMAGES[case])
        folders[case] = photos.once(
            work / case / "images", lambda folder, case=case, count=count: photos.make_case(case, source, folder, count)
        )
    return folders


def run_case(case: str, names: list[str], folders: dict[str, Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one case: the figures of each loader, and the loaders that could not run."""
    import photos

    spec = asdict(Spec(CASES[case], BATCH, arguments.cores))
    data, missing = {}, {}
    for name in names:
        reads = PEERS[name].reads
        if reads in ("images", "originals"):
            data[name] = folders[case if reads == "images" else "500"]
            continue
        dest = folders[case].with_name(reads)

        def pack(folder: Path, reads: str = reads) -> None:
            task = {"name": reads, "images": str(folders[case]), "data": str(folder), "spec": spec}
            if isinstance(reason := in_own_process(task), str):
                raise RuntimeError(reason)

        try:
            data[name] = photos.once(dest, pack)
        except RuntimeError as error:
            missing[name] = str(error)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in data}
    for number in range(arguments.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:  # nobody is always the first
            if name not in data or name in missing:
                continue
            task = {"name": name, "data": str(data[name]), "spec": spec}
            found = undisturbed(task | {"warmup": arguments.warmup, "seconds": arguments.seconds})
            if isinstance(found, str):
                missing[name] = found
            else:
                runs[name].append(found)
                said = "{images_per_second:,.0f} images/s, others {others:.0%}".format(**found)
                print(f"{case} {name}: {said}", file=sys.stderr, flush=True)
    rows = [row(name, runs[name], runs.get("ours", []), arguments.cores) for name in data if name not in missing]
    return {"case": case, "size": CASES[case], **photos.facts(folders[case]), "rows": rows, "missing": missing}


def row(name: str, runs: list[dict[str, float]], ours: list[dict[str, float]], cores: int) -> dict[str, Any]:
    """One loader's line: spread over the rounds, and how many times as fast ours was in the same round."""
    rates = [run["images_per_second"] for run in runs]
    ratios = [our["images_per_second"] / rate for our, rate in zip(ours, rates, strict=False)]
    return {
        "name": name,
        "title": PEERS[name].title,
        "decoder": PEERS[name].decoder,
        "filter": PEERS[name].filter,
        "median": round(median(rates)),
        "min": round(min(rates)),
        "max": round(max(rates)),
        "per_core": round(median(rates) / cores),
        "per_cpu_second": round(median([run["images_per_cpu_second"] for run in runs])),
        "ours_is_times": [round(x, 2) for x in (median(ratios), min(ratios), max(ratios))] if ratios else None,
        "memory_mb": round(max(run["memory_mb"] for run in runs)),
        "mean_pixel": round(median([run["mean"] for run in runs]), 1),
        "rates": [round(rate, 1) for rate in rates],
        "others": round(max(run["others"] for run in runs), 3),
    }


def machine(cores: int) -> dict[str, Any]:
    names = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    versions = {}
    for library in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[library] = version(library)
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": cores,
        "python": platform.python_version(),
        "versions": versions,
    }


def chosen(text: str | None, known: list[str], what: str) -> list[str]:
    names = text.split(",") if text else known
    if unknown := set(names) - set(known):
        raise SystemExit(f"there is no {what} {', '.join(sorted(unknown))}: choose among {', '.join(known)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of JPEGs in class folders (default: photos are made)")
    parser.add_argument("--photos", type=int, default=2000, help="photos to make (%(default)s)")
    parser.add_argument("--work", type=Path, default="data/bench", help="where images and packs are kept (%(default)s)")
    parser.add_argument("--only", metavar="NAMES", help=f"loaders, by commas: {', '.join(PEERS)}")
    parser.add_argument("--cases", metavar="NAMES", help=f"cases, by commas: {', '.join(CASES)}")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="CPU cores (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each loader (%(default)s)")
    parser.add_argument("--seconds", type=float, default=6, help="of one measurement (%(default)s)")
    parser.add_argument("--warmup", type=float, default=3, help="seconds from the first batch on (%(default)s)")
    parser.add_argument("--epoch", type=int, help="fewer images in an epoch, for a trial")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        child(arguments.task)
        return
    cases = chosen(arguments.cases, list(CASES), "case")
    names = chosen(arguments.only, list(PEERS), "loader")
    folders = prepare(arguments, cases)
    results: dict[str, Any] = {"machine": machine(arguments.cores)}
    results |= {key: getattr(arguments, key) for key in ("rounds", "seconds", "warmup")}
    results["cases"] = []
    for case in cases:
        wanted = [name for name in names if name != "originals" or case.startswith("256")]
        results["cases"].append(run_case(case, wanted, folders, arguments))
        print(report.table(results["cases"][-1]), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
