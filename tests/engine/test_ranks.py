"""The same training on one device, on several, and on one that accumulates: losses, weights, schedule, counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning_shards.data.order import WindowedOrder
from lightning_shards.train.evaluate import evaluate
from team.model import ImageModel, schedule

from . import PATIENCE, proofs, starts
from .conftest import write_dataset
from .recorder import PLAIN, losses, rates, rows, weights
from .test_train import SMALL

SIZES = (17, 30, 9, 40)


@pytest.fixture(scope="module")
def context() -> Any:
    return starts.server()


class Trainings:
    """Runs of one dataset in one folder, on forked ranks."""

    def __init__(self, context: Any, folder: Path, dataset: Path, **settings: dict[str, Any]) -> None:
        self.context, self.folder = context, folder
        defaults: dict[str, Any] = {
            "data": {"path": str(dataset), "global_batch_size": 12, "image_size": 16, "max_skipped_fraction": 0.5},
            "model": {"backbone": PLAIN, "optimizer": "sgd", "learning_rate": 0.1, "warmup": 0.25},
            "trainer": SMALL["trainer"] | {"max_epochs": 2, "callbacks": [{"class_path": "engine.recorder.Recorder"}]},
            "log": {"wandb": False, "report": False},
        }
        merged = {name: defaults.get(name, {}) | settings.get(name, {}) for name in {*defaults, *settings}}
        (folder / "c.yaml").write_text(yaml.safe_dump(merged | {"ledger": True}))

    def run(self, name: str, *arguments: str, devices: int = 1, micro: int = 12, strikes: Any = ()) -> Path:
        """Start, or go on with, the run `name`; its folder. It ends in order, but for a rank that is killed."""
        run = self.folder / "runs" / name
        given = ["--resume", name] if run.exists() else ["--config", "c.yaml", "--run", name]
        given += ["--data.micro_batch_size", str(micro), *arguments]
        started = starts.Forked(self.context, self.folder, given, devices, strikes)
        statuses = starts.wait(started, PATIENCE)
        wanted = {-strikes[0].number if strikes[0].number == 9 else 75} if strikes else {0}
        assert set(statuses) == wanted, (statuses, (self.folder / "output-0.log").read_text()[-3000:])
        return run


def close(one: dict[Any, float], other: dict[Any, float]) -> bool:
    return one.keys() == other.keys() and all(
        value == pytest.approx(other[key], rel=2e-4) for key, value in one.items()
    )


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that differ by more than the order of additions makes them."""
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if not torch.allclose(value, other[name], rtol=1e-4, atol=1e-5)]


