"""Lightning's stock callbacks: each does what Lightning documents beside the engine's own, or is refused."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import callbacks as stock
from lightning.pytorch.callbacks import LambdaCallback, ThroughputMonitor
from lightning_shards.train import own_callbacks
from lightning_shards.train.cli import TrainingCLI
from lightning_shards.train.ledger import read
from lightning_shards.train.own_callbacks import OBEYED, REFUSED
from team.model import ImageModel

from . import PATIENCE, probe, starts
from .probe import Seen, attempt
from .starts import Strike
from .test_flags import BARE, flag, folder  # noqa: F401  (a fixture)

pytestmark = pytest.mark.usefixtures("folder")


def added(name: str, **settings: Any) -> list[str]:
    return [f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{key}={value}" for key, value in settings.items())]


def files(seen: Seen, folder: str) -> list[str]:  # noqa: F811
    return [name for name in seen.files if name.startswith(folder)]


TRIED: dict[str, tuple[list[str], Callable[[Seen], bool]]] = {  # arguments, and what is seen of it
    "Callback": ([*BARE, *added("Callback")], lambda s: s.summary["status"] == "done"),
    "Checkpoint": ([*BARE, *added("Checkpoint")], lambda s: s.summary["status"] == "done"),
    "DeviceStatsMonitor": ([*BARE, *added("DeviceStatsMonitor")], lambda s: "DeviceStatsMonitor" in s.metrics),
    "EMAWeightAveraging": (added("EMAWeightAveraging", decay=0.5), lambda s: s.summary["status"] == "done"),
    "EarlyStopping": (
        [*added("EarlyStopping", monitor="val/loss", patience=1, min_delta=1e9), *flag(max_epochs="4")],
        lambda s: (s.summary["status"], s.summary["epochs"]) == ("done", 2),
    ),
    "LearningRateMonitor": ([*BARE, *added("LearningRateMonitor")], lambda s: "lr-AdamW" in s.metrics),
    "ModelCheckpoint": (
        [*BARE, *added("ModelCheckpoint", every_n_train_steps=3, save_last="true")],
        lambda s: (
            files(s, "ModelCheckpoint") == ["ModelCheckpoint/epoch=0-step=3.ckpt", "ModelCheckpoint/last.ckpt"]
            and "checkpoints/last.ckpt" in s.files
        ),
    ),
    "ModelSummary": ([*BARE, *added("ModelSummary", max_depth=2)], lambda s: s.summary["status"] == "done"),
    "RichModelSummary": ([*BARE, *added("RichModelSummary")], lambda s: "Trainable params" in s.out),
    "RichProgressBar": (
        [*BARE, *added("RichProgressBar"), *flag(enable_progress_bar="true")],
        lambda s: type(s.trainer.progress_bar_callback) is stock.RichProgressBar,
    ),
    "SpikeDetection": ([*BARE, *added("SpikeDetection")], lambda s: s.summary["status"] == "done"),
    "TQDMProgressBar": (
        [*BARE, *added("TQDMProgressBar"), *flag(enable_progress_bar="true")],
        lambda s: type(s.trainer.progress_bar_callback) is stock.TQDMProgressBar,
    ),
    "Timer": (
        [*BARE, *added("Timer", duration="00:00:00:00")],
        lambda s: s.summary["status"] == "budget" and s.summary["images_seen"] < 16,
    ),
    "WeightAveraging": (added("WeightAveraging"), lambda s: s.summary["status"] == "done"),
}
FROM_CODE = {"LambdaCallback", "ThroughputMonitor"}
ABSTRACT = {"ProgressBar"}


@pytest.mark.parametrize("name", TRIED)
def test_a_callback_is_obeyed(monkeypatch: pytest.MonkeyPatch, capfd: Any, name: str) -> None:
    arguments, check = TRIED[name]
    seen = attempt(monkeypatch, capfd, *arguments)
    assert seen.status == 0 and check(seen), (seen.out, seen.err, seen.files)


def test_a_callback_of_functions_is_given_in_code(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """What the run's own resume would refuse in its config, as a class beside train.py, is refused at once."""
    begun: list[str] = []
    given = [LambdaCallback(on_train_start=lambda *_: begun.append("train")), ThroughputMonitor(batch_size_fn=len)]
    cli = TrainingCLI(ImageModel, callbacks=given, args=["--config", "small.yaml", "--run", "code", *BARE])
    with cli.run:
        cli.start()
    assert begun == ["train"] and "train/samples" in Path("runs/code/metrics.csv").read_text()
    function = added("ThroughputMonitor", batch_size_fn="builtins.len")
    config = yaml.safe_load(Path("small.yaml").read_text())
    hooked = {"class_path": "LambdaCallback", "init_args": {"on_train_start": "builtins.print"}}
    Path("hooked.yaml").write_text(yaml.safe_dump(config | {"trainer": config["trainer"] | {"callbacks": [hooked]}}))
    Path("of_no_package.py").write_text("from lightning.pytorch import Callback\nclass Own(Callback): pass\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    for arguments in (function, ["--config", "hooked.yaml"], added("of_no_package.Own")):
        seen = attempt(monkeypatch, capfd, *arguments)
        assert seen.status == 2 and "a run's config may name nothing but classes of" in seen.err, seen.err
        assert seen.err.count("\n") == 1, seen.err
    assert not Path("runs/tried").exists()


NEEDED: dict[str, dict[str, Any]] = {  # what the parser asks for of those that are refused
    "GradientAccumulationScheduler": {"scheduling": '{"0": 2}'},
    "ModelPruning": {"pruning_fn": "l1_unstructured"},
    "OnExceptionCheckpoint": {"dirpath": "here"},
    "StochasticWeightAveraging": {"swa_lrs": 0.1},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_callback_is_refused(monkeypatch: pytest.MonkeyPatch, capfd: Any, name: str) -> None:
    seen = attempt(monkeypatch, capfd, *added(name, **NEEDED.get(name, {})))
    assert seen.status == 2 and f"the callback {name} cannot be used: {REFUSED[name]}" in seen.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (added("EarlyStopping", monitor="val/nothing"), 2, "metric `val/nothing` which is not available"),
        (added("ModelCheckpoint", monitor="val/nothing"), 1, "could not find the monitored key"),
        ([*BARE, *added("EarlyStopping", monitor="val/loss")], 2, "there is no validation"),
        (added("EarlyStopping"), 2, "trainer.callbacks: it needs monitor"),
        (added("EarlyStopping", monitr="val/loss"), 2, "did you mean monitor?"),
        (flag(callbacks="[{class_path: nowhere.Foo}]"), 2, "nowhere.Foo cannot be used (No module named 'nowhere')"),
        (added("EarlyStopping", monitor="val/loss", mode="up"), 2, "mode"),
        (added("Timer", duration="soon"), 2, "DD:HH:MM:SS"),
        ([*added("Timer"), *flag(max_time="00:00:00:01")], 2, "give one of them"),
        (added("LearningRateMonitor", logging_interval="hour"), 2, "logging_interval"),
        (added("TQDMProgressBar"), 2, "enable_progress_bar=False"),
        ([*added("EMAWeightAveraging"), "--ema_decay", "0.9"], 2, "give one of them"),
        ([*added("WeightAveraging"), *flag(precision="bf16-true")], 2, "kept in float32"),
        (["--ema_decay", "0.9", *flag(precision="64-true")], 2, "kept in float32"),
        (added("ModelCheckpoint", dirpath="runs/tried/checkpoints"), 2, "keeps its own checkpoints"),
        (added("ModelCheckpoint", dirpath="own", filename="../../x"), 2, "leave out what leads elsewhere"),
    ],
)
def test_what_a_callback_cannot_do_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, arguments: list[str], status: int, sentence: str
) -> None:
    """With status 2 where nothing was saved before it showed: then nothing is left behind."""
    seen = attempt(monkeypatch, capfd, *arguments)
    errors = [line for line in seen.err.splitlines() if line.startswith("error: ")]
    assert seen.status == status and len(errors) == 1 and sentence in errors[0], seen.err
    assert "Traceback" not in seen.err
    assert status == 1 or not Path("runs").exists() or not list(Path("runs").iterdir()), "nothing is written"


