"""Prices, energy meters, what a run took and was expected to take, and budgets.

NVIDIA's library is replaced only where it cannot run: there is no GPU here whose counters could be read. The clock is
replaced where a budget of time must run out at the same step on every machine.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import yaml
from lightning_shards.cost.energy import EnergyMeter, NvmlPower, Rapl
from lightning_shards.cost.prices import Prices
from lightning_shards.cost.usage import Usage
from lightning_shards.errors import InputError
from lightning_shards.train import cost_tracker, progress
from lightning_shards.train import throughput as speed

from . import PATIENCE
from .in_place import PROJECT
from .test_train import ledger, project, start, summary

__all__ = ["project"]  # a fixture
SHIPPED = PROJECT / "prices.yaml"


@pytest.fixture
def priced(project: Path) -> Path:
    """A folder to train in, with prices: 100 W at the wall, 0.5 EUR a kWh."""
    write_prices(project / "prices.yaml", watts={"cpu": 40, "rest": 50}, power_supply=0.9)
    return project


def write_prices(path: Path, **changes: Any) -> Path:
    usual = {"currency": "EUR", "electricity": 0.5, "watts": {"cpu": 40, "rest": 50}, "power_supply": 1.0}
    path.write_text(yaml.safe_dump({**usual, **changes}))
    return path


def test_shipped_prices_name_the_source_of_each_gpu() -> None:
    prices = Prices.read(SHIPPED)
    names = {"RTX 3090", "RTX 4090", "RTX 5090", "A100", "H100", "H200", "L4"}
    assert names <= {gpu.name for gpu in prices.gpus}
    for gpu in prices.gpus:
        assert gpu.speed > 0 and gpu.watts > 0 and gpu.kind in ("measured", "estimated") and gpu.source
        assert int(gpu.date[:4]) >= 2020 and prices.gpu(f"NVIDIA {gpu.name} 80GB HBM3") == gpu
    assert prices.gpu("NVIDIA GeForce RTX 4090") and not prices.gpu("NVIDIA GeForce RTX 4090 Laptop GPU")
    assert not prices.gpu("NVIDIA L40S") and not prices.gpu("AMD EPYC, 2 cores")


GPU = {"speed": 1, "watts": 1, "rent": 1, "kind": "measured", "source": "x", "date": 2026}
BAD_PRICES: list[tuple[dict[str, Any] | str, str]] = [
    ({"electricity": -0.1}, "electricity is -0.1, it must be a number of at least 0"),
    ({"electricity": "cheap"}, "electricity is 'cheap'"),
    ({"electricity": True}, "electricity is True"),
    ({"electricity": float("nan")}, "electricity is nan"),
    ({"electricity": None}, "electricity is None"),
    ({"electricty": 1}, "electricty is no setting; there are currency, electricity"),
    ({"currency": 5}, "currency is 5"),
    ({"rent": -1}, "rent is -1"),
    ({"watts": {"cpu": 40}}, "watts.rest is missing"),
    ({"watts": 90}, "watts must hold cpu, rest"),
    ({"power_supply": 1.1}, "power_supply is 1.1"),
    ({"power_supply": 0}, "power_supply is 0"),
    ({"gpus": ["H100"]}, "gpus must be"),
    ({"gpus": {"H100": {**GPU, "rent": -2}}}, "gpus.H100.rent is -2"),
    ({"gpus": {"H100": {**GPU, "speed": 0}}}, "gpus.H100.speed is 0"),
    ({"gpus": {"H100": {**GPU, "kind": "guessed"}}}, "gpus.H100.kind is 'guessed'"),
    ({"gpus": {"H100": {k: v for k, v in GPU.items() if k != "date"}}}, "gpus.H100.date is missing"),
    ("[broken: 1", "is no YAML"),
    ("", "the file must hold"),
]


@pytest.mark.parametrize(("changes", "sentence"), BAD_PRICES, ids=[s for _, s in BAD_PRICES])
def test_bad_prices_are_one_sentence(tmp_path: Path, changes: dict[str, Any] | str, sentence: str) -> None:
    path = tmp_path / "prices.yaml"
    if isinstance(changes, str):
        path.write_text(changes)
    else:
        write_prices(path, **changes)
    with pytest.raises(InputError) as error:
        Prices.read(path)
    assert sentence in str(error.value) and "\n" not in str(error.value) and "prices.yaml" in str(error.value)


def test_money_is_electricity_or_rent(tmp_path: Path) -> None:
    own = Prices.read(write_prices(tmp_path / "own.yaml"))
    assert own.cost(10, 3.6e6) == 0.5 and own.cost(10, None) is None
    rented = Prices.read(write_prices(tmp_path / "rented.yaml", rent=2))
    assert rented.cost(1800, 3.6e6) == rented.cost(1800, None) == 1 and rented.cost(1800, None, machines=3) == 3


def test_amounts_are_read_by_people() -> None:
    assert str(Usage(4320, 0.4, 0.12, "EUR")) == "72 min, 0.4 kWh, 0.12 EUR"
    assert str(Usage(3.6e6, 1234.5, 432.1, "EUR")) == "1,000 h, 1,234 kWh, 432 EUR"
    assert str(Usage(45, 0.00123, 0.00061, "USD")) == "45 s, 0.00123 kWh, 0.00061 USD"
    assert str(Usage(45)) == "45 s, energy not known"


def between(meter: EnergyMeter, watts: float) -> None:
    """The meter counts so many watts, by the clock around its readings."""
    a = time.monotonic()
    first = meter.joules()
    b = time.monotonic()
    time.sleep(0.05)
    c = time.monotonic()
    second = meter.joules()
    d = time.monotonic()
    assert first is not None and second is not None
    assert watts * (c - b) <= second - first + 1e-9 and second - first <= watts * (d - a) + 1e-9


def test_what_has_no_counter_takes_the_stated_watts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_shards.cost.energy.RAPL", tmp_path / "none")
    prices = Prices.read(write_prices(tmp_path / "prices.yaml", power_supply=0.9))
    meter = EnergyMeter(prices)
    assert (meter.source, meter.note) == ("stated watts", "")
    between(meter, 100)
    between(EnergyMeter(prices, machines=3), 300)


def write_rapl(folder: Path, microjoules: int, name: str = "intel-rapl:0") -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    (folder / name / "max_energy_range_uj").write_text("1000000000\n")


def test_rapl_counts_packages_and_begins_anew(tmp_path: Path) -> None:
    """Files as the kernel has them: a package, its cores (a part of it), a second package."""
    assert not Rapl.readable(tmp_path)
    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        write_rapl(tmp_path, 900_000_000, name)
    counter = Rapl(tmp_path)
    assert Rapl.readable(tmp_path) and counter.joules() == 0
    write_rapl(tmp_path, 950_000_000)
    write_rapl(tmp_path, 999_000_000, "intel-rapl:0:0")
    assert counter.joules() == 50
    write_rapl(tmp_path, 10_000_000)
    assert counter.joules() == 50 + 60, "past its highest value it begins at 0"
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("locked\n")
    assert not Rapl.readable(tmp_path), "all packages or none"


def test_without_nvml_the_energy_of_a_gpu_is_never_zero(tmp_path: Path) -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        pass
    else:
        pytest.skip("this machine has NVML")
    prices = Prices.read(SHIPPED)
    unknown = EnergyMeter(prices, ["GPU-0"], "NVIDIA Something New")
    assert unknown.source is None and unknown.joules() is None and "NVML cannot be read" in unknown.note
    listed = EnergyMeter(prices, ["GPU-0", "GPU-1"], "NVIDIA H100 80GB HBM3")
    assert listed.source == "stated watts" and "700 W" in listed.note
    between(listed, (2 * 700 + prices.cpu_watts + prices.rest_watts) / prices.power_supply)


class Library:
    """NVIDIA's library as far as it is called, for two GPUs; `has_counter` false: cards before Volta."""

    def __init__(self, has_counter: bool = True) -> None:
        self.has_counter, self.broken, self.millijoules = has_counter, False, 5_000_000

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in ("GPU-a", "GPU-b"):
            raise pynvml.NVMLError_NotFound  # type: ignore[attr-defined]
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if self.broken:
            raise pynvml.NVMLError_GpuIsLost  # type: ignore[attr-defined]
        if not self.has_counter:
            raise pynvml.NVMLError_NotSupported  # type: ignore[attr-defined]
        return self.millijoules

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 150_000


