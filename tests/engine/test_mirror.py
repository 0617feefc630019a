"""`--flip`: what a model says of an image and its mirror image, averaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning_shards.data import Crop, ShardLoader
from lightning_shards.train.trained_model import best_model
from lightning_shards.vision.calibration import Calibration
from team.model import ImageModel

from .test_inference import call
from .test_train import project, start, summary

__all__ = ["project"]  # a fixture


@pytest.mark.parametrize("link", ["softmax", "sigmoid", None])
def test_pooled_outputs_have_the_mean_of_the_probabilities(link: Any) -> None:
    views = list(torch.randn(2, 5, 4) * 9)
    calibration = Calibration(link)
    calibration.temperature.fill_(1.7)

    def scores(logits: torch.Tensor) -> torch.Tensor:
        scaled = calibration(logits)
        return scaled.softmax(1) if link == "softmax" else scaled.sigmoid() if link else scaled

    wanted = (scores(views[0]) + scores(views[1])) / 2
    assert torch.allclose(scores(calibration.pooled(views)), wanted, atol=1e-6)
    far = [torch.tensor([[200.0, -200.0]]), torch.tensor([[-200.0, 200.0]])]
    assert calibration.pooled(far).isfinite().all()


def test_measured_and_predicted_are_means_over_the_mirror_image(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    assert start(monkeypatch, "--run", "one", "--trainer.max_epochs", "2", "--model.learning_rate", "0.0003") == 0
    data = summary("one")["dataset"]["path"]
    model = best_model(ImageModel, project / "runs" / "one")[0].eval()
    loader = ShardLoader(data, 8, split="test", shuffle=False, crop=Crop(16, center=0.875), workers=1)
    rows = [(batch["image"].clone(), batch["target"].clone(), batch.valid.clone()) for batch in loader]
    loader.close()
    images, targets, valid = (torch.cat(parts) for parts in zip(*rows, strict=True))
    images, targets = images[valid], targets[valid]
    with torch.inference_mode():
        wanted = (model.scores(images) + model.scores(images.flip(-1))) / 2
    capfd.readouterr()
    assert call(monkeypatch, "predict", "one", data, "--flip", "--json", "--scores") == 0
    told = capfd.readouterr()
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert np.allclose([list(line["scores"].values()) for line in lines], wanted, atol=2e-5)
    assert all(line["views"] == 2 for line in lines) and "each mirrored too" in told.err
    assert call(monkeypatch, "evaluate", "one", "--flip", "--json") == 0
    measured = json.loads(capfd.readouterr().out)
    assert measured["views"] == 2
    assert measured["test/accuracy"] == pytest.approx(float((wanted.argmax(1) == targets).float().mean()))
    config = Path("runs/one/config.yaml")
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(settings | {"data": {**settings["data"], "micro_batch_size": 2}}))
    assert call(monkeypatch, "evaluate", "one", "--flip", "--json") == 0
    assert json.loads(capfd.readouterr().out) == pytest.approx(measured, rel=1e-4), "whatever the batch size"
    assert call(monkeypatch, "evaluate", "one", "--json") == 0
    assert "views" not in json.loads(capfd.readouterr().out)
    with monkeypatch.context() as patch:  # a model whose scores go another way
        patch.setattr(ImageModel, "scores", ImageModel.forward)
        assert call(patch, "predict", "one", data, "--flip") == 2
    said = capfd.readouterr()
    assert "does not call its forward for what it says: leave out --flip" in said.err and not said.out
    config.write_text(yaml.safe_dump(settings | {"data": {**settings["data"], "flip": 0}}))
    for command in (["evaluate", "one"], ["predict", "one", data, "--out", "new.csv"]):
        assert call(monkeypatch, *command, "--flip") == 2
        said = capfd.readouterr().err.strip()
        assert "the run was trained with data.flip 0" in said and len(said.splitlines()) == 1
    assert not Path("new.csv").exists()


def test_numbers_are_averaged_and_features_have_no_mirror_image(tmp_path: Path) -> None:
    from lightning_shards.errors import InputError
    from lightning_shards.train.mirror import look_twice

    model = ImageModel(["shade"], task="regression", backbone="small_cnn", image_size=16).eval()
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    config = {"trained_on": {"fields": None}, "data": {"flip": 0.5}}
    with torch.inference_mode():
        wanted = (model(images) + model(images.flip(-1))) / 2
        mirrored = look_twice(model, config)
        assert torch.allclose(model.scores(images), wanted, atol=1e-6) and mirrored.calls == 1
    head = ImageModel(["a", "b"], backbone="linear", fields={"features": [8]})
    with pytest.raises(InputError, match="no mirror image"):
        look_twice(head, config)
