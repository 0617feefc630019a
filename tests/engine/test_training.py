"""Model, objectives, backbones and logs, each by itself."""

from __future__ import annotations

import copy
import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning_shards
import pytest
import torch
from lightning_shards.data.batch import Batch
from lightning_shards.data.dataset import TARGET_FIELDS
from lightning_shards.errors import InputError
from lightning_shards.train.metrics_file import MetricsFile
from lightning_shards.vision import torchvision_models
from team import backbones
from team.model import ImageModel, schedule
from team.objectives import OBJECTIVES

TARGETS = ["a", "b", "c"]
NEEDS_VALUES = ("vit_b_16", "regnet_y_400mf")  # compute with tensors when they are made: not on the meta device
PACKAGE = Path(lightning_shards.__file__).parent


def batch(rows: int = 6, valid: list[bool] | None = None, task: str = "single_label") -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (rows, 3, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.arange(rows) % 3
    targets = labels if task == "single_label" else torch.nn.functional.one_hot(labels, 3).float()
    masks = labels.to(torch.uint8)[:, None, None].expand(rows, 28, 28).clone()
    boxes = [{"boxes": torch.tensor([[4.0, 2, 20, 24]]), "labels": label[None]} for label in labels]
    further: dict[str, Any] = {"segmentation": {"mask": masks}, "detection": {"boxes": boxes}}
    return Batch(
        {"image": images, **further.get(task, {"target": targets})},
        torch.arange(rows),
        torch.arange(rows),
        torch.tensor(valid or [True] * rows),
    )


def model(task: str = "single_label", **changes: object) -> ImageModel:
    torch.manual_seed(0)
    backbone = {"segmentation": "small_unet", "detection": "small_detector"}.get(task, "small_cnn")
    return ImageModel(TARGETS, task, image_size=28, backbone=backbone, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", list(OBJECTIVES))
def test_rows_that_are_not_valid_give_no_gradient_and_count_nowhere(task: str) -> None:
    net = model(task).eval()  # batch statistics are not what is asked here
    masked = batch(6, [True, False, True, True, False, True], task)
    name = TARGET_FIELDS.get(task, "target")
    garbage = replace(masked, fields={**masked.fields, name: copy.deepcopy(masked[name])})
    for row in (1, 4):
        for values in garbage[name][row].values() if task == "detection" else [garbage[name][row]]:
            values += 1
    gradients = []
    for rows in (masked, garbage):
        net.zero_grad()
        loss = net.losses(net(rows["image"]), rows).sum() / 6
        loss.backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    few = masked.rows(masked.valid)
    assert torch.allclose(net.losses(net(few["image"]), few).sum() / 6, loss.detach(), atol=1e-6)
    results = []
    for rows in (garbage, few):
        outputs = net(rows["image"]).detach()
        net.measures.update(net.losses(outputs, rows).detach(), outputs, net.objective.target_of(rows), rows.valid)
        results.append({k: v.tolist() for k, v in net.measures.compute().items()})
        net.measures.reset()
    for found in results[0]:
        assert results[0][found] == pytest.approx(results[1][found], nan_ok=True), found


def test_metrics_agree_with_counting_by_hand() -> None:
    single = OBJECTIVES["single_label"](3).metrics()
    logits = torch.tensor([[2.0, 1, 0], [0, 2, 1], [0, 1, 2], [3, 1, 0]])
    single.update(logits, torch.tensor([0, 1, 1, 0]))
    assert single.compute()["accuracy"].item() == 0.75
    numbers = OBJECTIVES["regression"](1).metrics()
    numbers.update(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.5], [4.0]]))
    values = numbers.compute()
    assert values["mean_absolute_error"].item() == 1.25
    assert values["root_mean_squared_error"].item() == pytest.approx(math.sqrt((0.25 + 4) / 2))
    many = OBJECTIVES["multi_label"](2).metrics()
    many.update(torch.tensor([[4.0, -4], [-4, 4]]), torch.tensor([[1.0, 0], [0, 1]]))
    assert many.compute()["average_precision"].item() == 1 == many.compute()["auroc"].item()


def test_label_smoothing_is_torchs() -> None:
    net, rows = model(label_smoothing=0.1), batch()
    outputs = net(rows["image"])
    expected = torch.nn.functional.cross_entropy(outputs, rows["target"], label_smoothing=0.1)
    assert torch.allclose(net.losses(outputs, rows).mean(), expected)


def test_the_schedule_rises_and_falls() -> None:
    assert schedule(0, 0.1) == 0 and schedule(0.05, 0.1) == 0.5 and schedule(0.1, 0.1) == 1
    assert schedule(0.55, 0.1) == pytest.approx(0.5) and schedule(1, 0.1) == pytest.approx(0, abs=1e-12)
    assert schedule(0, 0) == 1 and schedule(1.01, 0) == pytest.approx(0, abs=1e-12) and schedule(0.5, 1) == 0.5
    values = [schedule(i / 100, 0.2) for i in range(101)]
    assert values[:21] == sorted(values[:21]) and values[20:] == sorted(values[20:], reverse=True)


