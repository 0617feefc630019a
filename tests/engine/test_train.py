"""train.py as a user runs it: settings, the run's folder, W&B, bad input, trouble, stopping and going on."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import train
import wandb
import yaml
from lightning_shards import machine
from lightning_shards.errors import InputError
from lightning_shards.train import hardware, loggers, wandb_logger
from lightning_shards.train.cli import TrainingCLI
from lightning_shards.train.evaluate import evaluate
from lightning_shards.train.ledger import read
from lightning_shards.train.parser import SHOWN_IN_HELP
from team.model import ImageModel
from wandb.proto import wandb_internal_pb2

from . import PATIENCE
from .conftest import write_dataset
from .in_place import PROJECT
from .servers import WandbServer

SMALL: dict[str, dict[str, Any]] = {
    "data": {"global_batch_size": 8, "image_size": 16, "workers": 2, "crop_scale": [0.6, 1.0]},
    "model": {"backbone": "small_cnn", "learning_rate": 0.01},
    "trainer": {"max_epochs": 3, "log_every_n_steps": 4, "accelerator": "cpu", "enable_progress_bar": False},
    "log": {"wandb": False, "report": False},
}


@pytest.fixture
def project(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's configs and a small one, in which train.py is run."""
    (tmp_path / "configs").symlink_to(PROJECT / "configs")
    settings = {**SMALL, "data": {**SMALL["data"], "path": str(dataset)}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")  # the tests of resuming have switched it off
    return tmp_path


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str, config: str | None = "small.yaml") -> int:
    """Run train.py in this process; its exit status."""
    given = [*(["--config", config] if config else []), *arguments]
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    try:
        train.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def spawn(
    folder: Path, *arguments: str, config: str | None = "small.yaml", output: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start train.py as a process of its own."""
    given = [*(["--config", config] if config else []), *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(PROJECT / "train.py"), *given]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output, text=True)


def summary(run: str) -> dict[str, Any]:
    return json.loads(Path("runs", run, "summary.json").read_text())


def weights(run: str, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(Path("runs", run, "checkpoints", f"{name}.ckpt"), weights_only=True)["state_dict"]


def ledger(run: str) -> dict[tuple[int, int], list[int]]:
    """(epoch, position) -> ids of the global batch there, as the highest attempt has it."""
    rows = [row for path in sorted(Path("runs", run, "ledger").glob("rank-*.jsonl")) for row in read(path)]
    latest: dict[tuple[int, int], int] = {}
    for row in rows:
        place = (row["epoch"], row["position"])
        latest[place] = max(latest.get(place, 0), row["attempt"])
    steps: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        place = (row["epoch"], row["position"])
        if row["attempt"] == latest[place]:
            steps.setdefault(place, []).extend(row["ids"])
    return steps


def test_a_run_learns_and_leaves_everything_behind(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert start(monkeypatch, "--run", "first", "--log.tensorboard", "true") == 0
    printed = capsys.readouterr().out
    assert "test/accuracy" in printed and "runs/first/" in printed
    assert printed.rstrip().endswith(" uv run python -m lightning_shards report first"), "the settings ask for none"
    folder = Path("runs/first")
    assert {"config.yaml", "checkpoints", "metrics.csv", "summary.json", "tensorboard"} <= {
        f.name for f in folder.iterdir()
    }
    kept = {"best.ckpt", "last.ckpt", "step-000000024.ckpt", "step-000000036.ckpt"}
    assert {f.name for f in (folder / "checkpoints").iterdir()} == kept
    assert list((folder / "tensorboard").glob("events*")) and not (folder / "report.html").exists()
    told = summary("first")
    assert (told["status"], told["images_seen"], told["epochs"], told["skipped"]) == ("done", 3 * 96, 3, 0)
    assert told["metrics"]["test/accuracy"] > 0.9 and told["metrics"]["val/accuracy"] > 0.9
    assert told["images_per_second"] > 0 and 0 <= told["data_wait_fraction"] <= 1 and told["seconds"] > 0
    assert told["kwh"] is None and told["cost"] is None and told["devices"] == 1
    assert told["resolved"]["precision"] == told["precision"] == "32-true" and told["resolved"]["compile"] is False
    assert told["versions"]["torch"] == torch.__version__
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"train/loss", "val/accuracy", "test/accuracy", "train/learning_rate", "speed/images_per_second"} <= set(
        rows[0]
    )
    rates = [float(row["train/learning_rate"]) for row in rows if row["train/learning_rate"]]
    assert max(rates) <= 0.01 and rates[-1] < 0.001
    checkpoint = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["targets"] == ["red", "green", "blue"]

    assert start(monkeypatch, "--run", "again", config="runs/first/config.yaml") == 0
    assert summary("again")["metrics"] == told["metrics"], "config.yaml repeats the run"
    assert all(torch.equal(a, b) for a, b in zip(weights("first").values(), weights("again").values(), strict=True))

    measured = evaluate(ImageModel, folder)
    assert measured["test/accuracy"] == told["metrics"]["test/accuracy"]
    assert start(monkeypatch, "--run", "first") == 2, "a run is not written over"
    assert summary("first") == told


def test_an_evaluation_computes_in_what_the_run_was_told_to(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it gives the run's own test again; what this device cannot, and what nothing can, is told apart."""
    assert start(monkeypatch, "--run", "r", "--trainer.precision", "bf16-mixed") == 0
    own = summary("r")["metrics"]["test/loss"]
    assert evaluate(ImageModel, Path("runs/r"))["test/loss"] == pytest.approx(own, rel=1e-6)
    config = Path("runs/r/config.yaml")
    text = config.read_text()
    config.write_text(text.replace("bf16-mixed", "16-mixed"))
    elsewhere = evaluate(ImageModel, Path("runs/r"))["test/loss"]  # of a run that was trained on a GPU
    assert elsewhere == pytest.approx(own, rel=0.05) and elsewhere != pytest.approx(own, rel=1e-6)
    config.write_text(text.replace("bf16-mixed", "17-mixed"))
    with pytest.raises(InputError, match="17-mixed"):
        evaluate(ImageModel, Path("runs/r"))


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_the_other_tasks_learn(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    root = write_dataset(tmp_path / task, task=task)
    changes = ["--data.path", str(root), "--trainer.max_epochs", "6", "--trainer.gradient_clip_val", "1.0"]
    changes += ["--model.mixup=0.2", "--model.cutmix=1.0", "--model.erasing=0.1", "--model.color_jitter=0.1"]
    assert start(monkeypatch, "--run", task, "--log.report", "true", *changes) == 0
    metrics = summary(task)["metrics"]
    evaluation = json.loads(Path("runs", task, "evaluation/test.json").read_text())
    page = Path("runs", task, "report.html").read_text()
    if task == "regression":
        assert evaluation["counts"]["mean_absolute_error"] == pytest.approx(metrics["test/mean_absolute_error"])
        assert len(evaluation["points"]) == evaluation["images"] == 21 and "Furthest off" in page
        assert 'aria-label="shade: residuals"' in page and 'aria-label="shade: predicted over actual"' in page
    else:
        averages = evaluation["counts"]["average_precision"]
        assert sum(averages) / 3 == pytest.approx(metrics["test/average_precision"])
        assert [row[4] for row in evaluation["counts"]["stat_scores"]] == [7, 7, 7]
        assert "average precision" in page and "green" in page
    assert "What is missing" not in page
    assert metrics["test/f1"] > 0.9 if task == "multi_label" else metrics["test/mean_absolute_error"] < 0.2


def settings_only(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let train.py end after its settings were parsed; they are appended to the list."""
    seen: list[Any] = []

    def stop(cli: TrainingCLI) -> None:
        seen.append(cli.asked)
        sys.exit(0)

    monkeypatch.setattr(TrainingCLI, "instantiate_classes", stop)
    return seen


def test_the_default_config_does_not_leak_under_another(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = settings_only(monkeypatch)
    start(monkeypatch)
    start(monkeypatch, config=None)
    start(monkeypatch, "--model.warmup", "0.3", config=None)
    sample = yaml.safe_load((PROJECT / "configs/sample.yaml").read_text())
    assert seen[0]["model"]["warmup"] != sample["model"]["warmup"] == seen[1]["model"]["warmup"]
    assert seen[2]["model"]["warmup"] == 0.3 and seen[0]["log"]["project"] is None


def test_every_shipped_config_is_valid(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = settings_only(monkeypatch)
    shipped = sorted((PROJECT / "configs").glob("*.yaml"))
    for path in shipped:
        assert start(monkeypatch, config=str(path)) == 0, path
        for line in path.read_text().splitlines():
            assert line.startswith("#") or ":" in line
    assert len(seen) == len(shipped) >= 3


def test_help_is_short_and_help_all_has_everything(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert start(monkeypatch, "--help", config=None) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 60 and max(map(len, short.splitlines())) <= 120
    assert all(f"--{name}" in short for name in SHOWN_IN_HELP)
    assert start(monkeypatch, "--help-all", config=None) == 0
    assert len(capsys.readouterr().out.splitlines()) > 150


BAD = [
    (["--data.batchsize", "3"], "data.batchsize is no setting"),
    (["--nonsense", "3"], "nonsense is no setting"),
    (["--trainer.max_epoch", "3"], "trainer.max_epoch is no setting; did you mean trainer.max_epochs?"),
    (["--resum", "last"], "resum is no setting; did you mean resume?"),
    (["--data.global_batch_size", "many"], "global_batch_size"),
    (["--model.backbone", "resnet19"], "resnet18"),
    (["--model.backbone", "timm/resnet180"], "was meant"),
    (["--model.backbone", "vit_b_16", "--data.size_schedule", "{8: 0.5}"], "vit_b_16 cannot take the 8 pixels of"),
    (["--data.path", "nowhere"], "no packed dataset"),
    (["--data.global_batch_size", "97"], "larger than the training set"),
    (["--data.micro_batch_size", "3"], "6 or 9 would do"),
    (["--trainer.max_steps", "5"], "max_epochs"),
    (["--trainer.accumulate_grad_batches", "2"], "micro_batch_size"),
    (["--trainer.max_epochs", "0"], "max_epochs"),
    (["--trainer.precision", "17"], "precision"),
    (["--model.optimizer", "lion"], "optimizer"),
    (["--resume", "nowhere"], "there is no run"),
    (["--resume", "last"], "there is no run"),
    (["--run", "../x"], "cannot be a run's name"),
    (["--run", "last"], "cannot be a run's name"),
    (["--run", ""], "needs a name"),
    (["--resume", ""], "needs a name"),
    (["--save_every_minutes", "-1"], "save_every_minutes"),
    (["--trainer.sync_batchnorm", "true"], "GPUs only"),
    (["--keep_checkpoints", "0"], "at least 1"),
    (["--patience", "0"], "at least 1"),
    (["--seed_everything", "-1"], "a whole number from 0 to 4294967295"),
    (["--seed_everything", "true"], "a whole number from 0 to 4294967295"),
    (["--ema_decay", "1"], "below 1"),
    (["--trainer.val_check_interval", "5.0"], "val_check_interval"),
    *([] if hardware.accelerator("gpu") != "cpu" else [(["--trainer.accelerator", "gpu"], "gpu")]),
    (["--trainer.accelerator", "cuda8"], "accelerator"),
    (["--model.learning_rate", "-1"], "above 0"),
    (["--model.bakbone", "resnet18"], "model.backbone"),
    (["--data.balance", "{red: twice}"], "data.balance {red: twice}: each class has a number"),
    (["--config", "nowhere.yaml"], "nowhere.yaml"),
    (["--config", "broken.yaml"], "broken.yaml"),
    (["--config", "seeded.yaml"], "seeded.yaml: data.seed is not for a config, seed_everything says it: leave it out"),
    (["--model.weights", "small.yaml"], "no checkpoint"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_sentence_and_nothing_written(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, arguments: list[str], sentence: str
) -> None:
    (project / "broken.yaml").write_text("model: [backbone: 3\n")
    (project / "seeded.yaml").write_text("data: {seed: 3}\n")
    before = sorted(p.name for p in project.iterdir())
    assert start(monkeypatch, *arguments) == 2
    printed = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(printed) == 1 and printed[0].startswith("error: ") and sentence in printed[0], printed
    assert len(printed[0]) < 300
    assert sorted(p.name for p in project.iterdir()) == before


def test_a_dataset_with_other_classes_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert start(monkeypatch, "--run", "one", "--trainer.max_epochs", "1") == 0
    other = write_dataset(tmp_path / "other", task="regression")
    with pytest.raises(Exception, match="trained for single_label"):
        evaluate(ImageModel, Path("runs/one"), str(other))
    text = (tmp_path / "other/dataset.json").read_text()
    assert text
    more = write_dataset(tmp_path / "more", sizes=(40, 41))
    before = summary("one")
    assert (
        start(monkeypatch, "--resume", "one", "--data.path", str(more), "--trainer.max_epochs", "2", config=None) == 2
    )
    assert summary("one") == before


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoint(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    original, calls = ImageModel.training_step, []

    def breaks(self: ImageModel, batch: Any, batch_idx: int) -> torch.Tensor:
        calls.append(batch.ids.tolist())
        loss = original(self, batch, batch_idx)
        return loss * float("nan") if len(calls) >= 15 else loss  # in the second epoch of 12 steps

    monkeypatch.setattr(ImageModel, "training_step", breaks)
    assert start(monkeypatch, "--run", "bad") == 1
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "no longer finite" in error[0]
    assert ", ".join(map(str, calls[14])) in error[0], "the samples are named"
    assert len(calls) < 15 + 11
    told = summary("bad")
    assert told["status"] == "failed" and "finite" in told["error"]
    assert all(value.isfinite().all() for value in weights("bad").values())
    assert torch.load("runs/bad/checkpoints/last.ckpt", weights_only=True)["epoch"] == 0


def test_out_of_memory_names_the_micro_batch_to_try(project: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def full(self: ImageModel, batch: Any, batch_idx: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ImageModel, "training_step", full)
    assert start(monkeypatch, "--run", "full", "--data.global_batch_size", "12") == 1
    assert "--data.micro_batch_size 6" in capfd.readouterr().err
    assert summary("full")["status"] == "failed"


def test_too_many_damaged_samples_end_the_run(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    root = write_dataset(tmp_path / "damaged", damaged={3: b"x", 50: b""})
    arguments = ["--data.path", str(root), "--trainer.max_epochs", "2"]
    assert start(monkeypatch, "--run", "few", *arguments, "--data.max_skipped_fraction", "0.05") == 0
    told = summary("few")
    assert told["skipped"] == 4 and told["status"] == "done"
    assert len(Path("runs/few/skipped/rank-0.jsonl").read_text().splitlines()) == 4
    assert start(monkeypatch, "--run", "many", *arguments, "--data.max_skipped_fraction", "0.01") == 1
    assert "could not be decoded" in capfd.readouterr().err


def wandb_records(run: str) -> list[Any]:
    """The records of the newest offline W&B run.

    W&B writes from a process of its own, which ends first: only then is all of it there. It takes paths to be relative
    to the folder in which it was started, so each test needs another one as well.
    """
    wandb.teardown()
    data = max(Path("runs", run, "wandb").glob("offline-run-*/run-*.wandb")).read_bytes()
    assert data[:4] == b":W&B"
    records, parts, offset = [], b"", 7
    while offset + 7 <= len(data):
        if 32_768 - offset % 32_768 < 7:  # LevelDB's log format: blocks of 32 KiB, chunks of checksum, length, type
            offset += 32_768 - offset % 32_768
            continue
        length, kind = struct.unpack_from("<HB", data, offset + 4)
        parts += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def values(records: list[Any], kind: str) -> dict[str, Any]:
    """The last value of each name in the records of a kind: `history`, `summary` or `config`."""
    found: dict[str, Any] = {}
    for record in records:
        if record.HasField(kind):
            content = getattr(record, kind)
            items = content.item if kind == "history" else content.update
            found |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
    return found


def test_wandb_offline_has_config_metrics_pictures_and_the_figures_of_the_summary(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(project / "no-netrc"))
    arguments = ["--run", "w", "--trainer.max_epochs", "1", "--log.wandb", "true", "--log.project", "demo"]
    assert start(monkeypatch, *arguments) == 0
    records = wandb_records("w")
    run = next(r.run for r in records if r.HasField("run"))
    assert (run.project, run.display_name, run.run_id) == ("demo", "w", Path("runs/w/wandb-id.txt").read_text().strip())
    config = values(records, "config") | {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["data"]["global_batch_size"] == 8 and config["resolved"]["precision"] == "32-true"

    logged, told, sums = values(records, "history"), summary("w"), values(records, "summary")
    assert {"train/loss", "train/learning_rate", "val/accuracy", "test/accuracy", "speed/images_per_second"} <= set(
        logged
    )
    groups = {name.partition("/")[0] for name in {*logged, *sums} if not name.startswith("_")}
    assert groups <= {"train", "val", "test", "speed", "cost", "epoch", "trainer", "status"}, "one naming"
    assert logged["test/accuracy"] == pytest.approx(told["metrics"]["test/accuracy"])
    for name, value in {
        "train/images_seen": told["images_seen"],
        "train/epochs": told["epochs"],
        "train/skipped": told["skipped"],
        "speed/images_per_second": told["images_per_second"],
        "speed/data_wait_fraction": told["data_wait_fraction"],
        "speed/seconds": told["seconds"],
        "cost/kwh": told["kwh"],
        "cost/money": told["cost"],
        "status": "done",
        **told["metrics"],
    }.items():
        assert sums.get(name) == value, name

    for split in ("val", "test"):
        assert any(key.startswith(f"{split}/confusion_matrix") for key in logged)
        kept = json.loads(Path(f"runs/w/evaluation/{split}.json").read_text())["examples"]
        pictures = list(Path("runs/w/wandb").glob(f"offline-run-*/files/media/images/{split}/predictions*.png"))
        assert len(pictures) == sum(map(len, kept.values())) > 0
    assert not artifacts(records), "the report goes there only where there is a server"


def artifacts(records: list[Any]) -> list[tuple[str, str]]:
    """(name, type) of what was to be sent, but for the tables of charts."""
    asked = [r.request.log_artifact.artifact for r in records if r.HasField("request")]
    asked += [r.artifact for r in records if r.HasField("artifact")]
    return [(a.name, a.type) for a in asked if a.type == "report"]


def test_wandb_gets_the_report_as_an_artifact(project: Path) -> None:
    """As it is sent where W&B is online; here the records of it go into the offline file."""
    (project / "report.html").write_text("<p>hello</p>")
    (project / "runs/a").mkdir(parents=True)
    run = wandb.init(mode="offline", dir=project / "runs/a", id="abc")
    wandb_logger.keep_report(run, project / "report.html")
    run.finish()
    assert artifacts(wandb_records("a")) == [("report-abc", "report")]


def test_a_resumed_run_goes_on_with_its_wandb_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more segment of the same run, which `wandb sync` sends in the order of their begin."""
    arguments = ["--log.wandb", "true", "--log.project", "demo", "--log.entity", "team"]
    assert start(monkeypatch, "--run", "w", "--trainer.max_epochs", "1", *arguments) == 0
    first = values(wandb_records("w"), "history")["trainer/global_step"]
    time.sleep(1.1)  # W&B names a segment by the second of its begin
    again = ["--trainer.max_epochs", "2", "--log.report", "true"]
    assert start(monkeypatch, "--resume", "w", *again, config=None) == 0
    segments = sorted(Path("runs/w/wandb").glob("offline-run-*"))
    identity = Path("runs/w/wandb-id.txt").read_text().strip()
    assert len(segments) == 2 and all(segment.name.endswith(f"-{identity}") for segment in segments)
    records = wandb_records("w")
    assert next(r.run.run_id for r in records if r.HasField("run")) == identity
    assert values(records, "history")["trainer/global_step"] > first
    assert values(records, "summary")["train/images_seen"] == summary("w")["images_seen"] == 2 * 96
    assert summary("w")["changed_on_resume"] == {"trainer.max_epochs": 2, "log.report": True}
    assert "--trainer.max_epochs 2" in Path("runs/w/report.html").read_text()
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", *map(str, segments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and "2 run(s)" in done.stdout + done.stderr, done.stderr


def test_wandb_is_online_with_a_key_and_off_when_asked(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(project / "no-netrc"))
    modes: list[str] = []
    wandb.teardown()
    for key in ("", "0123456789" * 4):
        monkeypatch.setenv("WANDB_API_KEY", key)
        _, made = loggers.build(loggers.LogSettings(), project / "run")
        assert isinstance(made, wandb_logger.Wandb)
        modes.append(made.mode)
        wandb.teardown()
    assert modes == ["offline", "online"] and not capfd.readouterr().err
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert loggers.build(loggers.LogSettings(), project / "run")[1].mode == "offline"  # type: ignore[attr-defined]
    assert "WANDB_MODE is online, and no key is known" in capfd.readouterr().err, "what was asked for is not ignored"
    wandb.teardown()
    assert len(loggers.build(loggers.LogSettings(wandb=False), project / "run")) == 1


@pytest.mark.parametrize("key", ["0123456789" * 4, "short"])
def test_with_a_key_and_no_way_out_wandb_is_offline(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, key: str
) -> None:
    """A server that does not answer is waited for by the time of WANDB_INIT_TIMEOUT, ours or the user's."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()
    given = {"WANDB_API_KEY": key, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "1"}
    for name, value in {**given, "NETRC": str(project / "no-netrc")}.items():
        monkeypatch.setenv(name, value)
    folder = project / "runs/o"
    folder.mkdir(parents=True)
    logger = wandb_logger.make(folder, "demo", None)
    assert logger
    logger.begin({"a": 1})
    logger.log_metrics({"train/loss": 0.5}, 7)
    wandb_logger.finish({"status": "done"}, None, failed=False)
    records = wandb_records("o")
    assert values(records, "history")["trainer/global_step"] == 7 and values(records, "summary")["status"] == "done"
    err = capfd.readouterr().err
    assert err.count("W&B is offline") == err.count("\n") == 1 and "Traceback" not in err, err
    assert logger.mode == "offline" and (folder / "wandb-id.txt").read_text().strip() == logger.version


def online(project: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[WandbServer, Any]:
    """A server of W&B, and a logger that has begun a run there and waits for it a second at the end."""
    server = WandbServer()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()
    given = {"WANDB_API_KEY": "0123456789" * 4, "WANDB_BASE_URL": server.url, "WANDB_FINISH_TIMEOUT": "1"}
    for name, value in {**given, "NETRC": str(project / "no-netrc")}.items():
        monkeypatch.setenv(name, value)
    (folder := project / "runs/o").mkdir(parents=True)
    logger = wandb_logger.make(folder, "demo", None)
    assert logger
    logger.begin({"a": 1})
    return server, logger


def test_a_wandb_server_that_goes_away_is_waited_for_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    server, logger = online(project, monkeypatch)
    server.gone.set()
    for step in range(20):
        logger.log_metrics({"train/loss": 0.5}, step)
    wandb_logger.finish({"status": "done"}, None, failed=False)
    err = capfd.readouterr().err
    assert logger.mode == "online" and re.fullmatch(
        r"W&B has not taken everything yet: `wandb sync \S+/run-\S+` .*\n", err
    )
    wandb.teardown()


def test_a_wandb_server_that_hangs_is_said_while_it_is_waited_for(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(wandb_logger, "TOLD_AFTER", 0.0)
    server, logger = online(project, monkeypatch)
    server.hung.set()
    logger.log_metrics({"train/loss": 0.5}, 1)
    wandb_logger.finish({"status": "done"}, None, failed=False)
    err = capfd.readouterr().err
    assert re.fullmatch(r"waiting for W&B's server: 1 s .*\nW&B has not taken everything yet: .*\n", err), err
    wandb.teardown()


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ("", "online"),
        ("run", "online"),
        ("dryrun", "offline"),
        ("shared", "shared"),
        ("offlin", None),
        ("Offline", None),
    ],
)
def test_a_mode_of_wandb_is_obeyed_or_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, given: str, mode: str | None
) -> None:
    for name, value in {"WANDB_MODE": given, "WANDB_API_KEY": "0123456789" * 4}.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()
    if mode is None:
        with pytest.raises(InputError, match=f"WANDB_MODE is '{given}', it must be one of online, offline,"):
            wandb_logger.make(project / "runs/o", "demo", None)
        return
    logger = wandb_logger.make(project / "runs/o", "demo", None)
    wandb.teardown()
    assert logger and logger.mode == mode


@pytest.mark.parametrize("word", ["offline", "disabled"])
def test_what_wandb_was_told_by_its_own_command_is_obeyed(
    project: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """`wandb offline` and `wandb disabled` write a file."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    (project / "wandb").mkdir()
    (project / "wandb/settings").write_text(f"[default]\nmode = {word}\n")
    wandb.teardown()
    logger = wandb_logger.make(project / "runs/o", "demo", None)
    wandb.teardown()
    assert (logger.mode if logger else "disabled") == word


def test_a_training_goes_on_without_wandb(project: Path) -> None:
    """Its helping process is ended in the middle of a training, as by a scheduler that signals all processes."""
    process = spawn(project, "--run", "w", "--log.wandb", "true", "--ledger", "true", "--trainer.max_epochs", "12")
    lines = Path("runs/w/ledger/rank-0.jsonl")
    while not (lines.exists() and len(lines.read_text().splitlines()) > 14) and process.poll() is None:
        time.sleep(0.01)
    found = [p for p in Path("/proc").iterdir() if p.name.isdigit() and is_helper(p, process.pid)]
    for helper in found:
        os.kill(int(helper.name), signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and found, err
    assert err.count("W&B gets no more of this attempt") == 1, err
    told = summary("w")
    assert (told["status"], told["images_seen"]) == ("done", 12 * 96) and told["metrics"]["test/accuracy"] > 0.9


def is_helper(process: Path, of: int) -> bool:
    try:
        name, _, rest = process.joinpath("stat").read_text().rpartition(")")
    except OSError:
        return False
    return "(wandb" in name and int(rest.split()[1]) == of


def test_a_run_folder_that_is_moved_meanwhile_is_said(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(TrainingCLI, "test", lambda _: Path("runs/before").rename("runs/after"))
    assert start(monkeypatch, "--run", "before", "--trainer.max_epochs", "1") == 0
    assert "runs/before was moved or removed" in capfd.readouterr().err
    assert summary("before")["status"] == "done" and Path("runs/before/config.yaml").exists()


def test_another_python_than_the_projects_is_one_sentence() -> None:
    """`python train.py` in place of `uv run train.py`: that Python has nothing installed."""
    command = [sys.executable, "-I", "-S", str(PROJECT / "train.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "uv run train.py" in done.stderr


def test_a_terminal_that_is_closed_saves(project: Path) -> None:
    """The trainer gets SIGHUP, and nothing can be written to the terminal any more; under `nohup` it goes on."""
    master, terminal = os.openpty()
    process = spawn(project, "--run", "left", "--trainer.max_epochs", "200",
                    "--trainer.enable_progress_bar", "true", output=terminal)  # fmt: skip
    os.close(terminal)
    while not Path("runs/left/metrics.csv").exists() and process.poll() is None:
        time.sleep(0.01)
    os.close(master)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=PATIENCE) == 75 and summary("left")["status"] == "stopped"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` starts a command
    try:
        assert signal.SIGHUP not in machine.stop_signals()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.SIGHUP in machine.stop_signals()


def test_sigterm_saves_and_the_resume_ends_the_same(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--ledger", "true", "--trainer.max_epochs", "20", "--data.micro_batch_size", "4"]
    assert start(monkeypatch, "--run", "whole", *arguments) == 0
    process = spawn(project, "--run", "cut", *arguments)
    lines = Path("runs/cut/ledger/rank-0.jsonl")
    while not (lines.exists() and len(lines.read_text().splitlines()) > 30) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, err
    assert "--resume cut" in out and summary("cut")["status"] == "stopped"
    stopped = summary("cut")["images_seen"]
    assert 30 * 8 <= stopped < 20 * 96
    assert start(monkeypatch, "--resume", "last", "--data.micro_batch_size", "2", config=None) == 0
    steps, whole = ledger("cut"), ledger("whole")
    assert {place: sorted(ids) for place, ids in steps.items()} == {place: sorted(ids) for place, ids in whole.items()}
    for epoch in range(20):
        ids = Counter(i for (e, _), step in steps.items() if e == epoch for i in step)
        assert ids == Counter(range(96)), "each sample exactly once"
    rows = [row for row in read(lines) if row["ids"]]
    assert len(rows) == len({(row["epoch"], row["position"]) for row in rows}), "nothing was done twice"
    told = summary("cut")
    assert (told["status"], told["images_seen"]) == ("done", 20 * 96)
    assert start(monkeypatch, "--resume", "cut", config=None) == 0, "a finished run only measures again"
    assert summary("cut")["metrics"]["test/loss"] == pytest.approx(told["metrics"]["test/loss"])


def test_two_ranks_killed_and_one_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices give the global batches of one, and after SIGKILL nothing behind the last checkpoint is lost."""
    arguments = ["--ledger", "true", "--trainer.max_epochs", "6"]
    assert start(monkeypatch, "--run", "one", *arguments) == 0
    process = spawn(project, "--run", "two", *arguments, "--trainer.devices", "2", "--save_every_minutes", "0.0001")
    paths = [Path(f"runs/two/ledger/rank-{rank}.jsonl") for rank in range(2)]
    while not all(p.exists() and len(p.read_text().splitlines()) > 20 for p in paths) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL, err
    assert start(monkeypatch, "--resume", "two", "--trainer.devices", "1", config=None) == 0
    two, one = ledger("two"), ledger("one")
    assert {place: sorted(ids) for place, ids in two.items()} == {place: sorted(ids) for place, ids in one.items()}
    assert summary("two")["images_seen"] == 6 * 96
    assert summary("two")["metrics"]["test/accuracy"] > 0.9


def test_no_garbage_is_looked_for_during_the_first_imports() -> None:
    code = """
import gc
from lightning_shards.entry import importing
try:
    with importing():
        raise ImportError
except ImportError:
    assert gc.isenabled() and not gc.get_freeze_count()
for again in (False, True):
    with importing():
        assert gc.isenabled() is again
    frozen = frozen if again else gc.get_freeze_count()
    assert gc.isenabled() and gc.get_freeze_count() == frozen > 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)
