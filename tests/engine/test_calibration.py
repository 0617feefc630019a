"""Calibration: the error that is counted, the temperature that is fitted, and that both survive whatever a run does."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_shards.data import Crop, ShardLoader
from lightning_shards.reporting import reliability
from lightning_shards.runs.files import RunFiles
from lightning_shards.train.trained_model import best_model
from lightning_shards.vision import calibration
from lightning_shards.vision.calibration import Calibration, Reliability, fitted, grid
from team.model import ImageModel
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from . import PATIENCE
from .test_inference import call
from .test_train import project, spawn, start, summary, weights

__all__ = ["project"]  # a fixture
TEMPERATURE = "calibration.temperature"
SLOW = ("--model.learning_rate", "0.0003")  # with it the model is not sure of all images


def drawn(rows: int, classes: int, sharper: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are `sharper` times as sure as they may be, and targets drawn from what they may be."""
    generator = torch.Generator().manual_seed(seed)
    honest = 2 * torch.randn(rows, classes, generator=generator)
    return sharper * honest, torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]


def cost(logits: Tensor, targets: Tensor, place: float) -> float:
    """What `fitted` makes small, at the logarithm of a temperature."""
    scaled = logits.double() / math.exp(place)
    loss = F.cross_entropy if targets.ndim == 1 else F.binary_cross_entropy_with_logits
    return float(loss(scaled, targets if targets.ndim == 1 else targets.double(), reduction="sum")) + place**2 / 2


def best(logits: Tensor, targets: Tensor) -> float:
    """The temperature by golden section over all logits."""
    low, high, ratio = math.log(0.1), math.log(10.0), (math.sqrt(5) - 1) / 2
    while high - low > 1e-7:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if cost(logits, targets, left) < cost(logits, targets, right) else (left, high)
    return math.exp((low + high) / 2)


def measured(model: Calibration, logits: Tensor, targets: Tensor, fit: bool, size: int = 64) -> dict[str, float]:
    model.begin(fit)
    for part, wanted in zip(logits.split(size), targets.split(size), strict=True):
        model.update(part, wanted, torch.ones(len(part), dtype=torch.bool))
    return model.end()


@pytest.mark.parametrize("sharper", [0.3, 0.8, 1.0, 1.7, 4.0])
@pytest.mark.parametrize("rows", [40, 3000])
def test_the_temperature_is_that_of_a_search_over_all_logits(sharper: float, rows: int) -> None:
    logits, targets = drawn(rows, 10, sharper)
    model = Calibration("softmax")
    found = measured(model, logits, targets, fit=True)
    assert found["temperature"] == pytest.approx(best(logits, targets), rel=2e-3)
    labels = (torch.rand(rows, 10, generator=torch.Generator().manual_seed(1)) < (logits / sharper).sigmoid()).float()
    model = Calibration("sigmoid")
    assert measured(model, logits, labels, fit=True)["temperature"] == pytest.approx(best(logits, labels), rel=2e-3)
    if rows == 3000:
        assert found["temperature"] == pytest.approx(sharper, rel=0.1)
        assert found["calibration_error"] < 0.03
        assert sharper in (0.8, 1.0) or found["calibration_error_unscaled"] > 0.08


@pytest.mark.parametrize("sharper", [0.5, 3.0])
def test_the_error_is_that_of_torchmetrics(sharper: float) -> None:
    logits, targets = drawn(1000, 5, sharper)
    model = Calibration("softmax")
    model.temperature.fill_(1.5)
    found = measured(model, logits, targets, fit=False)
    for name, scale in (("calibration_error_unscaled", 1.0), ("calibration_error", 1.5)):
        reference = MulticlassCalibrationError(5, n_bins=15, norm="l1")
        reference.update((logits / scale).softmax(1), targets)
        assert found[name] == pytest.approx(float(reference.compute()), abs=1e-6)
    assert model.found and sum(row[0] for row in model.found["scaled"]) == 1000
    alone = measured(Calibration("softmax", calibrate=False), logits, targets, fit=True)
    assert alone == {"calibration_error": pytest.approx(found["calibration_error_unscaled"])}


