"""The records are what their rows say: the table of docs/records.md is made from them, and a record can be made."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from template import ROOT, run, succeed

sys.path.append(str(ROOT / "benchmarks"))
import record

CONFIGS = sorted(record.RECORDS.glob("*/config.yaml"))
TINY = """# One epoch of a few images.
log:
  wandb: false
data:
  path: data/sample
  fraction: 0.05  # one shard of 1,000 images
  global_batch_size: 64
  image_size: 28
  eval_crop: 1.0
model:
  backbone: small_cnn
trainer:
  max_epochs: {epochs}
"""


def test_the_table_is_that_of_the_records() -> None:
    assert record.page_with_table() == record.PAGE.read_text(), "python benchmarks/record.py --table"


def test_the_newest_record_comes_first(tmp_path: Path) -> None:
    """Also of two that were made on one day, whatever their names."""
    for name, ended in (
        ("b", "2026-01-02T10:00+00:00"),
        ("a", "2026-01-02T09:00+00:00"),
        ("c", "2025-12-30T11:00+00:00"),
    ):
        shutil.copytree(record.RECORDS / "fashion-cheapest", tmp_path / name)
        told = json.loads((tmp_path / name / "record.json").read_text())
        told["rows"] = [row | {"ended": ended} for row in told["rows"]]
        (tmp_path / name / "record.json").write_text(json.dumps(told))
    lines = record.table(tmp_path).splitlines()[2:]
    assert [re.search(r"records/(\w)/", line)[1] for line in lines] == ["b", "a", "c"]  # type: ignore[index]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.parent.name)
def test_a_record_is_of_its_config(config: Path) -> None:
    """A config is short, and its record's rows are of this very file and of one machine, whose report lies beside."""
    lines = config.read_text().splitlines()
    assert len(lines) < 40 and lines[0].startswith("# ") and yaml.safe_load("\n".join(lines))
    if (told := config.with_name("record.json")).exists():
        rows = json.loads(told.read_text())["rows"]
        assert {row["config"] for row in rows} == {record.digest(config)}
        assert all(len({row[name] for row in rows}) == 1 for name in record.SAME)
        assert (
            len({row["seed"] for row in rows}) == len(rows) and "</html>" in config.with_name("report.html").read_text()
        )


@pytest.mark.project
def test_the_project_knows_all_that_the_configs_set(project: Path, warm_python_of_project: str) -> None:
    check = """
import sys, train
from lightning_shards.train import TrainingCLI
from lightning_shards_demo.model import ImageModel
for config in sys.argv[1:]:
    TrainingCLI(ImageModel, args=["--config", config, "--data.path", "data/sample", "--trainer.accelerator", "cpu"])
print("all known")
"""
    assert "all known" in succeed([warm_python_of_project, "-c", check, *map(str, CONFIGS)], project)


@pytest.mark.project
def test_a_record_is_made(project: Path, warm_python_of_project: str, tmp_path: Path) -> None:
    """A seed beside the sample run; it is not trained again, and rows of another config are not mixed with it."""
    config = tmp_path / "tiny" / "config.yaml"
    config.parent.mkdir()
    config.write_text(TINY.format(epochs=1))
    warm = {"PYTHONEXECUTABLE": warm_python_of_project}
    command = [warm_python_of_project, str(ROOT / "benchmarks" / "record.py"), "--config", str(config)]
    command += ["--page", str(tmp_path / "records.md"), "--sample", "0.13", "--seeds", "4"]
    shutil.copy(record.PAGE, tmp_path / "records.md")
    succeed(command, project, env=warm)
    (row,) = json.loads(config.with_name("record.json").read_text())["rows"]
    assert row["seed"] == 4 and row["images_seen"] == 960 and row["metric"] == "test/accuracy" and 0 < row["value"] < 1
    assert abs(row["mirrored"] - row["value"]) < 0.2 and row["mirrored"] > 0
    rate = sum(row["sample_images_per_second"]) / 2
    assert row["sample_images"] == pytest.approx(row["seconds"] * rate, rel=0.01)
    report = config.with_name("report.html").read_text()
    assert "</html>" in report and str(project) not in report + json.dumps(row), "a record names no folder of a machine"
    line = record.cells(config, [row])
    assert f"{100 * row['value']:.2f}% ({100 * row['value']:.2f}); {100 * row['mirrored']:.2f}% with mirror" in line
    assert f"{row['seconds'] / 60:.1f}" in line

    runs = project / "data" / "records" / "tiny" / "runs"
    shutil.copytree(runs / "seed-4", runs / "seed-5")
    settings = runs / "seed-5" / "config.yaml"
    settings.write_text(settings.read_text().replace("seed_everything: 4", "seed_everything: 5"))
    assert "seed 4 is there already" in succeed(command, project, env=warm)
    assert "2 seeds: mean" in config.with_name("report.html").read_text(), "made anew, now that there is another"
    told = runs / "seed-4" / "summary.json"
    told.write_text(told.read_text().replace(str(json.loads(told.read_text())["metrics"][row["metric"]]), "0.99"))
    shutil.rmtree(runs / "seed-5")
    succeed(command, project, env=warm)
    assert "2 seeds: mean" in config.with_name("report.html").read_text(), "the old one: this run is another training"
    config.write_text(TINY.format(epochs=2))
    refused = run(command, project, env=warm)
    assert refused.returncode == 1 and "is of another config.yaml" in refused.stderr
