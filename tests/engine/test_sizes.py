"""A size schedule: squares of the size that the settings say for the epoch, from the same processes, resumed too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning_shards.data.crop import Crop
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.loader import EpochLoader, SkipLog
from lightning_shards.data.order import WindowedOrder
from lightning_shards.data.sampler import TrainSampler
from lightning_shards.data.sizes import relative_work, sides_of_epochs
from lightning_shards.data.worker import WorkerSpec
from lightning_shards.errors import InputError
from lightning_shards.forecasting.bench import Bench
from lightning_shards.train import TrainingCLI
from team.model import ImageModel

from . import proofs
from .test_train import SMALL

CROP = Crop(20, scale=(0.3, 1.0))


def loader(root: Path, sides: list[int] | None, size: int = 20, start: tuple[int, int] = (0, 0)) -> EpochLoader:
    data = Dataset.open(root)
    shards = data.splits["train"]
    plan, _ = WorkerSpec(data, "train", CROP, 8, 5, 2, (Path(), None)).plan(1 << 20)
    job = WorkerSpec(data, "train", Crop(size, scale=(0.3, 1.0)), 8, 5, 2, (Path(), None), decoded=plan)
    order = WindowedOrder([shard.samples for shard in shards], [shard.bytes for shard in shards], 5)
    sampler = TrainSampler(order, 0, 1, 8, 1, start, sides=sides)
    return EpochLoader(job, sampler, SkipLog(None, 1e9), processes=2)


def epochs(made: EpochLoader, numbers: range) -> list[list[torch.Tensor]]:
    found = []
    for epoch in numbers:
        made.sampler.set_epoch(epoch)
        found.append([batch["image"] for batch in made])
    return found


def test_an_epochs_size_follows_from_the_settings_alone() -> None:
    assert sides_of_epochs({8: 0.5}, 16, 4) == [8, 8, 16, 16]
    assert sides_of_epochs({12: 0.25, 8: 0.25}, 16, 4) == [8, 12, 16, 16], "the smallest first"
    assert sides_of_epochs({8: 0.3, 12: 0.7}, 16, 10) == [8] * 3 + [12] * 7, "image_size may be for validation alone"
    assert sides_of_epochs({8: 0.4}, 16, 3) == [8, 16, 16] and sides_of_epochs({8: 0.5}, 16, 3) == [8, 8, 16]
    for count in range(3, 40):
        assert len(sides_of_epochs({8: 0.4, 12: 0.3}, 16, count)) == count


def test_what_is_expected_goes_with_the_pixels_of_each_epoch() -> None:
    assert relative_work([8, 8, 16, 16], 0, 4) == [1, 1, 4, 4] and relative_work([8, 16], 1, 2) == [0.25, 1]
    assert relative_work(None, 3, 4) == [1, 1, 1, 1]


def test_the_loader_changes_size_without_a_restart_and_makes_the_same_pixels(dataset: Path) -> None:
    made = loader(dataset, [12, 12, 20, 16])
    (first,) = epochs(made, range(1))
    processes = [process._process.pid for process in made._decoding]
    others = epochs(made, range(1, 4))
    assert [process._process.pid for process in made._decoding] == processes
    made.close()
    for epoch, (side, batches) in enumerate(zip([12, 12, 20, 16], [first, *others], strict=True)):
        assert all(images.shape[1:] == (3, side, side) for images in batches)
        alone = loader(dataset, None, size=side)
        (expected,) = epochs(alone, range(epoch, epoch + 1))
        alone.close()
        assert len(batches) == len(expected) == 12
        assert all(torch.equal(one, other) for one, other in zip(batches, expected, strict=True))


def test_a_resume_has_the_size_of_its_epoch(dataset: Path) -> None:
    whole, later = loader(dataset, [12, 16]), loader(dataset, [12, 16], start=(1, 40))
    expected, (found,) = epochs(whole, range(2)), epochs(later, range(1, 2))
    whole.close()
    later.close()
    assert all(torch.equal(one, other) for one, other in zip(expected[1][5:], found, strict=True))


def settings(folder: Path, dataset: Path, **data: Any) -> list[str]:
    content = SMALL | {"data": SMALL["data"] | {"path": str(dataset), "image_size": 16, **data}}
    (folder / "sizes.yaml").write_text(yaml.safe_dump(content))
    return ["--config", "sizes.yaml"]


def make(folder: Path, monkeypatch: pytest.MonkeyPatch, given: list[str]) -> TrainingCLI:
    monkeypatch.chdir(folder)
    return TrainingCLI(ImageModel, args=given)


@pytest.mark.parametrize(
    ("data", "others", "sentence"),
    [
        ({"size_schedule": {}}, [], "data.size_schedule is empty"),
        ({"size_schedule": {16: 0.5}}, [], "images of 16 pixels: at least 8, and fewer than data.image_size 16"),
        ({"size_schedule": {7: 0.5}}, [], "images of 7 pixels: at least 8"),
        ({"size_schedule": {8: 0.0}}, [], "the share of 8 pixels is 0, it must be above 0"),
        ({"size_schedule": {8: 0.6, 12: 0.6}}, [], "the shares come to 1.2, at most 1 is possible"),
        ({"size_schedule": {8: 0.3, 12: 0.3}}, [], "leaves no epoch to images of 12 pixels, with trainer.max_epochs 2"),
        ({"size_schedule": {8: 0.5}}, ["--model.backbone", "vit_b_16"], "vit_b_16 cannot take the 8 pixels of"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, data: Any, others: list[str], sentence: str
) -> None:
    given = [*settings(tmp_path, dataset, **data), "--trainer.max_epochs", "2", *others]
    with pytest.raises(InputError, match=sentence) as caught:
        make(tmp_path, monkeypatch, given)
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["sizes.yaml"]


def test_a_training_sees_each_size_and_validates_at_the_last(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []
    forward = ImageModel.forward

    def noted(self: ImageModel, images: torch.Tensor) -> torch.Tensor:
        seen.append((self.training, images.shape[-1]))
        return forward(self, images)

    given = settings(tmp_path, dataset, size_schedule={8: 0.5, 12: 0.25})
    cli = make(tmp_path, monkeypatch, [*given, "--trainer.max_epochs", "4", "--run", "sizes", "--ledger", "true"])
    monkeypatch.setattr(ImageModel, "forward", noted)
    with cli.run:
        cli.start()
    steps = len(cli.data.order) // cli.data.global_batch_size
    assert [side for training, side in seen if training] == [8] * 2 * steps + [12] * steps + [16] * steps
    assert {side for training, side in seen if not training} == {16}
    assert len(proofs.history(cli.run.folder)) == 4 * steps and cli.data.inputs == "8 to 16 pixels"


def test_a_forecast_measures_each_size_for_its_share(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prices = Path(__file__).parents[2] / "{{cookiecutter.project_slug}}" / "prices.yaml"
    given = [*settings(tmp_path, dataset, size_schedule={8: 0.75}), "--trainer.max_epochs", "4"]
    bench = Bench(ImageModel, [*given, "--prices", str(prices)], str(tmp_path), {})
    assert bench.sizes == {8: 0.75, 16: 0.25}
    rates = {8: (400.0, 100.0), 16: (100.0, 200.0)}
    asked: list[float] = []

    def measure(seconds: float) -> tuple[float, float]:
        asked.append(seconds)
        assert bench.data.sides is not None
        return rates[bench.data.sides[0]]

    rate, watts = bench.over_sizes(measure, 8.0)
    assert rate == pytest.approx(1 / (0.75 / 400 + 0.25 / 100)) and asked == [6.0, 2.0]
    assert watts == pytest.approx((100 * 0.75 / 400 + 200 * 0.25 / 100) * rate)
    plain = Bench(ImageModel, [*settings(tmp_path, dataset), "--prices", str(prices)], str(tmp_path), {})
    assert plain.sizes == {16: 1.0} and bench.flops is not None and plain.flops is not None
    assert bench.flops < 0.6 * plain.flops
    assert bench.loader(0.2) > 0 and bench.data.sides == [16]