def no_host(tmp_path: Path) -> Prices:
    return Prices.read(write_prices(tmp_path / "prices.yaml", watts={"cpu": 0, "rest": 0}, power_supply=0.8))


def test_gpus_are_counted_by_nvml(tmp_path: Path) -> None:
    library = Library()
    meter = EnergyMeter(no_host(tmp_path), ["GPU-a", "GPU-b"], nvml=library)
    assert meter.source == "nvml counter" and meter.joules() == 0
    library.millijoules += 40_000
    assert meter.joules() == pytest.approx(2 * 40 / 0.8)
    four_machines = EnergyMeter(no_host(tmp_path), ["GPU-a", "GPU-b"], share=4, machines=4, nvml=library)
    library.millijoules += 1_000
    assert four_machines.joules() == pytest.approx(4 * 2 * 1 / 0.8)
    library.broken = True
    assert meter.joules() is None and meter.source is None and "failed" in meter.note


def test_power_is_integrated_where_there_is_no_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NvmlPower, "PERIOD", 0.01)
    meter = EnergyMeter(no_host(tmp_path), ["GPU-a", "GPU-b"], nvml=Library(has_counter=False))
    assert meter.source == "nvml power"
    between(meter, 2 * 150 / 0.8)
    before = [thread for thread in threading.enumerate() if thread.name == "gpu-power"]
    del meter
    for thread in before:
        thread.join(10)
    assert before and not any(thread.is_alive() for thread in before), "it ends with its meter"
    lost = EnergyMeter(no_host(tmp_path), ["GPU-c"], nvml=Library())
    assert lost.joules() is None and "energy is not known" in lost.note