def test_labels_are_decisions_of_their_own() -> None:
    logits = torch.tensor([[2.0, -2.0], [2.0, -2.0]])
    model = Calibration("sigmoid", calibrate=False)
    share = float(torch.tensor(2.0).sigmoid())
    found = measured(model, logits, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), fit=False)
    assert found["calibration_error"] == pytest.approx((2 * (1 - share) + 2 * (0.5 - (1 - share))) / 4, abs=1e-6)
    assert model.found and sum(row[0] for row in model.found["unscaled"]) == 4


def test_rows_in_any_batches_and_on_any_ranks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = drawn(500, 7, 2.0)
    whole = measured(Calibration("softmax"), logits, targets, fit=True, size=500)
    assert measured(Calibration("softmax"), logits, targets, fit=True, size=7) == pytest.approx(whole, rel=1e-4)
    monkeypatch.setattr(calibration, "_AT_A_TIME", 5000)
    assert measured(Calibration("softmax"), logits, targets, fit=True, size=64) == pytest.approx(whole, rel=1e-4)
    ranks = [Reliability("softmax", searching=True) for _ in range(2)]
    for rank, one in enumerate(ranks):
        one.update(logits[rank::2], targets[rank::2], torch.ones(()))
    assert all(reduce is torch.sum or "sum" in repr(reduce) for reduce in ranks[0]._reductions.values())
    assert fitted(ranks[0].nll + ranks[1].nll) == pytest.approx(whole["temperature"], rel=1e-4)
    model = Calibration("softmax")
    model.begin(fit=True)
    damaged = torch.cat([logits, torch.full((9, 7), torch.nan)])
    model.update(damaged, torch.cat([targets, targets[:9]]), torch.arange(509) < 500)
    assert model.end() == pytest.approx(whole, rel=1e-4), "rows that are not valid count nowhere"
    sizes = {name: getattr(ranks[0], name).numel() for name in ("nll", "decisions", "right", "confidence")}
    assert max(sizes.values()) < 1000, "whatever the number of rows"


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["right", "wrong", "one class", "one row", "huge", "infinite", "nan", "none"])
def test_whatever_the_logits_are_the_temperature_is_a_number(link: Any, kind: str) -> None:
    rows = {"one row": 1, "none": 0}.get(kind, 30)
    targets = torch.arange(rows) % 3
    logits = 8 * F.one_hot(targets, 3).float() - 4
    if kind == "wrong":
        logits = -logits
    if kind == "one class":
        targets, logits = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, 1)
    if kind in ("huge", "infinite", "nan"):
        logits[3] = {"huge": 1e30, "infinite": math.inf, "nan": math.nan}[kind]
    if link == "sigmoid":
        targets = F.one_hot(targets, logits.shape[1]).float()
    model = Calibration(link)
    found = measured(model, logits, targets, fit=True)
    assert all(math.isfinite(value) for value in found.values()), found
    assert bool(found) == (kind != "none")
    assert 0.1 <= float(model.temperature) <= 10.0
    if kind == "right":
        assert 0.3 < float(model.temperature) < 1, "no mistake in 30 images is no certainty"
    if kind == "wrong":
        assert float(model.temperature) > 4
    assert float(grid()[32]) == 1.0


def test_a_checkpoint_without_a_temperature_loads_as_one() -> None:
    calibration, off = Calibration("softmax"), Calibration("softmax", calibrate=False)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), calibration)
    state = model.state_dict()
    calibration.temperature.fill_(3.0)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value for name, value in state.items() if "temperature" not in name})
    assert float(calibration.temperature) == 1.0
    model.load_state_dict(kept)
    assert float(calibration.temperature) == 3.0
    assert torch.equal(calibration(torch.full((1, 2), 6.0)), torch.full((1, 2), 2.0))
    torch.nn.Sequential(torch.nn.Linear(2, 2), off).load_state_dict(kept)
    assert float(off.temperature) == 1.0, "switched off, a temperature that is there plays no part"
    numbers = Calibration(None)
    numbers.update(torch.zeros(2, 1), torch.zeros(2, 1), torch.ones(2, dtype=torch.bool))
    assert numbers.end() == {} and torch.equal(numbers(torch.ones(2, 1)), torch.ones(2, 1))


