"""Any LightningModule trains: with nothing of ours, as a subclass of the team's, with own optimizers and loggers."""

from __future__ import annotations

import copy
import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning_shards import cli as commands
from lightning_shards.data import ClassIndex, Dataset, Image
from lightning_shards.data.batch import Batch
from lightning_shards.errors import InputError, RunError
from lightning_shards.train import ShardModule, TrainingCLI, load_model
from lightning_shards.train.datamodule import ShardDataModule
from lightning_shards.train.evaluate import evaluate
from lightning_shards.train.trained_model import best_model
from team.model import ImageModel
from torch import Tensor, nn

from . import PATIENCE, own_fields
from .conftest import write_dataset
from .in_place import PROJECT

SETTINGS: dict[str, Any] = {
    "data": {"global_batch_size": 8, "image_size": 16, "workers": 1},
    "trainer": {"max_epochs": 1, "log_every_n_steps": 4, "accelerator": "cpu", "enable_progress_bar": False},
    "log": {"wandb": False, "report": False},
}


@pytest.fixture
def folder(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small config, in which models are trained."""
    settings = SETTINGS | {"data": SETTINGS["data"] | {"path": str(dataset)}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "prices.yaml").symlink_to(PROJECT / "prices.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(model_class: type[L.LightningModule], *arguments: str, **given: Any) -> TrainingCLI:
    """As train.py does it."""
    files = [] if "--resume" in arguments else ["--config", "small.yaml"]
    cli = TrainingCLI(model_class, args=[*files, *arguments], **given)
    with cli.run:
        cli.start()
        cli.test()
    return cli


def summary(run: str) -> dict[str, Any]:
    return json.loads(Path("runs", run, "summary.json").read_text())


def columns(path: Path) -> dict[str, list[str]]:
    """Cells that are not empty, by column of metrics.csv."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows if row[name]] for name in rows[0]}


class Plain(L.LightningModule):
    """Nothing of ours, nothing measured, no hyperparameters kept."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.float() / 255)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch["image"]), batch["target"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Measured(Plain):
    """The same with validation, test and Lightning's own way to log."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self(batch["image"]), batch["target"])
        self.log("val/loss", loss, batch_size=len(batch))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        right = (self(batch["image"]).argmax(1) == batch["target"]).float().mean()
        self.log("test/accuracy", right, batch_size=len(batch))


class Scheduled(Measured):
    """An own optimizer with groups, and Lightning's schedulers."""

    def __init__(self, rate: float = 0.01, gamma: float = 0.5) -> None:
        super().__init__()
        self.rate, self.gamma = rate, gamma

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.RMSprop([{"params": p, "lr": self.rate} for p in self.parameters()])
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, self.gamma)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class OtherSchedule(Scheduled):
    def configure_optimizers(self) -> Any:
        (optimizer,), _ = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)]


class Unscheduled(Scheduled):
    def configure_optimizers(self) -> Any:
        return super().configure_optimizers()[0]


class OneCycle(Scheduled):
    """A schedule of the momentum too; its settings are kept by the optimizer."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), self.rate, momentum=0.9)
        length = 12 * int(self.trainer.max_epochs or 0)
        return [optimizer], [{"scheduler": self.cycle(optimizer, length), "interval": "step"}]

    def cycle(self, optimizer: torch.optim.Optimizer, length: int) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 10 * self.rate, length, base_momentum=self.gamma)


class OnPlateau(Scheduled):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), self.rate)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", self.gamma, patience=0)
        return [optimizer], [{"scheduler": schedule, "monitor": "val/loss"}]


class OnPlateauInEpoch(OnPlateau):
    def configure_optimizers(self) -> Any:
        (optimizer,), (schedule,) = super().configure_optimizers()
        return [optimizer], [schedule | {"interval": "step", "frequency": 4}]


class TwoOptimizers(Measured):
    """Steps two optimizers itself, and returns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        loss = nn.functional.cross_entropy(self(batch["image"]), batch["target"])
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.05) for layer in (self.net[1], self.net[3])]


