"""Each of Lightning's flags is tried: it does what Lightning documents, or is refused before anything is written."""

from __future__ import annotations

import inspect
import json
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelSummary, ProgressBar, Timer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.training_order import OrderRecipe
from lightning_shards.train import flags
from lightning_shards.train.flags import FLAGS
from team.model import ImageModel

from . import PATIENCE, probe, starts
from .probe import STEPS, TEST, VAL, Seen, attempt
from .starts import Strike
from .test_train import ledger

BARE = ("--data.path", "bare")
Check = Callable[[Seen], bool]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with tiny datasets and a config; what flags change in the process is set back."""
    probe.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    benchmark = torch.backends.cudnn.benchmark
    yield tmp_path
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)
    torch.backends.cudnn.benchmark = benchmark


def flag(**values: str) -> list[str]:
    return [text for name, value in values.items() for text in (f"--trainer.{name}", value)]


OBEYED: dict[str, tuple[list[str], dict[str, Check]]] = {  # what is tried in one training: arguments, and what is seen
    "of a plain training": (
        [
            *BARE,
            *flag(accelerator="cpu", strategy="auto", devices="auto", num_nodes="1", max_epochs="2", min_steps="2"),
        ],
        {
            "accelerator": lambda s: s.trainer.strategy.root_device.type == "cpu",
            "strategy": lambda s: isinstance(s.trainer.strategy, SingleDeviceStrategy),
            "devices": lambda s: s.trainer.world_size == 1,
            "num_nodes": lambda s: s.trainer.num_nodes == 1,
            "max_epochs": lambda s: list(s.epochs) == [0, 1] and s.summary["epochs"] == 2,
            "min_steps": lambda s: s.trainer.min_steps == 2,
            "benchmark": lambda s: torch.backends.cudnn.benchmark,
        },
    ),
    "of what is computed": (
        [
            *BARE,
            *flag(precision="64-true", deterministic="true", detect_anomaly="true"),
            *flag(gradient_clip_val="0.001", gradient_clip_algorithm="value"),
        ],
        {
            "precision": lambda s: {p.dtype for p in s.cli.model.parameters()} == {torch.float64},
            "deterministic": lambda s: torch.are_deterministic_algorithms_enabled(),
            "benchmark": lambda s: not torch.backends.cudnn.benchmark,
            "detect_anomaly": lambda s: s.probe.anomalies == {True},
            "gradient_clip_val": lambda s: 0 < s.probe.steepest < 0.00101,
            "gradient_clip_algorithm": lambda s: s.trainer.gradient_clip_algorithm == "value",
        },
    ),
    "of what is shown": (
        [
            *BARE,
            *flag(logger="false", enable_progress_bar="true", enable_model_summary="true", log_every_n_steps="0"),
            *flag(enable_autolog_hparams="false", benchmark="true", deterministic="warn"),
            *["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=01:00:00:00"],
            *["--trainer.plugins", "lightning.pytorch.plugins.environments.LightningEnvironment"],
        ],
        {
            "logger": lambda s: len(s.trainer.loggers) == 1 and "tensorboard" not in " ".join(s.files),
            "callbacks": lambda s: any(isinstance(c, Timer) for c in s.trainer.callbacks),
            "plugins": lambda s: (
                isinstance(s.trainer.strategy.cluster_environment, LightningEnvironment)
                if hasattr(s.trainer.strategy, "cluster_environment")
                else True
            ),
            "enable_progress_bar": lambda s: isinstance(s.trainer.progress_bar_callback, ProgressBar),
            "enable_model_summary": lambda s: (
                any(isinstance(c, ModelSummary) for c in s.trainer.callbacks)
                and logging.getLogger("lightning.pytorch.callbacks.model_summary").isEnabledFor(logging.INFO)
            ),
            "log_every_n_steps": lambda s: "train/loss" not in s.metrics,
            "enable_autolog_hparams": lambda s: s.trainer.enable_autolog_hparams is False,
            "benchmark": lambda s: torch.backends.cudnn.benchmark,
            "deterministic": lambda s: torch.is_deterministic_algorithms_warn_only_enabled(),
        },
    ),
    "of validation": (
        [
            *flag(num_sanity_val_steps="1", val_check_interval="2", limit_val_batches="1", limit_test_batches="0.5"),
            *flag(inference_mode="false", reload_dataloaders_every_n_epochs="1", max_epochs="2", min_epochs="1"),
        ],
        {
            "num_sanity_val_steps": lambda s: s.probe.sanity == 1,
            "val_check_interval": lambda s: len(s.probe.validated) == 4,
            "limit_val_batches": lambda s: set(s.probe.validated) == {1},
            "limit_test_batches": lambda s: s.probe.tested == 1,
            "inference_mode": lambda s: s.probe.inference == {False},
            "reload_dataloaders_every_n_epochs": lambda s: (
                len(s.probe.loaders) == 2
                and [sorted(i for ids in batches for i in ids) for batches in s.epochs.values()] == 2 * [[*range(16)]]
            ),
            "min_epochs": lambda s: s.trainer.min_epochs == 1,
        },
    ),
    "of seldom validation": (
        flag(max_epochs="2", check_val_every_n_epoch="2", val_check_interval="0.5", limit_test_batches="0"),
        {
            "check_val_every_n_epoch": lambda s: s.probe.validated == [VAL, VAL],
            "val_check_interval": lambda s: s.probe.validated == [VAL, VAL],
            "limit_test_batches": lambda s: s.probe.tested == 0,
        },
    ),
    "of validation by steps": (
        flag(max_epochs="2", check_val_every_n_epoch="null", val_check_interval="3", num_sanity_val_steps="-1"),
        {
            "check_val_every_n_epoch": lambda s: s.probe.validated == [VAL, VAL],
            "num_sanity_val_steps": lambda s: s.probe.sanity == VAL,
            "inference_mode": lambda s: s.probe.inference == {True},
        },
    ),
    "of validation by the clock": (
        [
            *flag(val_check_interval="00:00:00:00"),
            *["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"],
            *["--trainer.callbacks.patience=9", "--trainer.callbacks+=ModelCheckpoint"],
        ],
        {"val_check_interval": lambda s: s.probe.validated == STEPS * [VAL]},
    ),
    "of no validation": (
        flag(limit_val_batches="0", limit_train_batches="3"),
        {
            "limit_val_batches": lambda s: not s.probe.validated and s.probe.tested == TEST,
            "limit_train_batches": lambda s: len(s.probe.trained) == 3 and s.summary["images_seen"] == 12,
        },
    ),
    "of a share": (
        [*BARE, *flag(limit_train_batches="0.5", max_epochs="2")],
        {
            "limit_train_batches": lambda s: (
                [len(b) for b in s.epochs.values()] == [2, 2]
                and s.epochs[0] != s.epochs[1]
                and s.cli.data.progress(2) == 1.0
            ),
        },
    ),
    "of a few batches": (
        [*flag(overfit_batches="2", max_epochs="3"), "--data.micro_batch_size", "2"],
        {
            "overfit_batches": lambda s: (
                len({str(b) for b in s.epochs.values()}) == 1
                and len(s.epochs[0]) == 2 * 2
                and s.probe.validated == 3 * [2]
            ),
        },
    ),
    "of batches by a number with a point": (
        [*BARE, *flag(overfit_batches="2.0", max_epochs="2")],
        {"overfit_batches": lambda s: s.epochs[0] == s.epochs[1] and len(s.epochs[0]) == 2},
    ),
    "of a dry run": (
        flag(fast_dev_run="true", max_epochs="5"),
        {
            "fast_dev_run": lambda s: (
                (len(s.probe.trained), s.probe.validated, s.probe.tested) == (1, [1], 1)
                and "nothing was written" in s.out
                and not s.cli.run.folder.exists()
            )
        },
    ),
    "of a longer dry run": (
        [*flag(fast_dev_run="2"), "--data.micro_batch_size", "2", "--trainer.callbacks+=ModelCheckpoint"],
        {
            "fast_dev_run": lambda s: (
                (len(s.probe.trained), s.probe.validated, s.probe.tested) == (4, [2], 2) and "up to 2 batches" in s.out
            )
        },
    ),
    "of no time": (
        [*BARE, *flag(max_time="00:00:00:00")],
        {"max_time": lambda s: s.summary["status"] == "budget" and "--resume tried" in s.out},
    ),
    "of a profiler": (
        [*BARE, *flag(profiler="simple")],
        {"profiler": lambda s: "Profiler Report" in Path("runs/tried/profile/fit-profile.txt").read_text()},
    ),
    "of another profiler": (
        [*BARE, *flag(profiler="advanced")],
        {"profiler": lambda s: "Profile stats" in Path("runs/tried/profile/fit-profile.txt").read_text()},
    ),
}


@pytest.mark.parametrize("name", OBEYED)
@pytest.mark.usefixtures("folder")
def test_a_flag_is_obeyed(monkeypatch: pytest.MonkeyPatch, capfd: Any, name: str) -> None:
    arguments, checks = OBEYED[name]
    seen = attempt(monkeypatch, capfd, *arguments)
    assert seen.status == 0, seen.err
    assert {name: check(seen) for name, check in checks.items()} == dict.fromkeys(checks, True)
    assert Path("runs").exists() != ("fast_dev_run" in checks)


REFUSED: list[tuple[str, str, str]] = [
    ("accelerator", "cuda8", "accelerator"),
    ("strategy", "nonsense", "invalid strategy"),
    ("strategy", "ddp_spawn", "take ddp"),
    ("strategy", "deepspeed", "DeepSpeed"),
    ("devices", "0", "devices"),
    ("num_nodes", "2", "torchrun"),
    ("precision", "transformer-engine", "transformer_engine"),
    ("precision", "17", "precision is 17"),
    ("precision", "16-mixed", "trainer.precision 16-mixed works on GPUs only: take bf16-mixed or 32-true"),
    ("logger", "Nonsense", "there is no Nonsense"),
    ("callbacks", "Nonsense", "there is no Nonsense"),
    ("callbacks", "team.model.ImageModel", "is no Callback"),
    ("fast_dev_run", "-1", "fast_dev_run"),
    ("max_epochs", "0", "at least 1"),
    ("max_epochs", "-1", "at least 1"),
    ("min_epochs", "-1", "at least 0"),
    ("min_steps", "-1", "at least 0"),
    ("limit_train_batches", ".nan", "share"),
    ("gradient_clip_val", ".nan", "at least 0"),
    ("min_epochs", "3", "more than trainer.max_epochs"),
    ("max_steps", "5", "use trainer.max_epochs"),
    ("max_time", "soon", "DD:HH:MM:SS"),
    ("limit_train_batches", "0", "leave something"),
    ("limit_train_batches", "0.1", "none of an epoch's 4"),
    ("limit_train_batches", "1.5", "share"),
    ("limit_val_batches", "0.1", "none of the 2 batches of val"),
    ("limit_val_batches", "-1", "share"),
    ("limit_test_batches", "0.1", "none of the 2 batches of test"),
    ("limit_predict_batches", "2", "predict"),
    ("overfit_batches", "0.1", "none of an epoch's 4"),
    ("overfit_batches", "-1", "share"),
    ("val_check_interval", "5", "4 optimizer steps"),
    ("val_check_interval", "0", "share"),
    ("val_check_interval", "1.5", "share"),
    ("val_check_interval", "soon", "val_check_interval"),
    ("check_val_every_n_epoch", "0", "at least 1"),
    ("num_sanity_val_steps", "-2", "at least -1"),
    ("log_every_n_steps", "-1", "at least 0"),
    ("enable_checkpointing", "false", "goes on from its checkpoints"),
    ("accumulate_grad_batches", "2", "data.micro_batch_size"),
    ("gradient_clip_val", "-1", "at least 0"),
    ("gradient_clip_algorithm", "value", "gradient_clip_val"),
    ("use_distributed_sampler", "true", "already"),
    ("profiler", "xla", "TPUs"),
    ("profiler", "nonsense", "simple"),
    ("barebones", "true", "forecast"),
    ("plugins", "TorchCheckpointIO", "durably"),
    *([] if torch.cuda.is_available() else [("sync_batchnorm", "true", "GPUs only")]),
    ("reload_dataloaders_every_n_epochs", "-1", "at least 0"),
    ("default_root_dir", "elsewhere", "--run"),
    ("model_registry", "somewhere", "uploaded"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), REFUSED, ids=[f"{n} {v}" for n, v, _ in REFUSED])
def test_a_flag_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, name: str, value: str, sentence: str
) -> None:
    before = sorted(folder.iterdir())
    seen = attempt(monkeypatch, capfd, f"--trainer.{name}", value)
    lines = [line for line in seen.err.splitlines() if line]
    assert seen.status == 2 and len(lines) == 1 and sentence in lines[0] and lines[0].startswith("error: "), seen.err
    assert len(lines[0]) < 300 and sorted(folder.iterdir()) == before


@pytest.mark.usefixtures("folder")
def test_flags_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    for arguments, sentence in (
        (flag(overfit_batches="1", limit_val_batches="1"), "both say how much"),
        (flag(fast_dev_run="true", overfit_batches="1"), "both say how much"),
        (flag(fast_dev_run="2", limit_train_batches="1"), "both say how much"),
        (["--run", "x", *flag(fast_dev_run="true")], "leave out --run"),
        (["--log.tensorboard", "true", *flag(logger="false")], "log.tensorboard wants more"),
        (["--patience", "2", *flag(val_check_interval="3")], "a number that divides an epoch's 4 steps"),
        (["--patience", "2", *flag(limit_val_batches="0")], "there is no validation"),
        (flag(check_val_every_n_epoch="null", val_check_interval="0.5"), "val_check_interval"),
        (["--patience", "2", *BARE], "there is no validation"),
        (["--patience", "1", *flag(max_epochs="2", check_val_every_n_epoch="3")], "there is no validation"),
    ):
        seen = attempt(monkeypatch, capfd, *arguments)
        assert seen.status == 2 and sentence in seen.err and not Path("runs").exists()


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "bf16-mixed"])
@pytest.mark.usefixtures("folder")
def test_each_precision_trains(monkeypatch: pytest.MonkeyPatch, capfd: Any, precision: str) -> None:
    seen = attempt(monkeypatch, capfd, *flag(precision=precision))
    assert seen.status == 0 and seen.summary["status"] == "done", seen.err


@pytest.mark.usefixtures("folder")
def test_a_shortened_training_goes_on(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """It is resumed with what it had, or with all; one on the same batches only as it was."""
    short = attempt(monkeypatch, capfd, *BARE, *flag(limit_train_batches="2"))
    assert "the first 8 of 16 images (trainer.limit_train_batches)" in short.out
    more = attempt(monkeypatch, capfd, *flag(max_epochs="2", limit_train_batches="null"), resume=True)
    assert (more.status, more.summary["images_seen"], len(more.probe.trained)) == (0, 8 + 16, STEPS)
    refused = attempt(monkeypatch, capfd, *flag(max_epochs="3", overfit_batches="2"), resume=True)
    assert refused.status == 2 and "overfit_batches" in refused.err
    refused = attempt(monkeypatch, capfd, *flag(fast_dev_run="true"), resume=True)
    assert refused.status == 2 and "leave out --resume" in refused.err


@pytest.mark.parametrize("name", ["limit_train_batches", "overfit_batches"])
def test_a_shortened_epoch_is_owed_to_a_resume_on_any_devices(folder: Path, name: str) -> None:
    """Killed in the middle of one, begun on one rank and gone on with on two."""
    context = starts.server()
    begin = ["--config", "small.yaml", "--run", "cut", "--ledger", "true", *flag(max_epochs="3", **{name: "3"})]
    begin += ["--model.backbone", "small_cnn", "--save_every_minutes", "0.00001"]
    killed = starts.Forked(context, folder, begin, strikes=[Strike("batch", 6)])
    assert starts.wait(killed, PATIENCE) == [-signal.SIGKILL]
    again = ["--resume", "cut", "--data.micro_batch_size", "1"]
    assert starts.wait(starts.Forked(context, folder, again, devices=2), PATIENCE) == [0, 0]
    summary = json.loads(Path("runs/cut/summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["images_seen"]) == ("done", 9, 36)
    steps = ledger("cut")
    order = OrderRecipe(Dataset.open(folder / "data"), "train", {"data": 1.0}).make()
    assert {place for place, ids in steps.items() if ids} == {(epoch, step) for epoch in range(3) for step in (0, 4, 8)}
    for (epoch, position), ids in steps.items():
        begun_in = 0 if name == "overfit_batches" else epoch
        assert not ids or sorted(ids) == sorted(order.ids(begun_in, position, position + 4).tolist())


def test_the_table_has_every_flag_and_every_flag_is_tried() -> None:
    assert set(FLAGS) == set(inspect.signature(L.Trainer).parameters), "a version of Lightning has other flags"
    assert set(flags.DEFAULTS) <= set(FLAGS)
    tried = {name for _, checks in OBEYED.values() for name in checks}
    refused = {name for name, _, _ in REFUSED}
    for name, kind in FLAGS.items():
        assert name in (tried if kind.kind == "obeyed" else refused) or name == "sync_batchnorm", name
        assert not kind.sentence or name in refused, f"what the table refuses of {name} is not tried"


def test_the_documentation_has_the_table() -> None:
    text = Path(flags.__file__).resolve().parents[3].joinpath("docs/flags.md").read_text()
    for name, kind in FLAGS.items():
        assert f"| `{name}` | {kind.kind} | {kind.note} |" in text


@pytest.mark.parametrize(
    ("name", "step", "sentence"),
    [
        ("detect_anomaly", lambda loss: loss + torch.sqrt(0 * loss), "returned nan values"),
        ("deterministic", lambda loss: loss + torch.zeros(1).put_(torch.tensor([0]), torch.ones(1)).sum(), "put_"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_a_flag_finds_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, name: str, step: Callable[[torch.Tensor], torch.Tensor], sentence: str
) -> None:
    original = ImageModel.training_step
    monkeypatch.setattr(ImageModel, "training_step", lambda *given: step(original(*given)))
    seen = attempt(monkeypatch, capfd, *BARE, f"--trainer.{name}", "true")
    errors = [line for line in seen.err.splitlines() if line.startswith("error: ")]
    assert seen.status == 1 and len(errors) == 1 and f"trainer.{name}" in errors[0] and sentence in errors[0], seen.err
    assert seen.summary["status"] == "failed"


def test_a_shortened_order_is_made_again_with_another_window(folder: Path) -> None:
    """As on a machine with other memory, where a run goes on with the window that it began with."""
    dataset = Dataset.open(folder / "bare")
    for same in (False, True):
        recipe = OrderRecipe(dataset, "train", {"bare": 1.0}, length=8, same=same)
        one, other = recipe.make(), recipe.make(1)
        assert len(one) == len(other) == 8 and other.settings["window_bytes"] == 1
        assert (other.ids(0, 0, 8).tolist() == other.ids(1, 0, 8).tolist()) == same
        assert ("overfit_batches" in other.settings) == same