@pytest.fixture
def runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run `one` of two epochs, with an average of its weights."""
    assert start(monkeypatch, "--run", "one", "--ema_decay", "0.9", "--trainer.max_epochs", "2", *SLOW) == 0
    return project / "runs"


def temperature(run: str, name: str, part: str = "state_dict") -> float:
    return float(torch.load(f"runs/{run}/checkpoints/{name}.ckpt", weights_only=True)[part][TEMPERATURE])


def csv_column(path: Path, name: str) -> list[tuple[str, float]]:
    """(step, value) of the rows that have one."""
    with path.open() as file:
        return [(row["step"], float(row[name])) for row in csv.DictReader(file) if row.get(name)]


def validated(run: str) -> tuple[ImageModel, Tensor, Tensor]:
    """The best weights of a run; what they make of all of validation, and its targets."""
    model, config = best_model(ImageModel, Path("runs") / run)
    crop = Crop(16, center=0.875)
    loader = ShardLoader(config["data"]["path"], 8, split="val", shuffle=False, crop=crop, workers=1)
    with torch.inference_mode():
        rows = [(model.eval()(batch["image"])[batch.valid], batch["target"][batch.valid].clone()) for batch in loader]
    loader.close()
    logits, targets = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return model, logits, targets


def strip(path: Path) -> None:
    """Make a checkpoint what it was before there were temperatures."""
    content = torch.load(path, weights_only=True)
    for part in ("state_dict", "current_model_state"):
        content.get(part, {}).pop(TEMPERATURE, None)
    content["hyper_parameters"].pop("calibrate", None)
    path.unlink()  # it has other names
    torch.save(content, path)


def test_each_checkpoint_has_the_temperature_of_its_own_weights(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Under an average of the weights: the validation's, in both halves, and what the validation logged."""
    fits = dict(csv_column(runs / "one/metrics.csv", "val/temperature"))
    assert len(fits) == 2 and len(set(fits.values())) == 2
    assert temperature("one", "last") == temperature("one", "last", "current_model_state")
    assert temperature("one", "last") == pytest.approx(list(fits.values())[-1], rel=1e-6)
    model, logits, targets = validated("one")
    used = float(model.calibration.temperature)
    assert used == temperature("one", "best") == pytest.approx(summary("one")["metrics"]["test/temperature"])
    assert used == pytest.approx(best(logits, targets), rel=5e-3)
    capfd.readouterr()
    assert call(monkeypatch, "evaluate", "one", "--split", "val", "--json") == 0
    told = json.loads(capfd.readouterr().out)
    assert told["val/temperature"] == pytest.approx(used)
    for where in ("val/accuracy", "val/calibration_error_unscaled"):
        assert told[where] == pytest.approx(summary("one")["metrics"][where], abs=1e-6)
    assert call(monkeypatch, "export", "one", "m.pt2") == 0
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    wanted = (model(images) / used).softmax(1)
    assert torch.allclose(torch.export.load("m.pt2").module()(images), wanted, atol=1e-5)
    assert used != 1 and not torch.allclose(model(images).softmax(1), wanted, atol=1e-4)
    assert call(monkeypatch, "report", "one") == 0
    page = (runs / "one/report.html").read_text()
    assert 'aria-label="Reliability"' in page and f"temperature of {used:.3g}" in page