class Renamed(ImageModel):
    """A subclass of the team's with a setting of its own."""

    def __init__(self, *args: Any, dropout: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.save_hyperparameters("dropout")
        self.backbone = nn.Sequential(self.backbone, nn.Dropout(dropout))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 0.0


# -- a plain LightningModule
@pytest.mark.parametrize("model_class", [Plain, Measured, TwoOptimizers])
def test_a_plain_module_trains_resumes_and_is_reported(folder: Path, model_class: Any) -> None:
    train(model_class, "--run", "one")
    told = summary("one")
    assert (told["status"], told["images_seen"], told["epochs"]) == ("done", 96, 1)
    assert told["images_per_second"] > 0 and told["seconds"] > 0
    assert "compile" in told["resolved"] and "fused" not in told["resolved"]
    train(model_class, "--resume", "one", "--trainer.max_epochs", "2", "--log.report", "true")
    told = summary("one")
    assert (told["status"], told["images_seen"], told["epochs"], told["steps"]) == ("done", 192, 2, 24)
    logged = columns(Path("runs/one/metrics.csv"))
    page = Path("runs/one/report.html").read_text()
    assert "speed/images_per_second" in logged and model_class.__name__ in page and "Images per second" in page
    assert model_class is TwoOptimizers or len(logged["train/loss"]) == 6, "of a model that logs nothing itself"
    assert [int(step) for step in logged["step"]] == sorted(int(step) for step in logged["step"])
    best = Path("runs/one/checkpoints/best.ckpt")
    if model_class is Plain:
        assert not best.exists() and "val/loss" not in told["metrics"]
    else:
        assert best.exists() and told["monitor"] == "loss" and {"val/loss", "test/accuracy"} <= set(told["metrics"])
        assert told["metrics"]["val/skipped"] == 0


def test_what_needs_more_than_a_plain_module_says_so(folder: Path, capsys: Any) -> None:
    train(Measured, "--run", "one", "--model.width", "5")
    picture = folder / "x.png"
    for arguments in (["predict", "one", str(picture)], ["export", "one", "one.pt2"]):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr(sys, "argv", ["team", *arguments])
            commands.main("team", lambda: Measured)
        error = capsys.readouterr().err
        assert end.value.code == 2 and "Measured has no method scores" in error and error.count("\n") == 1
    assert not Path("one.pt2").exists()
    assert evaluate(Measured, Path("runs/one"))["test/accuracy"] == summary("one")["metrics"]["test/accuracy"]
    model = load_model("last", Measured)
    assert model.net[1].out_features == 5 and not model.training, "settings come from the checkpoint"
    with pytest.raises(InputError, match="does not fit the model ImageModel"):
        best_model(ImageModel, Path("runs/one"))
    train(Plain, "--run", "two")
    with pytest.raises(InputError, match="Plain has no test_step"):
        evaluate(Plain, Path("runs/two"))


def test_help_shows_what_the_model_has(folder: Path, capsys: Any) -> None:
    for model_class, has, lacks in ((Plain, "--model.width", "model.backbone"), (Renamed, "--model.dropout", "width")):
        with pytest.raises(SystemExit) as end:
            TrainingCLI(model_class, args=["--config", "small.yaml", "--help"])
        page = capsys.readouterr().out
        assert end.value.code == 0 and has in page and lacks not in page and "--trainer.max_epochs" in page
        assert "--model.targets" not in page and "--model.image_size" not in page, "they come from the data"


class Steps(L.LightningModule):
    """No training_step."""

    def configure_optimizers(self) -> Any:
        return None


class Forgetful(Plain):
    """No `return`."""

    def configure_optimizers(self) -> Any:
        torch.optim.SGD(self.parameters(), lr=0.1)


class Mistyped(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_schedular": torch.optim.lr_scheduler.StepLR(optimizer, 1)}


class MistypedInterval(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), "intervall": "step"}]


class AClass(Plain):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.1)], [torch.optim.lr_scheduler.StepLR]


class Never(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), "frequency": 0}]


class Empty(Plain):
    def configure_optimizers(self) -> Any:
        return []


