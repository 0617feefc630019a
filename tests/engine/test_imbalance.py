"""Rare classes: thresholds chosen on validation, metrics that give each class the same say, weights in the loss."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_shards.data.balance import WEIGHT_STEPS
from lightning_shards.data.class_numbers import numbers_file, weights_of
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.training_order import OrderRecipe
from lightning_shards.errors import InputError
from lightning_shards.runs.checkpoints import load
from lightning_shards.train.trained_model import best_model
from lightning_shards.vision.calibration import Calibration
from lightning_shards.vision.ranking import grid
from lightning_shards.vision.thresholds import Thresholds
from team.model import ImageModel
from team.objectives import OBJECTIVES
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAUROC, MulticlassAveragePrecision, MultilabelF1Score

from .conftest import encoded, write_dataset
from .samples import command, write_csv
from .test_inference import NAMES, call, table
from .test_train import project, start, summary

__all__ = ["project"]  # a fixture


def f1_at(logits: Tensor, targets: Tensor, threshold: float) -> float:
    said, there = logits >= threshold - 1e-6, targets > 0.5
    right = int((said & there).sum())
    return 2 * right / max(1, int(said.sum()) + int(there.sum()))


def measured(model: Thresholds, logits: Tensor, targets: Tensor, choose: bool, size: int = 16) -> Tensor:
    model.begin()
    for rows, wanted in zip(logits.split(size), targets.split(size), strict=True):
        model.update(rows, wanted)
    return model.end(choose)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 120), seed=st.integers(0, 1 << 20), share=st.floats(0, 1))
def test_no_threshold_of_the_grid_has_a_larger_f1_and_the_table_counts_by_it(
    rows: int, seed: int, share: float
) -> None:
    chance = torch.Generator().manual_seed(seed)
    targets = (torch.rand(rows, 3, generator=chance) < share).float()
    logits = 3 * torch.randn(rows, 3, generator=chance) + 2 * targets - 2
    model = Thresholds(3)
    found = measured(model, logits, targets, choose=True)
    for label in range(3):
        chosen, own = float(model.logits[label]), (logits[:, label], targets[:, label])
        if not targets[:, label].any():
            assert chosen == 0
            continue
        largest = max(f1_at(*own, place) for place in grid().tolist())
        assert f1_at(*own, chosen) == pytest.approx(largest)
        said, there = own[0] >= chosen - 1e-6, own[1] > 0.5
        pairs = ((said, there), (said, ~there), (~said, ~there), (~said, there))
        assert found[label].tolist() == [*(int((a & b).sum()) for a, b in pairs), int(there.sum())]


def test_a_wide_gap_is_halved_and_without_choosing_all_stays() -> None:
    logits, targets = torch.tensor([[-6.0], [-5.0], [-2.0], [-1.0]]), torch.tensor([[0.0], [0], [1], [1]])
    model, fixed = Thresholds(1), Thresholds(1, fit=False)
    measured(model, logits, targets, choose=True)
    assert float(model.logits) == pytest.approx(-3.5, abs=0.1)
    before = float(model.logits)
    assert measured(model, -logits, targets, choose=False).tolist() == [[2, 2, 0, 0, 2]]
    assert float(model.logits) == before
    assert measured(fixed, logits, targets, choose=True).tolist() == [[0, 0, 2, 2, 2]] and float(fixed.logits) == 0


def test_a_threshold_decides_the_same_at_any_temperature() -> None:
    chance = torch.Generator().manual_seed(0)
    targets = (torch.rand(500, 4, generator=chance) < torch.tensor([0.02, 0.1, 0.3, 0.5])).float()
    logits = 4 * torch.randn(500, 4, generator=chance) + 3 * targets - 4
    model = Calibration("sigmoid", labels=4)
    model.begin(fit=True)
    model.update(logits, targets, torch.ones(500, dtype=torch.bool))
    found = model.end()
    assert model.cutoffs is not None and model.thresholds is not None and found["temperature"] != 1
    said = (logits / model.temperature).sigmoid() >= model.cutoffs
    at_the_end = logits >= model.thresholds.logits
    assert (said == at_the_end).float().mean() > 0.999  # but for what rounding moves over the edge
    exact = MultilabelF1Score(4, average="macro")(at_the_end.float(), targets.int())
    assert found["f1"] == pytest.approx(float(exact), abs=2e-3) and found["f1"] > float(
        MultilabelF1Score(4, average="macro")((logits >= 0).float(), targets.int())
    )
    moved = model.centred((logits / model.temperature).sigmoid())
    assert ((moved >= 0.5) == said).float().mean() > 0.999


def test_ranking_is_that_of_all_scores_also_where_they_are_small() -> None:
    chance = torch.Generator().manual_seed(0)
    targets = torch.multinomial(torch.tensor([0.9, 0.08, 0.02]), 4000, replacement=True, generator=chance)
    logits = torch.randn(4000, 3, generator=chance) + torch.tensor([6.0, 0, -2]) + 1.5 * F.one_hot(targets, 3)
    objective = OBJECTIVES["single_label"](3)
    mean, each = objective.ranking(), objective.ranking(mean=False)
    for rows in torch.arange(4000).split(333):
        mean.update(logits[rows], targets[rows])
        each.update(logits[rows].softmax(1), targets[rows])
    for name, exact in (("auroc", MulticlassAUROC), ("average_precision", MulticlassAveragePrecision)):
        whole = exact(3, average=None)(logits.softmax(1), targets)
        assert torch.allclose(each.compute()[name], whole, atol=0.02), (name, whole)
        assert float(mean.compute()[name]) == pytest.approx(float(whole.mean()), abs=0.02)
        evenly = exact(3, average=None, thresholds=200)(logits.softmax(1), targets)
        assert (evenly - whole)[2].abs() > 0.05, "which thresholds that are even in the probability miss"


def test_a_class_without_images_has_no_value_and_counts_in_no_mean(recwarn: Any) -> None:
    objective = OBJECTIVES["single_label"](3)
    metrics = objective.metrics()
    metrics.update(torch.tensor([[3.0, 0, -9], [0, 3.0, -9]]), torch.tensor([0, 1]))
    assert {name: float(value) for name, value in metrics.compute().items()} == {
        "accuracy": 1.0, "balanced_accuracy": 1.0, "f1": 1.0, "auroc": 1.0, "average_precision": 1.0,
    }  # fmt: skip
    assert not [w for w in recwarn if "samples" in str(w.message) or "nan" in str(w.message)]


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_class_weights_multiply_the_loss_of_their_images(loss: str) -> None:
    plain, weighted = (OBJECTIVES["single_label"](3, 0.1, loss) for _ in range(2))
    assert weighted.weigh({"b": 4.0}, ["a", "b", "c"]) == {"b": 4.0}
    logits, targets = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1, 0, 2])
    factors = torch.tensor([1.0, 4, 1, 4, 1, 1])
    assert torch.allclose(weighted.losses(logits, targets), plain.losses(logits, targets) * factors)


def test_class_weights_of_labels_and_masks() -> None:
    chance = torch.Generator().manual_seed(0)
    many = OBJECTIVES["multi_label"](2)
    many.weigh({"rare": 3.0}, ["rare", "common"])
    logits = torch.randn(4, 2, generator=chance)
    none, both = torch.zeros(4, 2), torch.ones(4, 2)
    plain = OBJECTIVES["multi_label"](2)
    assert torch.allclose(many.losses(logits, none), plain.losses(logits, none)), "only where it is there"
    by_hand = F.binary_cross_entropy_with_logits(logits, both, reduction="none") * torch.tensor([3.0, 1.0])
    assert torch.allclose(many.losses(logits, both), by_hand.mean(1))
    masks = OBJECTIVES["segmentation"](2, 0.0, "cross_entropy")
    masks.weigh({"b": 2.0}, ["a", "b"])
    pixels, mask = torch.randn(1, 2, 2, 2, generator=chance), torch.tensor([[[0, 1], [255, 1]]])
    of_each = F.cross_entropy(pixels, mask, reduction="none", ignore_index=255)[0]
    wanted = (of_each[0, 0] + 2 * of_each[0, 1] + 2 * of_each[1, 1]) / 3
    assert torch.allclose(masks.losses(pixels, mask), wanted[None])


def test_how_far_to_even_out_is_reckoned_from_the_counts() -> None:
    task = OBJECTIVES["single_label"](3)
    assert task.weigh(1.0, ["a", "b", "c"]) == 1.0, "not counted yet"
    found = task.weigh(1.0, ["a", "b", "c"], [900, 90, 10])
    assert isinstance(found, dict)
    assert [900 * found["a"], 90 * found["b"], 10 * found["c"]] == pytest.approx([1000 / 3] * 3, rel=1e-5)
    assert task.weigh(0.0, ["a", "b", "c"], [900, 90, 10]) == {"a": 1.0, "b": 1.0, "c": 1.0}


@pytest.mark.parametrize(
    ("task", "wanted", "said"),
    [
        ("single_label", {"owl": 2.0}, "no class 'owl'"),
        ("single_label", {"a": 0.0}, "a is 0.0"),
        ("single_label", {"a": float("nan")}, "a is nan"),
        ("single_label", {"a": -1.0}, "a is -1.0"),
        ("single_label", {"a": float("inf")}, "a is inf"),
        ("single_label", 1.5, "is 1.5"),
        ("single_label", float("nan"), "is nan"),
        ("multi_label", 0.5, "give names"),
        ("segmentation", 0.5, "give names"),
        ("regression", {"a": 2.0}, "is for classes"),
    ],
)
def test_class_weights_that_are_none(task: str, wanted: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        OBJECTIVES[task](2).weigh(wanted, ["a", "b"])


def test_a_weighted_run_keeps_its_weights_and_measures_with_them(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    changes = ("--model.class_weights", "0.5", "--trainer.max_epochs", "1")
    assert start(monkeypatch, "--run", "weighted", *changes) == 0
    model, _ = best_model(ImageModel, Path("runs/weighted"))
    assert isinstance(model.hparams["class_weights"], dict) and set(model.hparams["class_weights"]) == set(NAMES)
    metrics = summary("weighted")["metrics"]
    assert call(monkeypatch, "evaluate", "weighted", "--json") == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert found["test/loss"] == pytest.approx(metrics["test/loss"])
    assert start(monkeypatch, "--run", "no", "--model.class_weights", "{nothing: 2}") == 2
    assert "no class 'nothing'" in capfd.readouterr().err and not Path("runs/no").exists()


def test_thresholds_are_kept_shown_and_used(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    root = write_dataset(tmp_path / "many", task="multi_label")
    reported = ("--trainer.max_epochs", "2", "--log.report", "true")
    assert start(monkeypatch, "--run", "many", "--data.path", str(root), *reported) == 0
    kept = load(Path("runs/many/checkpoints/best.ckpt"))["state_dict"]["calibration.thresholds.logits"]
    assert kept.shape == (3,) and (kept != 0).any()
    evaluation = json.loads(Path("runs/many/evaluation/test.json").read_text())
    page = Path("runs/many/report.html").read_text()
    assert "there from" in page and "AUROC" in page and f"{evaluation['cutoffs'][0]:.1%}" in page
    model, _ = best_model(ImageModel, Path("runs/many"))
    assert model.calibration.cutoffs.tolist() == pytest.approx(evaluation["cutoffs"])
    capfd.readouterr()
    assert call(monkeypatch, "predict", "many", root, "--scores") == 0
    for row in table(capfd.readouterr().out):
        said = [n for n, cut in zip(NAMES, evaluation["cutoffs"], strict=True) if float(row[f"scores:{n}"]) >= cut]
        assert row["predicted"] == "|".join(said)
    assert call(monkeypatch, "export", "many", "m.pt2", "--json") == 0
    about = json.loads(capfd.readouterr().out)
    assert list(about["cutoffs"].values()) == pytest.approx(evaluation["cutoffs"], rel=1e-5)
    off = ("--run", "off", "--data.path", str(root), "--trainer.max_epochs", "1", "--model.thresholds", "false")
    assert start(monkeypatch, *off) == 0
    assert json.loads(Path("runs/off/evaluation/test.json").read_text())["cutoffs"] == [0.5] * 3


def packed(folder: Path, weights: list[float]) -> Path:
    """Images with a weight each."""
    rows = []
    for number, weight in enumerate(weights):
        (folder / f"{number:02}.png").write_bytes(encoded(number))
        rows.append({"path": f"{number:02}.png", "label": "ab"[number % 2], "weight": weight})
    write_csv(folder / "table.csv", rows)
    options = ("--target-columns", "label", "--field", "weight=weight", "--val", "0", "--test", "0")
    done = command(folder / "table.csv", folder / "packed", *options)
    assert done.returncode == 0, done.stderr
    return folder / "packed"


def test_each_sample_comes_as_often_as_its_own_weight_says(tmp_path: Path) -> None:
    weighed = packed(tmp_path, [0.25, 1, 2.5, 7] * 10)
    dataset = Dataset.open(weighed)
    order = OrderRecipe(dataset, "train", {str(weighed): 1.0}, "weight").make()
    numbers = np.load(numbers_file(dataset, "train", weights_of(dataset, "weight")))
    weights, total = numbers / WEIGHT_STEPS, np.zeros(40)
    assert sorted(set(weights.tolist())) == [0.25, 1, 2.5, 7]
    for epoch in range(40):
        times = np.bincount(order.ids(epoch, 0, len(order)), minlength=40)
        assert (times >= np.floor(weights)).all() and (times <= np.ceil(weights)).all()
        total += times
    assert len(order) == round(weights.sum()) and np.abs(total / 40 - weights).max() < 0.35
    again = pickle.loads(pickle.dumps(order))  # goes on anywhere, also in another process
    assert np.array_equal(again.ids(3, 17, 60), order.ids(3, 0, len(order))[17:60])


@pytest.mark.parametrize("weight", [0, -1, 1001])
def test_a_weight_that_is_none_is_named(tmp_path: Path, weight: float) -> None:
    root = packed(tmp_path, [1, 2, weight, 4])
    dataset = Dataset.open(root)
    with pytest.raises(InputError, match=f"the weight of .* must be above 0 and at most 1000, it is {weight}") as told:
        OrderRecipe(dataset, "train", {str(root): 1.0}, "weight").make()
    assert "000000.tar" in str(told.value)
    with pytest.raises(InputError, match=r"no field 'age'.*weight would do"):
        OrderRecipe(dataset, "train", {str(root): 1.0}, "age").make()
    with pytest.raises(ValueError, match="it has none"):
        weights_of(dataset, "weight").read(None)


def test_each_field_of_weights_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Also where their names come to the same letters, or one name stands for another member by now."""
    dataset = Dataset.open(write_dataset(tmp_path / "d", sizes=(4,)))
    about = {"kind": "numbers", "count": 1, "key": None}
    given = replace(dataset, fields={name: about | {"names": [f"{n}.json"]} for n, name in enumerate(("a b", "a.b"))})
    later = replace(dataset, fields={"a b": about | {"names": ["2.json"]}})
    files = {weights_of(x, name).file_name(x, "train") for x, name in ((given, "a b"), (given, "a.b"), (later, "a b"))}
    assert len(files) == 3


def test_a_metric_of_ones_own_is_not_replaced(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant(MeanMetric):
        def update(self, *_: Any) -> None:
            super().update(7.0)

    many = OBJECTIVES["multi_label"]
    monkeypatch.setattr(many, "metrics", lambda self: MetricCollection({"f1": Constant(), "ranking": self.ranking()}))
    root = write_dataset(tmp_path / "many", task="multi_label")
    assert start(monkeypatch, "--run", "own", "--data.path", str(root), "--trainer.max_epochs", "1") == 0
    assert summary("own")["metrics"]["test/f1"] == 7