def test_a_run_says_what_it_takes(priced: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(speed, "EXPECT_AFTER", 0.0)
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    assert start(monkeypatch, "--run", "one", "--trainer.enable_progress_bar", "true") == 0
    printed = capfd.readouterr()
    told = summary("one")
    assert told["currency"] == "EUR" and told["energy_source"] in ("rapl", "stated watts")
    assert told["cost"] == pytest.approx(0.5 * told["kwh"], rel=1e-9) and told["kwh"] > 0
    if told["energy_source"] == "stated watts":
        assert told["kwh"] == pytest.approx(100 * told["seconds"] / 3.6e6, rel=1e-2)
    assert told["expected"]["kwh"] > 0 and told["expected"]["hours"] == told["expected"]["seconds"] / 3600
    lines = [line for line in printed.out.splitlines() if line.startswith("epoch ")]
    assert lines and "kWh " in lines[-1] and "EUR " in lines[-1], "in the progress"
    assert printed.out.count("expected: ") == 1 and printed.out.count(" (expected ") == 1
    with Path("runs/one/metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["cost/kwh"]]
    used = [float(row["cost/kwh"]) for row in rows]
    assert used == sorted(used) and 0 < used[0] < used[-1] <= told["kwh"]
    assert all(float(row["cost/money"]) == pytest.approx(0.5 * float(row["cost/kwh"])) for row in rows)


def test_without_prices_the_run_says_so_and_counts_time(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(speed, "EXPECT_AFTER", math.inf)  # on a slow machine these steps take longer than that
    assert start(monkeypatch, "--run", "one", "--trainer.max_epochs", "1") == 0
    said = capsys.readouterr().out
    assert "no file of prices" in said and "expected" not in said, "some milliseconds of training tell no rate"
    told = summary("one")
    assert told["kwh"] is None and told["cost"] is None and told["seconds"] > 0 and told["expected"] is None
    with Path("runs/one/metrics.csv").open(newline="") as file:
        assert not [name for name in next(csv.reader(file)) if name.startswith("cost/")]


BAD = [
    (["--max_hours", "0"], "max_hours is 0"),
    (["--max_kwh", "-1"], "max_kwh is -1"),
    (["--max_cost", "lots"], "max_cost"),
    (["--max_kwh", "1"], "need the file of prices"),
    (["--prices", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    (["--prices", "negative.yaml"], "electricity is -1"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_budgets_are_one_sentence_and_nothing_written(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, arguments: list[str], sentence: str
) -> None:
    write_prices(project / "negative.yaml", electricity=-1)
    before = sorted(p.name for p in project.iterdir())
    assert start(monkeypatch, *arguments) == 2
    printed = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(printed) == 1 and printed[0].startswith("error: ") and sentence in printed[0], printed
    assert sorted(p.name for p in project.iterdir()) == before


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a second pass whenever the spending looks at the clock."""
    ticks = itertools.count()
    monkeypatch.setattr(cost_tracker, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    monkeypatch.setattr(cost_tracker, "CHECK_EVERY", 0.0)


@pytest.mark.parametrize("limit", ["max_hours", "max_kwh", "max_cost"])
@pytest.mark.usefixtures("ticking")
def test_a_budget_ends_a_run_which_goes_on_with_a_larger_one(
    priced: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, limit: str
) -> None:
    """No sample is lost or repeated, and what all attempts took is what counts."""
    for module in ("cost.energy.RAPL", "cost.energy.time"):  # the stated watts follow the same clock
        owner, _, name = f"lightning_shards.{module}".rpartition(".")
        monkeypatch.setattr(f"{owner}.{name}", Path("none") if name == "RAPL" else cost_tracker.time)
    small = {"max_hours": 60 / 3600, "max_kwh": 60 * 100 / 3.6e6, "max_cost": 0.5 * 60 * 100 / 3.6e6}[limit]
    arguments = ["--run", "b", "--ledger", "true"]
    assert start(monkeypatch, *arguments, f"--{limit}", f"{small:.12f}") == 0
    first = summary("b")
    assert first["status"] == "budget" and 0 < first["images_seen"] < 3 * 96 and "error" not in first
    assert {"max_hours": first["seconds"] / 3600, "max_kwh": first["kwh"], "max_cost": first["cost"]}[limit] >= small
    assert f"--resume b --{limit}" in capsys.readouterr().out
    assert start(monkeypatch, "--resume", "b", config=None) == 0
    again = summary("b")
    assert again["status"] == "budget" and again["images_seen"] == first["images_seen"], "it is spent already"
    assert start(monkeypatch, "--resume", "b", f"--{limit}", "1000", config=None) == 0
    told = summary("b")
    assert (told["status"], told["images_seen"], told["epochs"]) == ("done", 3 * 96, 3)
    assert told["seconds"] > first["seconds"] and told["kwh"] > first["kwh"] and told["cost"] > first["cost"]
    assert sorted(i for ids in ledger("b").values() for i in ids) == sorted(3 * list(range(96)))


# Lightning's launcher runs this file on every rank; each looks at the clock as often as it likes, rank zero decides.
SCRIPT = """
import itertools
from types import SimpleNamespace
from lightning_shards.train import cost_tracker

ticks = itertools.count()
cost_tracker.time = SimpleNamespace(monotonic=lambda: float(next(ticks)))
cost_tracker.CHECK_EVERY = 0.0
import train
train.main()
"""


def test_all_ranks_stop_at_the_same_step(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "ticking.py").write_text(SCRIPT)
    arguments = ["--config", "small.yaml", "--run", "two", "--trainer.devices", "2", "--ledger", "true"]
    done = subprocess.run(
        [sys.executable, "ticking.py", *arguments, "--max_hours", str(60 / 3600)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0 and "--resume two --max_hours" in done.stdout, done.stderr[-3000:]
    told = summary("two")
    assert told["status"] == "budget" and 0 < told["images_seen"] < 3 * 96
    places = [
        [json.loads(line)["position"] for line in Path(f"runs/two/ledger/rank-{rank}.jsonl").read_text().splitlines()]
        for rank in range(2)
    ]
    assert places[0] == places[1]
    assert start(monkeypatch, "--resume", "two", "--max_hours", "9", "--trainer.devices", "1", config=None) == 0
    assert summary("two")["images_seen"] == 3 * 96
    assert sorted(i for ids in ledger("two").values() for i in ids) == sorted(3 * list(range(96)))