class NoParameters(Plain):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([one for one in self.parameters() if not one.requires_grad], lr=0.1)


class Frozen(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Cut(Plain):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return (self(batch["image"]).argmax(1) != batch["target"]).float().mean()


class Rows(Plain):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch["image"]), batch["target"], reduction="none")


class TwoRates(ImageModel):
    """Its own `learning_rate` stays, which would win."""

    def __init__(self, backbone: str = "small_cnn", **settings: Any) -> None:
        super().__init__(backbone=backbone, **settings)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class HasAPath(Plain):
    def __init__(self, where: Path = Path("x"), width: int = 4) -> None:
        super().__init__(width)
        self.save_hyperparameters()


class Sideways(Plain):
    mode = "sideways"


@pytest.mark.parametrize(
    ("model_class", "sentence"),
    [
        (Steps, "Steps has no training_step"),
        (Forgetful, "configure_optimizers` returned `None`"),
        (Mistyped, "unsupported keys .*'lr_schedular'"),
        (MistypedInterval, "unsupported keys .*'intervall'"),
        (AClass, "configure_optimizers returns what is no scheduler .* is it a class?"),
        (Never, "StepLR the frequency 0: it must be a whole number"),
        (Empty, "returns no optimizer: nothing would be trained"),
        (NoParameters, "gives an optimizer no parameters to train"),
        (Frozen, "depends on nothing that is trained: all of it is frozen"),
        (Cut, "the way to the loss is cut by argmax"),
        (Rows, "must return one number: the mean of its rows' losses"),
        (TwoRates, "so its StepLR would change nothing: let learning_rate return None"),
        (HasAPath, "keeps where, a PosixPath, as a hyperparameter"),
        (Sideways, "'min' or 'max'"),
        (nn.Linear, "Linear is no LightningModule"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(folder: Path, model_class: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        train(model_class)
    assert "\n" not in str(error.value) and not any(Path("runs").rglob("*"))


def test_a_model_of_targets_is_refused_where_there_are_none(folder: Path) -> None:
    images = replace(Dataset.open(write_dataset(Path("images"))), task="", targets=[])
    replace(images, fields={"image": Image().describe()}).save()
    with pytest.raises(InputError, match=r"images has no target, by which this model is trained, only image: "):
        train(ImageModel, "--data.path", "images")
    assert not Path("runs").exists()


class Pooled(Plain):
    """Takes images of any size, and has no setting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))


class MeasuredPooled(Pooled, Measured):
    """The same with a test."""


class OtherNames(Pooled):
    """Settings that mean something else than ours of these names."""

    def __init__(
        self,
        image_size: int = 8,
        backbone: dict[str, int] | None = None,
        weights: list[float] | None = None,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.seen = image_size, backbone, weights, pretrained


def test_a_model_may_mean_something_else_by_the_names_of_our_settings(folder: Path) -> None:
    own = ["--model.weights", "[1.0, 0.5, 0.5]", "--model.backbone", "{depth: 4}", "--model.pretrained", "true"]
    given = train(OtherNames, "--run", "given", *own)
    assert given.model.seen == (16, {"depth": 4}, [1.0, 0.5, 0.5], True)
    free = train(OtherNames, "--run", "free", "--data.image_size", "null", *own)
    assert free.model.seen[0] == free.data.crop.size == 224
    again = train(OtherNames, "--resume", "given", "--trainer.max_epochs", "2", "--model.weights", "[1.0, 0.5, 0.25]")
    assert again.model.seen[2] == [1.0, 0.5, 0.25], "no weights to begin with, which a resume would do without"
    kept = best_model(OtherNames, Path("runs/given"))[0]
    assert kept.seen == (16, {"depth": 4}, [1.0, 0.5, 0.25], True), "without hyperparameters of its own"
    without = train(Pooled, "--run", "without", "--data.image_size", "null")
    assert without.data.crop.size == 224
    for run in ("free", "without"):
        assert yaml.safe_load(Path("runs", run, "config.yaml").read_text())["data"]["image_size"] == 224


class Fixed(ShardDataModule):
    """A datamodule that decides what the settings usually do."""

    def __init__(self, path: str, global_batch_size: int = 8) -> None:
        super().__init__(path, global_batch_size, image_size=32, workers=1, seed=7)


def test_a_datamodule_may_fix_what_the_settings_usually_decide(folder: Path) -> None:
    settings = yaml.safe_load(Path("small.yaml").read_text())
    settings["data"] = {"path": settings["data"]["path"]}
    Path("small.yaml").write_text(yaml.safe_dump(settings))
    cli = train(OtherNames, "--run", "one", datamodule_class=Fixed)
    assert cli.data.crop.size == 32 and cli.data.seed == 7
    assert isinstance(load_model(Path("runs/one"), OtherNames), OtherNames)
    assert train(MeasuredPooled, "--run", "two", datamodule_class=Fixed).model
    found = evaluate(MeasuredPooled, Path("runs/two"), datamodule_class=Fixed)
    assert found["test/accuracy"] == pytest.approx(summary("two")["metrics"]["test/accuracy"])


class PartlyKept(Measured):
    """Keeps a frozen part out of its checkpoints, and puts it back by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.strict_loading = nn.Linear(2, 2).requires_grad_(False), False
        self.put_back = 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if not name.startswith("teacher.")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.put_back += 1


def test_a_model_that_keeps_a_part_out_of_its_checkpoints_is_tested(folder: Path) -> None:
    cli = train(PartlyKept, "--run", "one")
    assert "test/accuracy" in summary("one")["metrics"] and cli.model.put_back == 1
    assert load_model(Path("runs/one"), PartlyKept).put_back == 1


# -- what the model decides
def test_own_schedulers_and_groups_stay_as_they_are(folder: Path) -> None:
    cli = train(Scheduled, "--run", "one")
    assert [group["lr"] for group in cli.trainer.optimizers[0].param_groups] == [0.01 * 0.5**6] * 4
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    loggers = ["--log.wandb", "true", "--log.tensorboard", "true"]
    for other in (OtherSchedule, Unscheduled):
        with pytest.raises(InputError, match="the model's schedulers are others than the run's: start a new run"):
            train(other, "--resume", "one", "--trainer.max_epochs", "2", *loggers)
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before
    with pytest.raises(InputError, match=r"global_batch_size cannot change from 8 to 16 .*: the model's StepLR counts"):
        train(Scheduled, "--resume", "one", "--trainer.max_epochs", "2", "--data.global_batch_size", "16")
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before
    cli = train(Scheduled, "--resume", "one", "--trainer.max_epochs", "2")
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**12)


@pytest.mark.parametrize(("setting", "rate"), [("gamma=0.1", 0.01 * 0.1**12), ("rate=0.03", 0.03 * 0.5**12)])
def test_a_changed_setting_of_an_own_scheduler_makes_the_schedule_anew(folder: Path, setting: str, rate: float) -> None:
    train(Scheduled, "--run", "one")
    changed = train(Scheduled, "--resume", "one", "--trainer.max_epochs", "2", f"--model.{setting}")
    assert changed.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)
    assert changed.run.changed()[f"model.{setting.partition('=')[0]}"] == float(setting.partition("=")[2])
    back = train(Scheduled, "--resume", "one", "--trainer.max_epochs", "3")
    assert back.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**18)


def test_a_schedule_over_the_whole_training_follows_a_changed_length(folder: Path) -> None:
    train(OneCycle, "--run", "one", "--trainer.max_epochs", "2")
    arguments = ["--resume", "one", "--trainer.max_epochs", "3", "--model.rate", "0.02", "--model.gamma", "0.6"]
    group = train(OneCycle, *arguments).trainer.optimizers[0].param_groups[0]
    alone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.02, momentum=0.9)
    schedule = OneCycle(0.02, 0.6).cycle(alone, 36)
    for _ in range(36):
        alone.step()
        schedule.step()
    expected = alone.param_groups[0]
    assert {name: group[name] for name in ("max_lr", "base_momentum")} == {"max_lr": 0.2, "base_momentum": 0.6}
    assert group["lr"] == pytest.approx(expected["lr"]) and group["momentum"] == pytest.approx(expected["momentum"])


