"""Everything that only a GPU can tell, in one command of less than ten minutes: figures as JSON, and tables from them.

    make gpu                                    # bakes a project, sets it up, measures; build/gpu.json
    make gpu GPU="--only forecast,settings"     # some parts only
    python ../../benchmarks/gpu.py              # in the folder of a project, within an environment that has its needs
    python benchmarks/gpu.py --tables build/gpu.json --doc docs/gpu.md
    ... --device cpu --quick                    # a trial without a GPU: small sizes, figures without a meaning

Every part runs in a process of its own, within its share of the time; what fails is recorded with the end of its error,
and the others go on. The JSON is written after each.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from gpu_parts import PARTS, Setup, last_lines, tables
from loaders import chosen

GRACE = 10.0  # seconds in which a part that is over its limit may end
SLACK = 45.0  # seconds that a part may take beyond its share, to start and to end


def write(path: Path, content: Any) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def child(name: str, task: dict[str, Any], found: Path) -> int:
    """Run one part in this process; what it yields is in the file `found` at once."""
    paths = {key: Path(task[key]) for key in ("work", "photos", "fashion") if task[key]}
    setup = Setup(**(task | paths))
    figures: dict[str, Any] = {}
    try:
        for key, value in importlib.import_module(f"gpu_parts.{PARTS[name].module}").figures(setup):
            figures[key] = value
            write(found, figures)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run(name: str, task: dict[str, Any], limit: float) -> dict[str, Any]:
    """Run one part in a process of its own: its figures, and how it ended."""
    work = Path(task["work"])
    work.mkdir(parents=True, exist_ok=True)
    log, found = work / f"{name}.log", work / f"{name}.json"
    found.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--part", name, "--task", json.dumps(task)]
    began, status = time.monotonic(), "done"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, env=calm()
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            status = f"stopped at its limit of {limit:.0f} s"
        finally:
            end(process)
    if process.returncode and status == "done":
        status = "failed"
    figures = json.loads(found.read_text()) if found.exists() else {}
    result = {"status": status, "seconds": round(time.monotonic() - began, 1), "figures": figures}
    return result | ({"error": last_lines(log.read_text(errors="replace"))} if status != "done" else {})


def end(process: subprocess.Popen[bytes]) -> None:
    """End a part's process and all that it started in its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def calm() -> dict[str, str]:
    return os.environ | {"WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


def measure(arguments: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """All parts, in their order; the JSON is written after each."""
    began, total = time.monotonic(), 60 * arguments.minutes
    task = {key: getattr(arguments, key) for key in ("device", "quick", "peers")}
    task["work"] = str(arguments.work.absolute())
    task["photos"] = arguments.data and str(arguments.data.absolute())
    task["fashion"] = str(arguments.fashion.absolute())
    results: dict[str, Any] = {"began": datetime.now().isoformat(timespec="seconds"), "command": sys.argv[1:]}
    results |= {"device": arguments.device, "quick": arguments.quick, "minutes": arguments.minutes, "parts": {}}
    parts = results["parts"]
    for place, name in enumerate(names):
        part, left = PARTS[name], total - (time.monotonic() - began)
        planned = left * part.share / sum(PARTS[other].share for other in names[place:])
        failed = [need for need in part.needs if parts[need]["status"] != "done"]
        if failed:
            parts[name] = {"status": "left out", "error": f"{failed[0]} failed"}
        elif left < 15:
            parts[name] = {"status": "left out", "error": "no time was left"}
        else:
            limit = min(left, 1.3 * planned + SLACK)
            parts[name] = run(name, task | {"seconds": planned, "limit": limit}, limit)
        results["seconds"] = round(time.monotonic() - began, 1)
        write(arguments.json, results)
        said = parts[name].get("error", "").splitlines()[-1:]
        print(f"{results['seconds']:6.0f} s  {name:9} {parts[name]['status']}", *said, file=sys.stderr, flush=True)
    return results


def names_of(only: str | None) -> list[str]:
    """The parts that are wanted, and those that they need, in their order."""
    wanted = set(chosen(only, list(PARTS), "part"))
    wanted |= {need for name in wanted for need in PARTS[name].needs}
    return [name for name in PARTS if name in wanted or name == "facts"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu hides the GPU (%(default)s)")
    add("--quick", action="store_true", help="a trial of the command itself, with small sizes")
    add("--minutes", type=float, default=9.0, help="for all parts together (%(default)s)")
    add("--only", metavar="NAMES", help=f"parts, by commas: {', '.join(PARTS)}")
    add("--json", type=Path, default="gpu.json", help="file of the figures (%(default)s)")
    add("--work", type=Path, default="data/gpu", help="folder for data and logs of the parts (%(default)s)")
    add("--data", type=Path, help="JPEGs in class folders (default: photos are made, which takes scikit-image)")
    add("--fashion", type=Path, default="/usr/share/datasets/fashion-mnist", help="Fashion-MNIST (%(default)s)")
    add("--peers", default=sys.executable, metavar="PYTHON", help="one that has the other loaders (this one)")
    add("--tables", type=Path, nargs="+", metavar="JSON", help="print tables of figures; of a part, the last file's")
    add("--doc", type=Path, help="put the tables into this page, and the figures into results/ beside it")
    add("--part", choices=PARTS, help=argparse.SUPPRESS)
    add("--task", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.tables:
        print(tables.publish(arguments.tables, arguments.doc))
        return 0
    if arguments.part:
        return child(arguments.part, arguments.task, Path(arguments.task["work"]) / f"{arguments.part}.json")
    names = names_of(arguments.only)
    if not list(Path("src").glob("*/__init__.py")):
        raise SystemExit("run this in the folder of a baked project: `make gpu` does")
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # on a machine with other work, threads would wait for each other
    elif subprocess.run([sys.executable, "-c", "import torch; torch.zeros(1).cuda()"], capture_output=True).returncode:
        print("torch sees no CUDA device: --device cpu --quick tries the command without one", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a part is ended then, too
    results = measure(arguments, names)
    print(tables.render(results))
    return int(any(part["status"] == "failed" for part in results["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
