"""What an accuracy costs: a config trained with several seeds, and the table of all such records.

    make record CONFIG=records/fashion-15-minutes/config.yaml    # SEEDS="0 1 2"; into the config's own folder
    python benchmarks/record.py --table                          # docs/records.md anew, from records/

A folder of `records/` is one record: `config.yaml`, `record.json` with a row for each seed, and the `report.html` of
the first, which gives the interval over those that were trained in the same folder. Seeds that are there already are
not trained again, so a long record may be made in several sittings; those of another config, hardware or dataset are
never mixed with them. Machines, and hours on a shared one, differ in speed: the sample run is trained just before and
just behind each seed, and its rate in that hour is in the row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from baked import package

ROOT = Path(__file__).resolve().parent.parent
RECORDS, PAGE = ROOT / "records", ROOT / "docs" / "records.md"
WHOLE = "data/fashion-mnist"  # what a config names as its dataset, to be made here
SAME = ("config", "dataset", "hardware", "precision", "metric")  # of all rows of a record
COLUMNS = (
    "| record | of the test images right | seeds | minutes | million images of the sample run | kWh | cost | on | day |"
)


def train(folder: Path, run: str, *settings: str) -> dict[str, Any]:
    """Train in `folder`, from nothing; the run's summary, with the seconds from the program's start to its end.

    Paths are given as seen from there: what the run says of itself names no folder of this machine.
    """
    shutil.rmtree(folder / "runs" / run, ignore_errors=True)
    command = [str(Path("train.py").absolute()), "--run", run, "--prices", seen_from(folder, "prices.yaml")]
    command += ["--log.wandb", "false", "--log.report", "true", "--trainer.enable_progress_bar", "false", *settings]
    began = time.monotonic()
    done = python(folder, *command)
    seconds = time.monotonic() - began
    told = folder / "runs" / run / "summary.json"
    summary = json.loads(told.read_text()) if told.exists() else {"status": "failed"}
    if done.returncode or summary["status"] != "done":
        raise SystemExit(
            f"the training {run} ended with {done.returncode}, {summary['status']}:\n"
            f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return {**summary, "wall": seconds}


def mirrored(folder: Path, run: str, metric: str) -> float | None:
    """The metric of a run, averaged over each image and its mirror image; None where that is refused, as for digits."""
    done = python(folder, "-m", package(), "evaluate", run, "--flip", "--json")
    if done.returncode == 2:
        return None
    done.check_returncode()
    return round(json.loads(done.stdout)[metric], 6)


def python(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the project in `folder`."""
    paths = os.pathsep.join(filter(None, (str(Path("src").absolute()), os.environ.get("PYTHONPATH", ""))))
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def seen_from(folder: Path, path: str | Path) -> str:
    return os.path.relpath(path, folder)


def sample_run(folder: Path, share: float) -> dict[str, Any]:
    """The summary of the project's default training, on this machine now: three epochs of a share of its images."""
    project = Path.cwd()
    if not (project / "data" / "sample" / "dataset.json").exists():
        pack = ["-m", "lightning_shards", "pack", "sample/fashion-mnist-10k.zip", "data/sample"]
        subprocess.run([sys.executable, *pack], check=True, stdout=subprocess.DEVNULL)
    paths = ("--config", seen_from(folder, "configs/sample.yaml"), "--data.path", seen_from(folder, "data/sample"))
    return train(folder, "sample", *paths, "--trainer.max_epochs", "3", "--data.fraction", str(share))


def dataset(config: str) -> Path:
    """What the config trains on, made where it is Fashion-MNIST whole."""
    named = re.search(r"^  path: (\S+)", config, re.MULTILINE)
    if named is None:
        raise SystemExit("the config names no data.path")
    path = Path(named[1]).absolute()
    if named[1] == WHOLE:
        import photos
        from fashion_mnist import originals, pack_whole

        photos.once(path, partial(pack_whole, originals(path.parent / "originals")))
    return path


def row(config: Path, seed: int, folder: Path, share: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Train one seed; what a record says of it, which has `rows` already."""
    data = dataset(config.read_text())
    before = sample_run(folder, share)
    if rows and before["hardware"] != rows[0]["hardware"]:  # which is better known before the hours than behind them
        raise SystemExit(f"this is {before['hardware']}, the record is of {rows[0]['hardware']}: copy the config")
    paths = ("--config", seen_from(folder, config), "--data.path", seen_from(folder, data))
    told = train(folder, f"seed-{seed}", *paths, "--seed_everything", str(seed))
    rates = [float(one["images_per_second"]) for one in (before, sample_run(folder, share))]
    metric = f"test/{told['monitor']}"
    return {
        "seed": seed,
        "value": round(told["metrics"][metric], 6),
        "mirrored": mirrored(folder, f"seed-{seed}", metric),
        "seconds": round(told["wall"], 1),
        "sample_images": round(told["wall"] * statistics.fmean(rates)),
        "sample_images_per_second": [round(rate) for rate in rates],
        **{name: told[name] for name in ("images_seen", "images_per_second", "kwh", "cost", "currency")},
        "ended": datetime.now(UTC).isoformat(timespec="minutes"),
        "config": digest(config),
        "sample_config": digest(Path("configs/sample.yaml")),
        "dataset": told["dataset"]["fingerprint"],
        "metric": metric,
        **{name: told[name] for name in ("hardware", "devices", "precision", "energy_source", "versions")},
        "commit": commit(),
    }


def digest(config: Path) -> str:
    return hashlib.sha256(config.read_bytes()).hexdigest()[:16]


def commit() -> str:
    """The template's, with a + where files were changed."""
    told = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=10"], capture_output=True, text=True
    )
    return told.stdout.strip() or "unknown"