def test_a_rate_that_follows_a_metric_keeps_what_it_has_become(folder: Path) -> None:
    train(OnPlateau, "--run", "one", "--trainer.max_epochs", "2")  # the loss falls, and `max` halves the rate for it
    with pytest.raises(InputError, match="rate follows what was measured, so lr cannot change on a resume"):
        train(OnPlateau, "--resume", "one", "--trainer.max_epochs", "3", "--model.rate", "0.5")
    cli = train(OnPlateau, "--resume", "one", "--trainer.max_epochs", "3", "--model.gamma", "0.1")
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.5 * 0.1)
    cli = train(OnPlateau, "--resume", "one", "--trainer.max_epochs", "4", "--data.global_batch_size", "16")
    assert cli.trainer.lr_scheduler_configs[0].scheduler.last_epoch == 4, "it counts validations"


class OfAnotherPackage(torch.optim.Optimizer):
    """A step of the sign of an average."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.001})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        for parameter in (p for group in self.param_groups for p in group["params"]):
            state = self.state[parameter]
            if not state:
                state["average"] = torch.zeros_like(parameter)
            parameter.sub_(0.001 * state["average"].lerp_(parameter.grad, 0.1).sign())
        return loss


class Signs(Plain):
    kind: Any = OfAnotherPackage
    breaks = False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.breaks:
            raise KeyError("in the team's code")
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return self.kind(self.parameters())


class Newton(Signs):
    kind = torch.optim.LBFGS


@pytest.mark.parametrize(("model_class", "entry"), [(Signs, "average"), (Newton, "old_dirs")])
def test_a_state_that_only_its_optimizer_knows_is_no_traceback(
    folder: Path, model_class: Any, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(model_class, "--run", "one", "--keep_checkpoints", "1")
    whole = torch.load("runs/one/checkpoints/last.ckpt", weights_only=True)
    for damaged in ({"entry": torch.zeros(3)}, {entry: torch.zeros(2)}, {entry: [torch.zeros(2)]}):
        content = copy.deepcopy(whole)
        content["optimizer_states"][0]["state"][0] = damaged
        torch.save(content, "runs/one/checkpoints/last.ckpt")
        with pytest.raises(InputError, match=r"(cannot go on from what its last|state does not fit).*start a new run"):
            train(model_class, "--resume", "one", "--trainer.max_epochs", "2")
    torch.save(whole, "runs/one/checkpoints/last.ckpt")
    monkeypatch.setattr(model_class, "breaks", True)
    with pytest.raises(KeyError, match="in the team's code"):
        train(model_class, "--resume", "one", "--trainer.max_epochs", "2")


def test_the_scale_of_float16_and_an_average_go_on_or_are_refused(folder: Path) -> None:
    plugin: dict[str, Any] = {"class_path": "lightning.pytorch.plugins.MixedPrecision"}
    plugin |= {"init_args": {"precision": "16-mixed", "device": "cpu"}}
    settings = yaml.safe_load(Path("small.yaml").read_text())
    settings["trainer"]["plugins"] = [plugin]
    Path("small.yaml").write_text(yaml.safe_dump(settings | {"ema_decay": 0.9}))
    train(Plain, "--run", "one", "--keep_checkpoints", "1")
    file = Path("runs/one/checkpoints/last.ckpt")
    whole = torch.load(file, weights_only=True)
    scale = whole["MixedPrecision"]
    assert scale["_growth_tracker"] == 12, "steps since the scale was changed"
    halves = [{k: v for k, v in whole.items() if k != name} for name in ("averaging_state", "current_model_state")]
    for damaged in (*({"MixedPrecision": scale | {name: "text"}} for name in ("scale", "_growth_tracker")), *halves):
        torch.save(whole | damaged if len(damaged) == 1 else damaged, file)
        with pytest.raises(InputError, match="cannot go on from what its last checkpoint holds"):
            train(Plain, "--resume", "one", "--trainer.max_epochs", "2")
    torch.save(whole | {"MixedPrecision": scale | {"scale": 1024.0}}, file)
    cli = train(Plain, "--resume", "one", "--trainer.max_epochs", "2")
    assert cli.trainer.precision_plugin.state_dict() == scale | {"scale": 1024.0, "_growth_tracker": 24}


def test_a_made_up_state_of_a_checkpoint_callback_removes_nothing(folder: Path) -> None:
    settings = yaml.safe_load(Path("small.yaml").read_text())
    arguments = {"monitor": "val/loss", "save_last": True}
    settings["trainer"]["callbacks"] = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": arguments}
    ]
    Path("small.yaml").write_text(yaml.safe_dump(settings))
    train(Measured, "--run", "one", "--keep_checkpoints", "1")
    file, outside = Path("runs/one/checkpoints/last.ckpt"), folder / "outside.ckpt"
    outside.write_bytes(b"precious")
    whole = torch.load(file, weights_only=True)
    key = next(name for name in whole["callbacks"] if name.startswith("ModelCheckpoint"))
    worst = torch.tensor(99.0)
    for path in (str(outside), "runs/one/ModelCheckpoint/../../../outside.ckpt", 3):
        for made_up in (
            {"best_k_models": {path: worst}, "kth_best_model_path": path, "kth_value": worst},
            {"last_model_path": path},
            {"best_k_models": {"runs/one/ModelCheckpoint/a.ckpt": "text"}},
            {"kth_best_model_path": path},
        ):
            content = copy.deepcopy(whole)
            content["callbacks"][key] |= made_up
            torch.save(content, file)
            with pytest.raises(InputError, match="cannot go on from what its last checkpoint holds"):
                train(Measured, "--resume", "one", "--trainer.max_epochs", "2")
    assert outside.read_bytes() == b"precious"
    torch.save(whole, file)
    train(Measured, "--resume", "one", "--trainer.max_epochs", "2")


class Rates(L.Callback):
    """The rate of each step; ends the training at the validation after step `last`."""

    def __init__(self, last: int = 0) -> None:
        self.seen: list[float] = []
        self.last = last

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        trainer.should_stop = len(self.seen) == self.last


def test_a_rate_that_a_validation_changed_is_in_the_checkpoint_behind_it(folder: Path, capsys: Any) -> None:
    arguments = ["--trainer.max_epochs", "2", "--trainer.val_check_interval", "4"]
    whole, first, rest = Rates(), Rates(last=8), Rates()
    train(OnPlateauInEpoch, "--run", "whole", *arguments, callbacks=[whole])
    train(OnPlateauInEpoch, "--run", "parts", *arguments, callbacks=[first])
    capsys.readouterr()
    train(OnPlateauInEpoch, "--resume", "parts", callbacks=[rest])
    where = "goes on in epoch 1 at image 64 of 96, from last.ckpt (64 images seen); means over this epoch's training"
    assert f"{where} count from there" in capsys.readouterr().out
    assert len(first.seen) == 8 and first.seen + rest.seen == whole.seen and len(set(whole.seen)) > 3


class Layered(ImageModel):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        optimizer.param_groups[0]["lr_scale"] = 0.1
        return optimizer

    def learning_rate(self, progress: float) -> float:
        return 0.02 * (1 - progress)


def test_groups_get_their_share_of_the_rate_that_the_progress_gives(folder: Path) -> None:
    seen = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            seen.append((pl_module.progress, [g["lr"] for g in trainer.optimizers[0].param_groups]))

    train(Layered, "--run", "one", "--model.backbone", "small_cnn", callbacks=[Look()])
    assert len(seen) == 12 and seen[6][0] == 0.5
    for progress, (tenth, whole) in seen:
        assert whole == pytest.approx(0.02 * (1 - progress)) and tenth == pytest.approx(whole / 10)


class Dimmed(ShardDataModule):
    """A datamodule of the team's own: with a setting, and a transform of what is measured on, too."""

    transform = own_fields.Dims(2)

    def __init__(self, *arguments: Any, brightest: int = 255, **settings: Any) -> None:
        self.fields = {"image": Image(("png",)), "target": ClassIndex(3)}
        super().__init__(*arguments, **settings)
        self.brightest = brightest


