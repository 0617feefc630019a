"""`forecast` measures for a second or so on this machine; nothing here is judged by how fast it is."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from {{cookiecutter.package_name}} import __main__ as commands
from {{cookiecutter.package_name}}.forecasting import reading
from {{cookiecutter.package_name}}.forecasting.render import render
from {{cookiecutter.package_name}}.loading.datamodule import ShardDataModule

from .conftest import PROJECT
from .servers import Web
from .test_cost import write_prices
from .test_train import project, start

__all__ = ["project"]  # a fixture
PACKAGE = "{{cookiecutter.package_name}}"


@pytest.fixture
def priced(project: Path) -> Path:
    (project / "prices.yaml").write_bytes((PROJECT / "prices.yaml").read_bytes())
    return project


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, seconds: str = "0.5") -> int:
    """The command in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["-m", "forecast", *arguments, "--seconds", seconds])
    try:
        return commands.main()
    except SystemExit as end:
        return int(end.code or 0)


def measured(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> dict[str, Any]:
    assert run(monkeypatch, "--config", "small.yaml", "--json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


def check(report: dict[str, Any]) -> None:
    """What must hold of every forecast, whatever the figures."""
    images, stages, known = report["images"], report["stages"], {}
    assert set(stages) == {"disk", "loader", "model", "both"}
    for name, stage in stages.items():
        if rate := stage["images_per_second"]:
            assert stage["hours"] == pytest.approx(images / rate / 3600)
            known[name] = rate
    both = known.pop("both")
    if report["reading"]["cached"]:
        known.pop("disk", None)
    assert report["bottleneck"] == min(known, key=lambda name: known[name])
    rate = report["images_per_second"]
    assert rate == pytest.approx(min(both, known.get("disk", math.inf)))
    prices = yaml.safe_load(Path("prices.yaml").read_text())
    energy = report["energy"]
    assert energy["joules_per_image"] == pytest.approx(energy["watts"] / rate)
    for part, seconds in ((report["forecast"], images / rate), (report["run"], None)):
        assert part["hours"] == pytest.approx(part["seconds"] / 3600)
        assert part["kwh"] == pytest.approx(energy["watts"] * part["seconds"] / 3.6e6)
        assert part["cost"] == pytest.approx(part["kwh"] * prices["electricity"])
        assert seconds is None or part["seconds"] == pytest.approx(seconds)
    assert report["run"]["seconds"] >= report["run"]["images"] / rate
    here, *others = report["gpus"]
    assert here["kind"] == "measured" and here["images_per_second"] == rate and here["kwh"] == report["forecast"]["kwh"]
    assert [gpu["name"] for gpu in others] == list(prices["gpus"])
    for gpu in others:
        assert gpu["kind"] == "estimated" and gpu["scaled_from"]["source"] and gpu["scaled_from"]["date"]
        assert gpu["hours"] == pytest.approx(images / gpu["images_per_second"] / 3600)
        assert gpu["images_per_second"] <= known["loader"] * 1.000001
        assert gpu["rent"] == pytest.approx(gpu["hours"] * prices["gpus"][gpu["name"]]["rent"] * report["devices"])
        assert gpu["electricity"] == pytest.approx(gpu["kwh"] * prices["electricity"])


def test_forecast_adds_up_on_one_screen_and_writes_nothing(
    priced: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    before = sorted(path for path in priced.rglob("*"))
    report = measured(monkeypatch, capsys, "--images", "1M", "--model.learning_rate", "0.02")
    check(report)
    assert report["images"] == 1_000_000 and report["dataset"]["images"] == 96 and report["devices"] == 1
    run_ = report["run"]
    assert (run_["epochs"], run_["images"], run_["validated"]) == (3, 3 * 96, 3 * 21)
    assert report["reading"]["kind"] == "disk" and report["reading"]["cached"], "a few kilobytes fit in memory"
    lines = render(report).splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert text.count("<- the slowest") == 1 and report["advice"] in " ".join(text.split())
    assert "this run: 3 epochs, 288 images, and 63 validated: " in text
    assert all(name in text for name in ("H200", "L4", "this machine", "measured now", "estimated", "kWh", "USD"))
    assert sorted(path for path in priced.rglob("*")) == before, "nothing is written"


def test_text_is_the_default_and_it_names_what_limits(
    priced: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Pixels by the thousand and a small network on one side, a large network on the other."""
    assert run(monkeypatch, "--config", "small.yaml", "--data.image_size", "32", "--model.backbone", "resnet18") == 0
    text = capsys.readouterr().out
    assert re.search(r"^model alone .*<- the slowest$", text, flags=re.MULTILINE)
    assert "To change: a GPU" in text or "To change: a faster GPU" in text


def test_devices_and_steps_are_those_of_the_run(priced: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Two devices and accumulated gradients: one device is measured, with its share, and counted twice."""
    report = measured(monkeypatch, capsys, "--trainer.devices", "2", "--data.micro_batch_size", "2")
    check(report)
    assert (report["devices"], report["micro_batch_size"], report["accumulation"]) == (2, 2, 2)


def test_a_dataset_behind_a_url_is_read_through_the_network(
    priced: Path, web: Web, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    cache = ["--data.cache", str(priced / "cache"), "--data.cache_bytes", "10000000"]
    report = measured(monkeypatch, capsys, "--data.path", web.url, *cache)
    check(report)
    assert report["reading"]["kind"] == "network" and report["stages"]["disk"]["images_per_second"] > 0
    assert "network" in render(report) and "on this node's disk" in report["reading"]["note"]


def test_a_dataset_larger_than_memory_is_limited_by_its_disk(
    priced: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(reading, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr(reading, "_disk", lambda *_: (1000.0, ""))  # bytes/s: a disk that is slow on every machine
    report = measured(monkeypatch, capsys)
    check(report)
    assert report["bottleneck"] == "disk" and not report["reading"]["cached"] and "SSD" in report["advice"]


def test_the_disk_is_read_past_the_page_cache_where_it_can_be(dataset: Path) -> None:
    found = reading.reading(ShardDataModule(str(dataset), global_batch_size=8), 0.1)
    assert found["bytes"] == sum(path.stat().st_size for path in dataset.glob("train/*.tar"))
    if found["bytes_per_second"] is None:
        assert "not measured" in found["note"], "a file system in memory is said to be one"
    else:
        assert found["bytes_per_second"] > 0


@pytest.mark.parametrize("validate", [["--trainer.val_check_interval", "0.3"], ["--trainer.val_check_interval", "5"],
                                      ["--trainer.check_val_every_n_epoch", "2"]])  # fmt: skip
def test_validations_are_counted_as_they_will_come(
    priced: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, validate: list[str]
) -> None:
    report = measured(monkeypatch, capsys, *validate)
    assert start(monkeypatch, "--run", "one", *validate) == 0
    with Path("runs/one/metrics.csv").open(newline="") as file:
        made = sum(bool(row["val/loss"]) for row in csv.DictReader(file))
    assert report["run"]["validated"] == made * 21 > 0


BAD = [
    (["--images", "0"], "--images is 0"),
    (["--images", "many"], "invalid size value"),
    (["--data.path", "nowhere"], "no packed dataset"),
    (["--data.batchsize", "3"], "data.batchsize is no setting"),
    (["--config", "nowhere.yaml"], "nowhere.yaml"),
    (["--trainer.limit_train_batches", "0"], "before it can be measured"),
    (["--prices", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    (["--prices", "negative.yaml"], "electricity is -1"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_sentence(
    priced: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, arguments: list[str], sentence: str
) -> None:
    write_prices(priced / "negative.yaml", electricity=-1)
    assert run(monkeypatch, "--config", "small.yaml", *arguments) == 2
    printed = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(printed) == 1 and printed[0].startswith("error: ") and sentence in printed[0], printed


def test_missing_prices_and_no_time_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    assert run(monkeypatch, "--config", "small.yaml") == 2
    assert "prices.yaml cannot be read" in capfd.readouterr().err
    assert run(monkeypatch, "--config", "small.yaml", seconds="-1") == 2
    assert "--seconds is -1" in capfd.readouterr().err


def test_settings_are_refused_where_a_command_takes_none(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["-m", "verify", "x", "--data.path", "y"])
    with pytest.raises(SystemExit) as end:
        commands.main()
    assert end.value.code == 2 and "unrecognized arguments: --data.path y" in capsys.readouterr().err


def test_commands_of_the_readme_work(priced: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Each `forecast` that README.md tells people to type, for a shorter time and on the tests' images."""
    text = (PROJECT / "README.md").read_text()
    found = re.findall(rf"^uv run python -m {PACKAGE} forecast(.*?)(?:#.*)?$", text, flags=re.MULTILINE)
    assert found
    for line in found:
        arguments = shlex.split(line.replace("configs/desktop.yaml", "small.yaml"))
        own = {"data/mine": str(dataset)}
        assert run(monkeypatch, *(own.get(word, word) for word in arguments), "--data.path", str(dataset)) == 0, line
        assert "this run: " in capsys.readouterr().out
