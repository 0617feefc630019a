"""`forecast` measures for a second or so on this machine; nothing here is judged by how fast it is."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from lightning_shards.forecasting import storage_bench
from lightning_shards.forecasting.render import render
from lightning_shards.packing.pack import PackOptions, pack
from lightning_shards.train.datamodule import ShardDataModule
from team import __main__ as commands

from . import PATIENCE
from .in_place import PACKAGE, PROJECT
from .samples import class_files, write_tree
from .servers import Web
from .test_cost import write_prices
from .test_train import project, start

__all__ = ["project"]  # a fixture


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
    monkeypatch.setattr(storage_bench, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr(
        storage_bench, "_disk", lambda *_: (1000.0, "")
    )  # bytes/s: a disk that is slow on every machine
    report = measured(monkeypatch, capsys)
    check(report)
    assert report["bottleneck"] == "disk" and not report["reading"]["cached"] and "SSD" in report["advice"]


def test_the_disk_is_read_past_the_page_cache_where_it_can_be(dataset: Path) -> None:
    found = storage_bench.reading(ShardDataModule(str(dataset), global_batch_size=8), 0.1)
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


@pytest.mark.parametrize(("limit", "images"), [("2", 2 * 8), ("0.5", 1 * 8), ("1", 8), ("99", 21)])
def test_a_validation_that_is_cut_short_is_counted_so(
    priced: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, limit: str, images: int
) -> None:
    report = measured(monkeypatch, capsys, "--trainer.limit_val_batches", limit)
    assert report["run"]["validated"] == 3 * images


def test_a_budget_that_ends_the_run_before_is_named(priced: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (priced / "budget.yaml").write_text("max_hours: 1000\nmax_cost: 1.0e-12\n")
    report = measured(monkeypatch, capsys, "--config", "budget.yaml")
    assert report["run"]["ended_by"] == "max_cost 1e-12" and "  max_cost 1e-12 ends it before\n" in render(report)
    report = measured(monkeypatch, capsys, "--config", "budget.yaml", "--max_cost", "1000")
    assert not report["run"]["ended_by"] and "ends it before" not in render(report)


def test_a_forecast_is_of_a_whole_training(priced: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    assert start(monkeypatch, "--run", "one", "--trainer.max_epochs", "1") == 0
    capfd.readouterr()
    assert run(monkeypatch, "--resume", "one") == 2
    assert "give runs/one/config.yaml by --config" in capfd.readouterr().err
    assert run(monkeypatch, "--config", "runs/one/config.yaml") == 0


BAD = [
    (["--images", "0"], "--images is 0"),
    (["--images", "many"], "invalid size value"),
    (["--data.path", "nowhere"], "no packed dataset"),
    (["--data.batchsize", "3"], "data.batchsize is no setting"),
    (["--config", "nowhere.yaml"], "nowhere.yaml"),
    (["--trainer.limit_train_batches", "0"], "leave something to train on"),
    (["--trainer.max_time", "00:00:00:00"], "before it can be measured"),
    (["--trainer.fast_dev_run", "true"], "nothing to forecast"),
    (["--short-side", "64"], "--short-side says how to pack: name the SOURCE first"),
    (["--copy"], "--copy says how to pack"),
    (["--field", "age=age"], "--field says how to pack"),
    (["--sample", "9"], "--sample says how to pack"),
    (["--short-side", "256"], "--short-side says how to pack"),  # what holds without it, too
    (["--picture", ""], "--picture is empty: name something, or leave it out"),
    (["--json", ""], "what to work on is empty"),
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
    assert run(monkeypatch, "--config", "small.yaml", seconds="inf") == 2
    assert "--seconds is inf" in capfd.readouterr().err


def test_settings_are_refused_where_a_command_takes_none(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["-m", "verify", "x", "--data.path", "y"])
    with pytest.raises(SystemExit) as end:
        commands.main()
    assert end.value.code == 2 and "unrecognized arguments: --data.path y" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["verify x --jso", "predict last x --jso", "runs --jso", "--jso verify x"])
def test_an_option_is_not_cut_short_and_the_nearest_is_named(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["commands", *line.split()])
    with pytest.raises(SystemExit) as end:
        commands.main()
    assert end.value.code == 2
    assert "unrecognized arguments: --jso; did you mean --json?" in capsys.readouterr().err


def unpacked(root: Path, each: int = 120) -> Path:
    """A folder of class folders."""
    return write_tree(root / "photos", class_files(each))


def test_a_source_is_sampled_and_nothing_is_left(
    priced: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    source = unpacked(tmp_path_factory.mktemp("source"))
    before = sorted(path for path in priced.rglob("*"))
    arguments = ["--config", "small.yaml", "--sample", "60", "--val", "0.2", "--workers", "1", "--images", "1M"]
    assert run(monkeypatch, str(source), *arguments, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    check(report)
    packing, data = report["packing"], report["dataset"]
    assert packing["images"] == 360 and 60 < packing["sampled"] <= 180 and data["path"] == str(source)
    assert data["images"] == round(360 * 0.7) and report["run"]["images"] == 3 * data["images"]
    assert report["run"]["validated"] == 3 * round(360 * 0.2)
    assert packing["seconds"] >= packing["images"] / packing["images_per_second"]
    assert packing["hours"] == pytest.approx(packing["seconds"] / 3600)
    assert packing["kwh"] == pytest.approx(report["host"]["watts"] * packing["seconds"] / 3.6e6)
    assert packing["cost"] == pytest.approx(packing["kwh"] * report["host"]["electricity"])
    lines = render(report).splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100 and "packing before: 360 images" in "\n".join(lines)
    assert sorted(path for path in priced.rglob("*")) == before, "nothing is left"

    assert pack(source, priced / "all", PackOptions(val=0.2), 1)["splits"]["train"]["images"] == data["images"]
    size = sum(path.stat().st_size for path in (priced / "all").rglob("*.tar"))
    assert packing["bytes"] == pytest.approx(size, rel=0.1), "from a sample, for all"


def under_way(folder: Path, moment: str) -> bool:
    """Whether the source is being packed, or what is packed is read: a process has a shard of it open."""
    if moment == "packing":
        return any(folder.glob(".forecast-*/.sample.packing/listing"))
    shards = [str(path) for path in folder.glob(".forecast-*/sample/train/*.tar")]
    if not any(folder.glob(".forecast-*/sample/dataset.json")):
        return False
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if str(link.readlink()) in shards:
                return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["packing", "training"])
def test_a_source_that_is_interrupted_leaves_nothing(
    priced: Path, tmp_path_factory: pytest.TempPathFactory, warm_python: str, moment: str, number: int
) -> None:
    source = unpacked(tmp_path_factory.mktemp("source"), 600)
    command = [warm_python, "-m", PACKAGE, "forecast", str(source), "--config", "small.yaml", "--seconds", "60"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not under_way(priced, moment) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and err.splitlines()[-1] == "stopped; nothing was written", err[-2000:]
    assert not list(priced.glob(".forecast-*"))


def test_bad_sources_are_one_sentence_and_leave_nothing(
    priced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    source = unpacked(tmp_path / "x", 3)
    for arguments, sentence in (
        (["nowhere"], "nowhere"),
        ([str(source), "--images", "0"], "--images is 0"),
        ([str(source), "--sample", "2"], "--sample 2 is less than the 3 classes"),
        ([str(source), "--data.path=d"], "leave out --data.path"),
        ([str(source), "--copy", "--quality", "95"], "--copy keeps every byte, so --quality decides nothing"),
        ([str(source), "--picture", "nowhere/x.svg"], "--picture nowhere/x.svg cannot be written"),
    ):
        before = sorted(path for path in priced.rglob("*"))
        assert run(monkeypatch, *arguments, "--config", "small.yaml", "--data.global_batch_size", "2") == 2
        printed = [line for line in capfd.readouterr().err.splitlines() if line]
        assert len(printed) == 1 and printed[0].startswith("error: ") and sentence in printed[0], printed
        assert sorted(path for path in priced.rglob("*")) == before


def test_the_picture_is_an_svg_of_what_was_measured(priced: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    report = measured(monkeypatch, capsys, "--picture", "f.svg")
    root = ElementTree.parse("f.svg").getroot()
    texts = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"loader alone", "model alone", "both, end to end", *(gpu["name"] for gpu in report["gpus"][1:])} <= set(
        texts
    )
    bars = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert len(bars) == sum(bool(s["images_per_second"]) for s in report["stages"].values()) + len(report["gpus"]) - 1
    assert [bar.get("class") for bar in bars].count("slow") == 1
    assert all(0 < float(bar.get("width", 0)) <= 380 for bar in bars)


def test_commands_of_the_readme_work(priced: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Each `forecast` that README.md tells people to type, for a shorter time and with a small network."""
    text = (PROJECT / "README.md").read_text()
    found = re.findall(rf"^uv run python -m {PACKAGE} forecast(.*?)(?:#.*)?$", text, flags=re.MULTILINE)
    assert len(found) == 3
    write_tree(priced / "path" / "to" / "images", class_files(20))
    (priced / "data").mkdir()
    for name in ("sample", "mine"):
        (priced / "data" / name).symlink_to(dataset)
    for line in found:
        arguments = shlex.split(line.replace("configs/desktop.yaml", "small.yaml"))
        assert run(monkeypatch, *arguments) == 0, line
        printed = capsys.readouterr().out
        assert "this run: " in printed and ("packing before" in printed) == ("path/to/images" in line)