def test_subclasses_go_through_every_command(folder: Path, capsys: Any) -> None:
    small = "--model.backbone", "small_cnn", "--model.dropout", "0.2"
    cli = train(Renamed, "--run", "one", *small, "--data.brightest", "99", datamodule_class=Dimmed)
    model, told = load_model(Path("runs/one"), Renamed), summary("one")["metrics"]
    assert isinstance(cli.data, Dimmed) and cli.data.brightest == 99 and model.hparams["dropout"] == 0.2
    images = np.full((1, 20, 20, 3), 200, np.uint8)
    cv2.imwrite("x.png", images[0])
    forecast = ["forecast", "--config", "small.yaml", *small, "--data.brightest", "9", "--seconds", "0.5", "--json"]
    printed = []
    capsys.readouterr()
    for arguments in (["predict", "one", "x.png", "--scores", "--json"], ["export", "one", "one.pt2"],
                      ["evaluate", "one", "--json"], forecast):  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["team", *arguments])
            assert commands.main("team", lambda: Renamed, datamodule=lambda: Dimmed) == 0
        printed.append(capsys.readouterr().out)
    predicted, exported, evaluated, forecasted = printed
    seen = model.scores(torch.from_numpy(images[:, :16, :16] // 2).permute(0, 3, 1, 2))[0].tolist()
    assert list(json.loads(predicted)["scores"].values()) == pytest.approx(seen, abs=1e-4)
    assert "own_fields.Dims is not in it: apply it to the images before" in exported
    assert Path("one.pt2").stat().st_size > 1000
    assert json.loads(evaluated)["test/loss"] == pytest.approx(told["test/loss"])
    assert json.loads(forecasted)["images_per_second"] > 0
    with pytest.raises(InputError, match="brightest"):
        best_model(Renamed, Path("runs/one"))


# -- loggers, callbacks, profilers
class Memory(Logger):
    """Keeps what it is given."""

    name, version = "memory", "0"

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, float] = {}
        self.pictures: dict[str, list[Any]] = {}

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.params = params

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.metrics |= metrics

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.pictures[key] = list(zip(images, kwargs["caption"], strict=True))


class Counter(L.Callback):
    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


class Another(L.Callback):
    steps = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


class Calling(ImageModel):
    """Brings a callback of its own."""

    def configure_callbacks(self) -> Any:
        # asked for each fit and test; of the same class it would take the place of the trainer's, as Lightning has it
        self.counter = getattr(self, "counter", None) or Another()
        return self.counter


class Refusing(CSVLogger):
    def __init__(self, save_dir: str) -> None:
        raise RuntimeError("a folder will not do, give a database")


def test_of_several_loggers_the_one_that_refuses_is_heard(folder: Path) -> None:
    names = "lightning.pytorch.loggers.CSVLogger", f"{__name__}.Refusing"
    loggers = [{"class_path": name, "init_args": {"save_dir": "mine"}} for name in names]
    Path("more.yaml").write_text(yaml.safe_dump({"trainer": {"logger": loggers}}))
    with pytest.raises(InputError, match=r"^trainer: a folder will not do, give a database$"):
        train(Plain, "--config", "more.yaml", "--run", "one")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("logger", "sentence"),
    [
        ({"init_args": {"save_dri": "mine"}}, "trainer.logger: save_dri is no setting; did you mean save_dir?"),
        ({"init_args": {"save_dir": 3}}, "trainer.logger: save_dir is 3, it must be text"),
        ({"save_dir": "mine"}, "is not understood: give a class_path, and its settings below init_args"),
    ],
)
def test_a_mistyped_logger_of_a_list_is_one_sentence(folder: Path, logger: dict[str, Any], sentence: str) -> None:
    loggers = [{"class_path": "lightning.pytorch.loggers.CSVLogger"} | logger]
    Path("more.yaml").write_text(yaml.safe_dump({"trainer": {"logger": loggers}}))
    with pytest.raises(InputError, match=sentence.replace("?", "[?]")):
        train(Plain, "--config", "more.yaml")
    assert not Path("runs").exists()