def test_checkpoints_without_a_temperature_do_all_that_they_did(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    for name in ("best", "last"):
        strip(runs / f"one/checkpoints/{name}.ckpt")
    capfd.readouterr()
    assert call(monkeypatch, "evaluate", "one", "--json") == 0
    told = json.loads(capfd.readouterr().out)
    assert told["test/temperature"] == 1 and told["test/accuracy"] == summary("one")["metrics"]["test/accuracy"]
    assert told["test/calibration_error"] == told["test/calibration_error_unscaled"]
    assert call(monkeypatch, "export", "one", "m.pt2") == 0
    assert start(monkeypatch, "--resume", "one", "--trainer.max_epochs", "3", config=None) == 0
    assert temperature("one", "last") != 1
    off = ["--trainer.max_epochs", "4", "--model.calibrate", "false"]
    assert start(monkeypatch, "--resume", "one", *off, config=None) == 0
    assert temperature("one", "last") == 1


def test_two_ranks_fit_what_one_measures(project: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Of 21 samples, which two ranks share with padding."""
    process = spawn(project, "--run", "two", "--trainer.max_epochs", "1", "--trainer.devices", "2", *SLOW)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    told = summary("two")["metrics"]
    assert temperature("two", "best") == pytest.approx(told["val/temperature"]) != 1
    _, logits, targets = validated("two")
    assert told["val/temperature"] == pytest.approx(best(logits, targets), rel=5e-3)
    assert told["val/calibration_error_unscaled"] == pytest.approx(
        measured(Calibration("softmax", calibrate=False), logits, targets, fit=False)["calibration_error"], abs=1e-5
    )


@pytest.mark.parametrize(
    "settings",
    [
        ["--trainer.limit_val_batches", "0"],
        ["--model.calibrate", "false"],
        ["--trainer.num_sanity_val_steps", "2", "--trainer.limit_val_batches", "1"],
        ["--trainer.val_check_interval", "5", "--ema_decay", "0.9"],
    ],
)
def test_validations_that_are_short_left_out_or_in_mid_epoch(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: list[str],
) -> None:
    assert start(monkeypatch, "--run", "one", "--trainer.max_epochs", "1", *SLOW, *settings) == 0
    metrics, fitted_here = summary("one")["metrics"], not {"0", "false"} & set(settings)
    assert all(map(math.isfinite, metrics.values())), metrics
    assert (temperature("one", "last") != 1) == fitted_here
    assert ("test/temperature" in metrics) == ("false" not in settings) and "test/calibration_error" in metrics


def test_training_is_what_it_was(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temperature changes no weight, no loss and no accuracy."""
    found = []
    for name, on in (("on", "true"), ("off", "false")):
        assert start(monkeypatch, "--run", name, "--trainer.max_epochs", "1", "--model.calibrate", on) == 0
        metrics = summary(name)["metrics"]
        found.append((weights(name), {key: metrics[key] for key in ("val/loss", "val/accuracy", "test/accuracy")}))
    (one, figures), (other, others) = found
    assert figures == others
    assert all(torch.equal(value, other[name]) for name, value in one.items() if name != TEMPERATURE)


BINS = [[0, 0, 0.0]] * 13 + [[10, 6, 9.0], [30, 27, 29.5]]


def told(**calibration: Any) -> tuple[dict[str, str], list[str]]:
    """What the report says of a calibration, and what it misses."""
    run = RunFiles(Path("runs/one"), evaluation={"calibration": calibration})
    return reliability.of(run), run.missing


def test_the_report_says_what_the_bins_say() -> None:
    both = {"unscaled": BINS, "scaled": [[0, 0, 0.0]] * 14 + [[40, 33, 33.4]], "temperature": 1.5}
    found, missing = told(**both, fitted_here=False, link="softmax")
    assert "Over 40 images, the probabilities are off by 1.0% on average" in found["text"] and not missing
    assert "Without the temperature of 1.5 they would be off by 13.8%" in found["text"]
    assert "network alone" in found["chart"] and "with temperature" in found["chart"]
    assert "these very images" in told(**both, fitted_here=True, link="softmax")[0]["text"]
    found, _ = told(unscaled=BINS, fitted_here=False, link="sigmoid")
    assert "Over 40 labels, the probabilities are off by 13.8%" in found["text"]
    assert "with temperature" not in found["chart"]
    unfitted, _ = told(unscaled=BINS, scaled=BINS, temperature=1.0, fitted_here=False, link="softmax")
    assert "temperature" not in unfitted["text"] + unfitted["chart"], "no validation has fitted one"
    assert reliability.of(RunFiles(Path("runs/one"))) == {}, "an older run has none"


@pytest.mark.parametrize(
    "bins", [[], [[1, 2, 0.5]], [[1, 1]], [["<b>", 1, 1]], [[1, 1, math.nan]], 7, [[1, 1, 1]] * 101]
)
def test_damaged_bins_are_named(bins: Any) -> None:
    found, missing = told(unscaled=bins, fitted_here=False, link="softmax")
    assert found == {} and len(missing) == 1 and "the calibration is not shown" in missing[0]


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_what_was_said_before_the_fit_is_restated(link: Any) -> None:
    logits, targets = drawn(200, 5, 3.0)
    if link == "sigmoid":
        targets = (torch.rand(200, 5, generator=torch.Generator().manual_seed(1)) < (logits / 3).sigmoid()).float()
    model = Calibration(link)
    model.temperature.fill_(2.0)

    def scores() -> Tensor:
        return model(logits[0]).softmax(0) if link == "softmax" else model(logits[0]).sigmoid()

    before = scores()
    measured(model, logits, targets, fit=True)
    assert torch.allclose(model.restated(before), scores(), atol=1e-5) and not torch.allclose(
        before, scores(), atol=1e-3
    )