def test_norms_and_biases_are_not_decayed() -> None:
    net = model()
    net._trainer = type("Trainer", (), {"precision": "32-true", "gradient_clip_val": None})()  # type: ignore[assignment]
    decayed, plain = net.configure_optimizers().param_groups
    assert decayed["weight_decay"] > 0 == plain["weight_decay"]
    assert {p.ndim for p in plain["params"]} == {1} and all(p.ndim > 1 for p in decayed["params"])
    assert sum(len(g["params"]) for g in (decayed, plain)) == len(list(net.parameters()))


@pytest.mark.parametrize(
    "name", ["small_cnn", "resnet18", "mobilenet_v3_small", "convnext_tiny", "vit_b_16", "swin_v2_t", "vgg11_bn"]
)
@pytest.mark.parametrize("size", [28, 32, 64, 224])
def test_backbones_take_small_and_large_images(name: str, size: int) -> None:
    if (name, size) in {("vgg11_bn", 28)}:
        with torch.device("meta"), pytest.raises(RuntimeError):
            backbones.build(name, 5, size)(torch.zeros(2, 3, size, size))
        return
    with torch.device("cpu" if name in NEEDS_VALUES else "meta"):
        net = backbones.build(name, 5, size).eval()
        assert net(torch.zeros(2, 3, size, size)).shape == (2, 5)


def test_every_torchvision_classifier_is_known_and_builds() -> None:
    known = torchvision_models.names()
    assert {"resnet50", "efficientnet_v2_s", "regnet_y_400mf", "maxvit_t", "inception_v3", "vit_h_14"} <= set(known)
    for name in ("alexnet", "densenet121", "efficientnet_b0", "googlenet", "maxvit_t", "mnasnet0_5", "regnet_y_400mf",
                 "shufflenet_v2_x0_5", "squeezenet1_1", "wide_resnet50_2"):  # fmt: skip
        with torch.device("cpu" if name in NEEDS_VALUES else "meta"):
            assert backbones.build(name, 4, 224).eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 4), name


def test_a_small_image_keeps_its_resolution_in_the_stem() -> None:
    with torch.device("meta"):
        small, large = backbones.build("resnet18", 2, 32), backbones.build("resnet18", 2, 224)
    assert small.conv1.stride == (1, 1) and isinstance(small.maxpool, torch.nn.Identity)  # type: ignore[union-attr]
    assert large.conv1.stride == (2, 2) and isinstance(large.maxpool, torch.nn.MaxPool2d)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backbone": "resnet19"}, "resnet18"),
        ({"backbone": "vit_b_16", "image_size": 100}, "96 would do"),
        ({"backbone": "vgg11_bn", "image_size": 28}, "cannot take"),
        ({"weights": "imagenet"}, "no published weights"),
        ({"weights": "nowhere.ckpt"}, "no file"),
        ({"weights": __file__}, "no checkpoint"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"mixup": -0.1}, "mixup"),
        ({"cutmix": 11.0}, "cutmix"),
        ({"erasing": 1.1}, "erasing"),
        ({"color_jitter": float("nan")}, "color_jitter"),
    ],
)
def test_bad_model_settings_are_one_sentence(changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        ImageModel(**{"targets": TARGETS, "image_size": 28, "backbone": "small_cnn", **changes})
    assert "\n" not in str(error.value)


def test_weights_are_taken_over_where_they_fit(tmp_path: Path) -> None:
    source = model()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.ckpt")
    torch.manual_seed(1)
    net = ImageModel(["x", "y"], image_size=28, backbone="small_cnn", weights=str(tmp_path / "w.ckpt"))
    taken, given = net.backbone.state_dict(), source.backbone.state_dict()
    assert all(torch.equal(taken[k], given[k]) for k in given if not k.startswith("head"))
    assert taken["head.weight"].shape == (2, 128)
    with pytest.raises(InputError, match="another backbone"):
        ImageModel(TARGETS, image_size=28, backbone="resnet18", weights=str(tmp_path / "w.ckpt"))


def test_metrics_file_takes_new_columns_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    first = MetricsFile(path)
    first.log_metrics({"train/loss": 2.0}, 1)
    first.save()
    first.log_metrics({"train/loss": 1.0}, 2)
    first.log_metrics({"val/accuracy": 0.5}, 2)
    first.save()
    second = MetricsFile(path)
    second.log_metrics({"val/accuracy": 0.7, "train/loss": 0.5}, 3)
    second.finalize("success")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"step": "1", "train/loss": "2.0", "val/accuracy": ""},
        {"step": "2", "train/loss": "1.0", "val/accuracy": "0.5"},
        {"step": "3", "train/loss": "0.5", "val/accuracy": "0.7"},
    ]