def test_own_loggers_and_callbacks_are_added_to_ours(folder: Path) -> None:
    memory, counter = Memory(), Counter()
    arguments = ["--run", "one", "--model.backbone", "small_cnn", "--trainer.profiler", "simple"]
    arguments += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "mine"]
    arguments += ["--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor"]
    cli = train(Calling, *arguments, callbacks=[counter], loggers=[memory])
    assert counter.steps == 12 and cli.model.counter.steps == 12
    ours = columns(Path("runs/one/metrics.csv"))
    theirs = columns(next(Path("mine").rglob("metrics.csv")))
    assert ours["train/loss"] == theirs["train/loss"] and memory.metrics["test/accuracy"] >= 0
    assert {type(logger) for logger in cli.trainer.loggers} >= {Memory, CSVLogger}
    assert "lr-AdamW/pg1" in ours
    with pytest.raises(RunError, match=r"trainer\.logger cannot write .* \(Not a directory\)"):
        train(Calling, *arguments[2:9], "small.yaml/mine", "--run", "two")
    pictures = memory.pictures["test/predictions"]
    assert pictures and pictures[0][0].shape == (16, 16, 3) and "|" in pictures[0][1]
    assert any("Profiler Report" in path.read_text() for path in Path("runs/one/profile").iterdir())


