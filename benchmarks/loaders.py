"""This project's loader beside others, on the same images, in one run.

    make bench                                      # every loader and case, then a table and build/loaders.json
    make bench BENCH="--only ours,ffcv --cases 256short --rounds 3"
    make bench BENCH="--doors --cases 500,64"       # this loader with a transform, a mask, or webdataset's stages

Every loader runs alone, in a process of its own, in turn over several rounds; the clock starts after a warm-up. All
deliver batches of 128 random crops of 224 pixels (all of a small square), a quarter of the image or more, mirrored half
of the time, as uint8, from files in the page cache. Loaders that are not installed are named with the reason.

    500       photos of 500 x 375 pixels
    256short  the same photos, made smaller to a shorter side of 256 pixels (what `pack` does)
    256long   the same photos, made smaller to a longer side of 256 pixels (as FFCV does)
    28, 32    squares of so many pixels, PNG
    64        squares of 64 pixels, JPEG as in Tiny ImageNet; 64png: the same as PNG
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import photos
import report
from peers import ALL, DOORS, PEERS, Spec
from pixel_error import FILTERS

CASES = {
    "500": 224,
    "256short": 224,
    "256long": 224,
    "28": 28,
    "32": 32,
    "64": 64,
    "64png": 64,
}  # and the side of their crops
# whose versions are noted with the figures
LIBRARIES = ["torch", "torchvision", "pillow", "opencv-python-headless", "simplejpeg", "deflate", "numpy", "numba"]
LIBRARIES += ["ffcv", "spdl-io", "nvidia-dali-cuda130", "litdata", "mosaicml-streaming", "webdataset"]
BATCH = 128
DISTURBED = 0.05  # share of the machine's cores that others may use while one loader runs


def in_own_process(task: dict[str, Any], python: str = sys.executable, timeout: float = 600) -> dict[str, float] | str:
    """The figures of a task, or why there are none."""
    command = [python, str(Path(__file__).with_name("measure.py")), json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"did not end within {timeout:.0f} s"
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        missing = re.search(r"No module named '(\w+)", done.stderr)
        why = f"not installed: no module {missing[1]}" if missing else f"failed: {said[-1][:300]}"
        needs = ALL[task["name"]].needs if task["name"] in ALL else ""
        return why + f"; on Debian it needs: apt install {needs}" * bool(needs)
    return json.loads(done.stdout.splitlines()[-1])


def undisturbed(task: dict[str, Any], again: int) -> dict[str, float] | str:
    """The figures of a task; where other programs used the machine, of the quietest of several measurements."""
    runs: list[dict[str, float]] = []
    for _ in range(1 + again):
        found = in_own_process(task)
        if isinstance(found, str):
            return found
        runs.append(found)
        if found["others"] < DISTURBED:
            break
    return min(runs, key=lambda run: run["others"])


def prepare(arguments: argparse.Namespace, cases: list[str]) -> dict[str, Path]:
    """The folder of images of each case, made where it is missing."""
    if source := arguments.images:
        work = arguments.work / hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    else:
        work = arguments.work / f"made-{arguments.photos}"
    work.mkdir(parents=True, exist_ok=True)
    if not source:
        source = photos.once(work / "photos", lambda folder: photos.make_photos(folder, arguments.photos))
    folders = {}
    for case in dict.fromkeys([*cases, "500"]):
        count = arguments.epoch or photos.IMAGES[case]
        (work / f"{case}-{count}").mkdir(exist_ok=True)
        make = functools.partial(photos.make_case, case, source, images=count)
        folders[case] = photos.once(work / f"{case}-{count}" / "images", make)
    return folders


def pack(case: str, name: str, images: Path, spec: dict[str, Any], python: str = sys.executable) -> Path:
    """What the loader `name` reads in this case, packed where it is missing. Raises RuntimeError."""

    def make(folder: Path) -> None:
        task = {"do": "pack", "name": name, "images": str(images), "data": str(folder), "spec": spec}
        if isinstance(reason := in_own_process(task, python), str):
            raise RuntimeError(reason)

    return photos.once(images.with_name(name), make)


def run_case(case: str, names: list[str], folders: dict[str, Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one case: the figures of each loader, and the loaders that could not run."""
    spec = asdict(Spec(CASES[case], BATCH, arguments.cores))
    data: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for name in names:
        reads = ALL[name].reads
        try:
            given = {"images": folders[case], "originals": folders["500"]}
            data[name] = given.get(reads) or pack(case, reads, folders[case], spec)
        except RuntimeError as error:
            missing[name] = str(error)
    errors: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for name in [] if arguments.doors else [*data, *FILTERS]:  # what a door adds changes no pixel of the crop
        how = ALL[name].pixels if name in ALL else name  # some loaders make the same pixels
        if how not in found:
            found[how] = in_own_process({"do": "compare", "name": name, "data": str(folders[case]), "spec": spec})
        errors[name] = found[how] if isinstance(found[how], str) else round(found[how]["pixel_error"], 3)
    result = {"case": case, "size": CASES[case], **photos.facts(folders[case]), "pixel_error": errors}
    if arguments.quality:
        return result
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in data}
    for number in range(arguments.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:  # nobody is always the first
            if name in missing:
                continue
            task = {"do": "measure", "name": name, "data": str(data[name]), "spec": spec}
            run = undisturbed(task | {"warmup": arguments.warmup, "seconds": arguments.seconds}, arguments.again)
            if isinstance(run, str):
                missing[name] = run
            else:
                runs[name].append(run)
                said = "{images_per_second:,.0f} images/s, others {others:.0%}".format(**run)
                print(f"{case} {name}: {said}", file=sys.stderr, flush=True)
    rows = [row(name, runs[name], runs.get("ours", []), arguments.cores) for name in data if name not in missing]
    return result | {"rows": rows, "missing": missing}


def row(name: str, runs: list[dict[str, float]], ours: list[dict[str, float]], cores: int) -> dict[str, Any]:
    """One loader's line: spread over the rounds, and how many times as fast ours was in the same round."""
    rates, ours_rates = ([round(run["images_per_second"], 1) for run in of] for of in (runs, ours))
    ratios = [our / rate for our, rate in zip(ours_rates, rates, strict=False)]
    return {
        "name": name,
        "title": ALL[name].title,
        "decoder": ALL[name].decoder,
        "filter": ALL[name].filter,
        "median": round(median(rates)),
        "min": round(min(rates)),
        "max": round(max(rates)),
        "per_core": round(median(rates) / cores),
        "per_cpu_second": round(median([run["images_per_cpu_second"] for run in runs])),
        "ours_is_times": [round(x, 2) for x in (median(ratios), min(ratios), max(ratios))] if ratios else None,
        "memory_mb": round(max(run["memory_mb"] for run in runs)),
        "mean_pixel": round(median([run["mean"] for run in runs]), 1),
        "rates": rates,
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
    parser.add_argument("--doors", action="store_true", help=f"this loader with what a team adds: {', '.join(DOORS)}")
    parser.add_argument("--cases", metavar="NAMES", help=f"cases, by commas: {', '.join(CASES)}")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="CPU cores (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each loader (%(default)s)")
    parser.add_argument("--seconds", type=float, default=6, help="of one measurement (%(default)s)")
    parser.add_argument("--warmup", type=float, default=3, help="seconds from the first batch on (%(default)s)")
    parser.add_argument("--again", type=int, default=3, help="times to repeat what others disturbed (%(default)s)")
    parser.add_argument("--quality", action="store_true", help="compare the pixels, and nothing else")
    parser.add_argument("--epoch", type=int, help="images in an epoch, at least (by case)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    cases = chosen(arguments.cases, list(CASES), "case")
    names = chosen(arguments.only, list(DOORS if arguments.doors else PEERS), "loader")
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