def evaluation(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluation" / "test.json").read_text())


def test_three_ranks_train_and_count_as_one(context: Any, tmp_path: Path) -> None:
    """With the augmentation that is each sample's own; what mixing does is the micro-batch's."""
    first_step = (
        WindowedOrder(SIZES, [1] * 4).ids(0, 0, 12).tolist()
    )  # on three ranks, these damaged rows are all on the first
    damaged = dict.fromkeys(first_step[:3], b"no image")
    root = write_dataset(tmp_path / "data", SIZES, damaged=damaged, held_out=20)
    trainings = Trainings(context, tmp_path, root, model={"backbone": PLAIN, "erasing": 0.5, "color_jitter": 0.4})
    one = trainings.run("1x12")
    found, told = evaluation(one), proofs.summary(one)
    assert sum(map(sum, found["counts"]["confusion"])) == found["images"] == 20
    for devices, micro in ((3, 4), (1, 4)):
        other = trainings.run(f"{devices}x{micro}", devices=devices, micro=micro)
        assert close(losses(one), losses(other)) and not same(weights(one), weights(other)), (devices, micro)
        others = proofs.summary(other)
        for name in ("val/accuracy", "test/accuracy", "val/skipped", "test/skipped"):
            assert others["metrics"][name] == told["metrics"][name], "each held-out sample is counted once"
        assert others["images_seen"] == told["images_seen"] == 2 * 96
        others_found = evaluation(other)
        assert others_found["counts"] == found["counts"] and others_found["images"] == 20
        for kind, examples in found["examples"].items():
            ids = {example["id"] for example in examples}
            assert {example["id"] for example in others_found["examples"][kind]} == ids, (
                "the same images, whoever met them"
            )
        assert others["skipped"] == told["skipped"] == 6, "three samples, two epochs, whichever rank met them"


@pytest.mark.parametrize("backbone", ["small_cnn", PLAIN])
def test_one_two_and_four_ranks_and_accumulation(context: Any, tmp_path: Path, dataset: Path, backbone: str) -> None:
    """With the same micro-batch the losses agree, with batch norm (`small_cnn`) too. What agrees not with it are its
    running statistics, which are updated once a micro-batch and so more often where gradients accumulate, and the
    temperature that a validation with them has fitted."""
    model = {"backbone": backbone, "optimizer": "sgd", "learning_rate": 0.02}
    trainings = Trainings(
        context, tmp_path, dataset, data={"path": str(dataset), "global_batch_size": 16, "image_size": 8}, model=model
    )
    one = trainings.run("one", micro=4)
    running = {name for name in weights(one) if "running" in name or "tracked" in name}
    assert bool(running) == (backbone == "small_cnn")
    for devices in (2, 4):
        other = trainings.run(str(devices), devices=devices, micro=4)
        assert len(losses(one)) == 12 and close(losses(one), losses(other)) and rates(one) == rates(other)
        differs = set(same(weights(one), weights(other)))
        assert differs - {"calibration.temperature"} <= running and (running or not differs)
        metrics, alone = proofs.summary(other)["metrics"], evaluate(ImageModel, other)
        for name in ("test/accuracy", "test/loss"):
            assert alone[name] == pytest.approx(metrics[name]), "ranks evaluate with one set of statistics, the saved"
        called = [call for row in rows(other) for call in row["called"]]
        assert called.count("all_reduce ahead") >= devices, "the flags of all ranks are put together"
        inside = [row["called"] for row in rows(other) if row["place"][1] > 16]  # no epoch's end or begin before it
        assert {call for calls in inside for call in calls} <= {"all_reduce ahead"}, "no step waits but for gradients"


def test_the_learning_rate_follows_the_progress(context: Any, tmp_path: Path, dataset: Path) -> None:
    """Whatever the devices, the accumulation and the global batch, changed in mid-epoch too."""
    trainings = Trainings(context, tmp_path, dataset)
    cut = trainings.run("cut", micro=6, strikes=[starts.Strike("step", 5, 15)])
    trainings.run("cut", "--data.global_batch_size", "24", devices=2, micro=6)
    found = rates(cut)
    assert [place for place in found if place[0] == 0] == [(0, p) for p in (0, 12, 24, 36, 60)]
    for (epoch, position), rate in found.items():
        assert rate == pytest.approx(0.1 * schedule((epoch + position / 96) / 2, 0.25))


def test_raw_and_averaged_weights_after_kill_and_resume(context: Any, tmp_path: Path, dataset: Path) -> None:
    """Bit by bit those of the run that was never cut; validation, test and the best checkpoint use the average."""
    trainings = Trainings(context, tmp_path, dataset, model={"backbone": "small_cnn", "learning_rate": 0.01})
    often = ["--ema_decay", "0.9", "--save_every_minutes", "0.000001", "--trainer.val_check_interval", "0.5"]
    whole, cut = trainings.run("whole", *often), tmp_path / "runs/cut"
    for strike in (("step", 3, 9), ("validation", 2, 15), ("validation", 1, 9), ("step", 2, 15)):
        trainings.run("cut", *often, strikes=[starts.Strike(*strike)])
    trainings.run("cut", *often)
    for key in ("state_dict", "current_model_state"):
        a, b = weights(whole, key=key), weights(cut, key=key)
        assert all(torch.equal(value, b[name]) for name, value in a.items()), key
    assert same(weights(whole), weights(whole, key="current_model_state"))
    metrics = [proofs.summary(run)["metrics"] for run in (whole, cut)]
    assert {k: v for k, v in metrics[0].items() if "loss" in k} == {k: v for k, v in metrics[1].items() if "loss" in k}
    assert evaluate(ImageModel, cut)["test/loss"] == pytest.approx(metrics[1]["test/loss"])

    trainings.run("cut", "--ema_decay", "null", "--trainer.max_epochs", "3", strikes=[starts.Strike("step", 1, 15)])
    raw = losses(cut)
    trainings.run("whole", "--trainer.max_epochs", "3", strikes=[starts.Strike("step", 1, 15)])
    assert raw[2, 0] == losses(whole)[2, 0], "without the average, training goes on with the weights that were trained"