def test_what_would_be_dropped_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="--run"):
        train(Plain, "--trainer.default_root_dir=mine")
    assert not Path("runs").exists() and not Path("mine").exists()


def test_nothing_deprecated_is_called(folder: Path) -> None:
    code = (
        "import warnings; from lightning_shards.train import TrainingCLI; from team.model import ImageModel\n"
        "warnings.filterwarnings('error', category=DeprecationWarning, message='.*instantiate.*')\n"
        "TrainingCLI(ImageModel, args=['--config', 'small.yaml', '--model.backbone', 'small_cnn'])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0 and "instantiate_classes" not in done.stderr, done.stderr[-2000:]


class AsksForAge(Measured):
    """For a field that the dataset does not have."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self(batch["image"]).mean() + batch["age"].mean()


class MeasuresByAge(Measured):
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val/loss", batch["age"].mean(), batch_size=len(batch))


def test_a_field_that_is_not_there_is_one_sentence(folder: Path) -> None:
    sentence = "the batch has no field 'age', it has image, target: fields come from"
    with pytest.raises(InputError, match=f"^{sentence}"):
        train(AsksForAge, "--run", "one")
    assert not any(Path("runs").rglob("*"))
    train(Measured, "--run", "one")
    with pytest.raises(InputError, match=sentence):
        evaluate(MeasuresByAge, Path("runs/one"), split="val")
    with pytest.raises(RunError, match=f"{sentence}.*--resume two"):
        train(MeasuresByAge, "--run", "two", "--save_every_minutes", "0.00001")


class Half(ShardModule):
    """Looks at a field that is no image."""

    inputs = ("image", "target")

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def scores(self, image: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        return self.layer(image.float().mean((2, 3))) + target[:, None]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.scores(batch["image"], batch["target"]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def test_a_second_input_is_never_left_out(folder: Path, capsys: Any) -> None:
    train(Half, "--run", "one")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["team", "predict", "one", "x.png"])
        commands.main("team", lambda: Half)
    assert end.value.code == 2 and "image and target" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["team", "export", "one", "one.pt2"])
        assert commands.main("team", lambda: Half) == 0
    assert "uint8 (B, 3, 16, 16), RGB, 0..255, target int64 (B) -> float32" in capsys.readouterr().out
    program = torch.export.load("one.pt2").module()
    images, targets = torch.full((3, 3, 16, 16), 9, dtype=torch.uint8), torch.tensor([0, 1, 2])
    assert torch.allclose(program(images, targets), load_model("one", Half).scores(images, targets))