def test_figures_of_the_cpu_need_psutil(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Lightning would end the training at the first of them."""
    monkeypatch.setattr(own_callbacks, "find_spec", lambda name: None)
    seen = attempt(monkeypatch, capfd, *BARE, *added("DeviceStatsMonitor", cpu_stats="true"))
    assert seen.status == 2 and "needs psutil" in seen.err and not Path("runs").exists()


def test_a_spike_of_the_loss_ends_the_run_in_a_sentence(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(stock.SpikeDetection, "_is_spike", lambda self, loss: True)
    seen = attempt(monkeypatch, capfd, *BARE, *added("SpikeDetection", warmup=0))
    assert seen.status == 1 and "SpikeDetection ended the training" in seen.err and "Traceback" not in seen.err


def test_a_metric_that_is_never_logged_picks_no_weights(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    class Other(ImageModel):
        pass

    def train(**attributes: Any) -> str:
        cli = TrainingCLI(Other, args=["--config", "small.yaml", *flag(max_epochs="2")])
        cli.checkpoints.monitor = attributes["monitor"]
        with cli.run:
            cli.start()
        return str(capfd.readouterr().out)

    said = [line for line in train(monitor="val/f2").splitlines() if "logs no val/f2" in line]
    assert len(said) == 1 and "val/accuracy, " in said[0], "once, with what there is"
    assert "logs no" not in train(monitor="val/loss")


@pytest.mark.parametrize("every", [3, 5])
def test_a_users_checkpoints_mislead_no_resume(tmp_path: Path, every: int) -> None:
    """A kill behind the user's last checkpoint, and then a resume without the callback."""
    context = starts.server()
    arguments = ["--config", "small.yaml", "--run", "cut", "--ledger", "true", *BARE, *flag(max_epochs="2")]
    arguments += ["--model.backbone", "small_cnn", "--save_every_minutes", "0.00001" if every == 5 else "10"]
    arguments += added("ModelCheckpoint", save_last="true", every_n_train_steps=every)
    killed = starts.Forked(context, tmp_path, arguments, strikes=[Strike("batch", 6)])
    assert starts.wait(killed, PATIENCE) == [-signal.SIGKILL]
    assert (tmp_path / f"runs/cut/ModelCheckpoint/epoch={every // 4}-step={every}.ckpt").exists()
    again = ["--resume", "cut", "--trainer.callbacks", "null"]
    assert starts.wait(starts.Forked(context, tmp_path, again), PATIENCE) == [0]
    summary = yaml.safe_load((tmp_path / "runs/cut/summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["images_seen"]) == ("done", 8, 2 * 16)
    last: dict[tuple[int, int], list[int]] = {}
    for row in read(tmp_path / "runs/cut/ledger/rank-0.jsonl"):
        if row["ids"]:
            last[row["epoch"], row["position"]] = row["ids"]
    for epoch in range(2):
        assert sorted(i for (e, _), ids in last.items() if e == epoch for i in ids) == [*range(16)]


def test_a_callback_that_is_gone_can_be_left_out_of_a_resume(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """One of a package that is no longer installed; with null in its place it is not looked for."""
    package = tmp_path_factory.mktemp("installed") / "of_a_package.py"
    package.write_text("from lightning.pytorch import Callback\nclass Own(Callback): pass\n")
    monkeypatch.syspath_prepend(str(package.parent))
    assert attempt(monkeypatch, capfd, *BARE, *added("of_a_package.Own")).status == 0
    package.unlink()
    monkeypatch.delitem(sys.modules, "of_a_package")
    refused = attempt(monkeypatch, capfd, *flag(max_epochs="2"), resume=True)
    assert refused.status == 2 and "of_a_package.Own" in refused.err
    for given in (["--trainer.callbacks", "null"], ["--trainer.callbacks=null"]):
        assert attempt(monkeypatch, capfd, *given, *flag(max_epochs="2"), resume=True).status == 0


def test_the_table_has_every_callback_and_every_callback_is_tried() -> None:
    assert set(OBEYED) | set(REFUSED) == set(stock.__all__), "a version of Lightning has other callbacks"
    assert not set(OBEYED) & set(REFUSED)
    assert set(OBEYED) == set(TRIED) | FROM_CODE | ABSTRACT
    text = Path(probe.__file__).resolve().parents[2].glob("*/engine/docs/flags.md")
    page = next(text).read_text()
    for name, note in {**OBEYED, **REFUSED}.items():
        assert f"| `{name}` | {'obeyed' if name in OBEYED else 'refused'} | {note} |" in page