def make(config: Path, seeds: list[int], share: float) -> None:
    """Train the seeds that the record lacks; it is written after each."""
    record, folder = config.with_name("record.json"), Path("data", "records", config.parent.name)  # a bake keeps data/
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = json.loads(record.read_text())["rows"] if record.exists() else []
    if rows and rows[0]["config"] != digest(config):
        raise SystemExit(f"{record} is of another {config.name}: remove it, or copy the config into a new folder")
    for seed in seeds:
        if any(one["seed"] == seed for one in rows):
            print(f"seed {seed} is there already", flush=True)
        else:
            new = row(config, seed, folder, share, rows)
            if rows and (other := [name for name in SAME if rows[0][name] != new[name]]):
                raise SystemExit(f"{record} is of another {', '.join(other)}: copy the config into a new folder")
            rows = sorted([*rows, new], key=lambda one: one["seed"])
            made = " ".join(str(one["seed"]) for one in rows)
            content = {"command": f"make record CONFIG={shown(config)} SEEDS='{made}'", "rows": rows}
            temporary = record.with_suffix(".new")
            temporary.write_text(json.dumps(content, indent=1) + "\n")
            temporary.replace(record)
            print(f"seed {seed}: {new['value']:.4f} in {new['seconds'] / 60:.1f} minutes", flush=True)
        keep_report(folder, rows[0], config.with_name("report.html"))


def keep_report(folder: Path, first: dict[str, Any], place: Path) -> None:
    """Make the report of a row's run anew, beside those that came since, and copy it; the old one stays where the run
    is gone, or is of another training of that seed."""
    run = folder / "runs" / f"seed-{first['seed']}"
    told = run / "summary.json"
    metrics = json.loads(told.read_text()).get("metrics", {}) if told.exists() else {}
    if round(metrics.get(first["metric"], -1), 6) == first["value"]:
        python(folder, "-m", package(), "report", run.name).check_returncode()
        shutil.copyfile(run / "report.html", place)


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def title(config: Path) -> str:
    """The first line of a config, which says what it is for."""
    return config.read_text().splitlines()[0].removeprefix("# ").removesuffix(".")


def cells(config: Path, rows: list[dict[str, Any]]) -> str:
    """A record as a line of the table."""

    def mean(name: str) -> float:
        return statistics.fmean(one[name] for one in rows)

    values = [100 * one["value"] for one in rows]
    right = f"{statistics.fmean(values):.2f}%" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")
    right += f" ({', '.join(f'{value:.2f}' for value in values)})"
    if all(one.get("mirrored") is not None for one in rows):
        right += f"; {100 * mean('mirrored'):.2f}% with mirror images"
    kept, day = rows[0], max(one["ended"] for one in rows)[:10]
    energy = f"{mean('kwh'):.3f}" if all(one["kwh"] is not None for one in rows) else ""
    cost = f"{mean('cost'):.4f} {kept['currency']}" if all(one["cost"] is not None for one in rows) else ""
    place = f"../records/{config.parent.name}"
    return (
        f"| [{title(config)}]({place}/config.yaml) ([report]({place}/report.html), [rows]({place}/record.json))"
        f" | {right}"
        f" | {', '.join(str(one['seed']) for one in rows)} | {mean('seconds') / 60:.1f}"
        f" | {mean('sample_images') / 1e6:.2f} | {energy} | {cost} | {kept['hardware']} | {day} |"
    )


def table(records: Path = RECORDS) -> str:
    """All records, the newest first, and the configs that nobody has run yet."""
    done, waiting = [], []
    for config in sorted(records.glob("*/config.yaml")):
        record = config.with_name("record.json")
        if record.exists():
            rows = json.loads(record.read_text())["rows"]
            done.append((max(one["ended"] for one in rows), cells(config, rows)))
        else:
            waiting.append(f"- {title(config)}: `make record CONFIG=records/{config.parent.name}/config.yaml`")
    lines = [COLUMNS, re.sub("[^|]+", "---", COLUMNS), *(line for _, line in sorted(done, reverse=True))]
    return "\n".join([*lines, *(["", "Prepared, and not run yet:", "", *waiting] if waiting else [])])


def page_with_table(page: Path = PAGE) -> str:
    """The page with the table of today's records in it."""
    before, _, rest = page.read_text().partition("<!-- records -->\n")
    return f"{before}<!-- records -->\n{table()}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="config.yaml in the folder of its record")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--sample", type=float, default=1.0, help="share of the sample in the runs beside (%(default)s)"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help="only write the table of docs/records.md anew")
    given = parser.parse_args()
    if not given.table:
        if given.config is None or not given.config.is_file():
            parser.error("name the config: make record CONFIG=records/NAME/config.yaml")
        make(given.config.resolve(), given.seeds, given.sample)
    given.page.write_text(page_with_table(given.page))


if __name__ == "__main__":
    main()
