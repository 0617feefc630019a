"""Training a part of a network: which blocks, from when on, how fast; the same after a kill and on several ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from lightning_shards.errors import InputError
from lightning_shards.vision import depth
from lightning_shards.vision.blocks import blocks
from lightning_shards.vision.fine_tuning import FineTuning
from team.model import ImageModel

from . import proofs, starts
from .recorder import losses, rows, weights
from .test_ranks import Trainings, close, same
from .test_train import project, start  # noqa: F401  (`project` is a fixture)

TARGETS = ["a", "b", "c"]
THAWS = {"backbone": "small_cnn", "learning_rate": 0.01, "trained_blocks": 2, "thaw_after": 0.5}
NEEDS_VALUES = ("regnet", "maxvit")  # compute with values when they are made


@pytest.fixture(scope="module")
def context() -> Any:
    return starts.server()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_what_thaws_is_exact_after_kills(context: Any, tmp_path: Path, dataset: Path, optimizer: str) -> None:
    """Bit by bit, with an average of the weights: killed before the thaw, at it, and behind it."""
    trainings = Trainings(context, tmp_path, dataset, model={**THAWS, "optimizer": optimizer})
    often = ["--ema_decay", "0.9", "--save_every_minutes", "0.000001"]
    whole = trainings.run("whole", *often)
    for strike in (("step", 3, 9), ("step", 5, 9), ("step", 2, 9), ("step", 2, 15)):
        trainings.run("cut", *often, strikes=[starts.Strike(*strike)])
    cut = trainings.run("cut", *often)
    assert [row["trained"] for row in rows(whole)] == [8] * 8 + [20] * 8, "two blocks and the head, then all"
    for key in ("state_dict", "current_model_state"):
        a, b = weights(whole, key=key), weights(cut, key=key)
        assert all(torch.equal(value, b[name]) for name, value in a.items()), key


@pytest.mark.usefixtures("project")
def test_lamb_is_refused_where_parts_thaw(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """timm's counts the steps of all parameters of a group together."""
    flags = [part for name, value in THAWS.items() for part in (f"--model.{name}", str(value))]
    assert start(monkeypatch, "--run", "a", *flags, "--model.optimizer", "lamb") == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert "model.thaw_after" in said and not Path("runs/a").exists()
    assert start(monkeypatch, "--run", "a", *flags, "--model.optimizer", "lamb", "--model.thaw_after", "1") == 0


@pytest.mark.usefixtures("project")
def test_a_thaw_of_nothing_is_refused_where_a_training_begins(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    thaw = ["--model.thaw_after", "0.5", "--trainer.max_epochs", "1"]
    assert start(monkeypatch, "--run", "a", *thaw) == 2
    assert "model.thaw_after ends what model.trained_blocks begins" in capfd.readouterr().err
    assert start(monkeypatch, "--run", "a", *thaw, "--model.trained_blocks", "0") == 0
    going_on = ["--model.trained_blocks", "null", "--trainer.max_epochs", "2"]
    assert start(monkeypatch, "--resume", "a", *going_on, config=None) == 0, "everything is trained from here on"


def test_frozen_layers_keep_weights_and_statistics(context: Any, tmp_path: Path, dataset: Path) -> None:
    """While they are frozen, on three ranks too, whose running statistics are put together in each checkpoint."""
    trainings = Trainings(context, tmp_path, dataset, model=THAWS | {"thaw_after": 1.0, "trained_blocks": 1})
    for name, devices in (("one", 1), ("three", 3)):
        run = trainings.run(name, "--trainer.val_check_interval", "0.5", devices=devices, micro=4)
        torch.manual_seed(0)
        after = weights(run)
        begun = {
            k: v for k, v in after.items() if k.startswith(tuple(f"backbone.features.{n}." for n in (1, 4, 8, 11, 15)))
        }
        kept = {k: v for k, v in begun.items() if "running" in k}
        assert kept and all(torch.equal(v, torch.full_like(v, float("var" in k))) for k, v in kept.items())
        assert all(int(v) == 0 for k, v in begun.items() if k.endswith("num_batches_tracked"))
        assert (after["backbone.features.18.running_mean"] != 0).any(), "what is trained takes statistics"


def test_ranks_train_what_thaws_alike(context: Any, tmp_path: Path, dataset: Path) -> None:
    """Gradients of what thaws are sent, too: weights stay equal over the ranks, and are those of one."""
    recorder = [{"class_path": "engine.recorder.Recorder", "init_args": {"digests": True}}]
    data = {"path": str(dataset), "global_batch_size": 16, "image_size": 8}
    trainings = Trainings(context, tmp_path, dataset, model=THAWS | {"optimizer": "sgd"}, data=data)
    given = ["--trainer.callbacks", str(recorder).replace("'", '"').replace("True", "true")]
    one = trainings.run("one", *given, micro=4)
    for devices, micro in ((2, 4), (4, 4)):  # gradients accumulate, or do not
        other = trainings.run(f"{devices}", *given, devices=devices, micro=micro)
        alike = [
            {tuple(row["place"]): row["digest"] for row in map(json.loads, path.read_text().splitlines())}
            for path in sorted(other.glob("steps-*.jsonl"))
        ]
        assert len(alike) == devices and len(alike[0]) == 12
        assert all(one_rank == alike[0] for one_rank in alike), "after each step, bit by bit"
        assert close(losses(one), losses(other))
        running = {name for name in weights(one) if "running" in name or "tracked" in name}
        running.add("calibration.temperature")  # fitted by a validation with these statistics
        assert set(same(weights(one), weights(other))) <= running
        trained = [row["trained"] for row in rows(other) if row["place"][0] == 1]
        assert set(trained) == {20}
        assert len(weights(other)) == len(weights(one)) and proofs.summary(other)["status"] == "done"


@pytest.mark.usefixtures("project")
def test_what_is_trained_may_change_on_a_resume(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    given = ("--model.optimizer", "sgd", "--model.trained_blocks", "1")
    assert start(monkeypatch, "--run", "a", *given, "--trainer.max_epochs", "1") == 0
    before = weights(Path("runs/a"))
    changed = ["--model.trained_blocks", "3", "--model.drop_path", "0.0", "--trainer.max_epochs", "2"]
    assert start(monkeypatch, "--resume", "a", *changed, config=None) == 0
    after = weights(Path("runs/a"))
    moved = [key for key in before if key.endswith("weight") and not torch.equal(before[key], after[key])]
    assert len(moved) == 3 * 2 + 1, "convolutions and norms of three blocks, and the head"
    capfd.readouterr()
    assert start(monkeypatch, "--resume", "a", "--model.layer_decay", "0.5", config=None) == 2
    assert "model.layer_decay cannot change from or to 1" in capfd.readouterr().err
    assert start(monkeypatch, "--resume", "a", "--model.pretrained", '{"mean": [0.5, 0.5, 0.5]}', config=None) == 2
    assert "model.pretrained cannot change on a resume" in capfd.readouterr().err


@pytest.mark.usefixtures("project")
def test_the_decay_takes_effect_on_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    def scales() -> list[float]:
        content = torch.load("runs/a/checkpoints/last.ckpt", weights_only=True)
        return sorted({group["lr_scale"] for group in content["optimizer_states"][0]["param_groups"]})

    assert start(monkeypatch, "--run", "a", "--model.layer_decay", "0.5", "--trainer.max_epochs", "1") == 0
    assert scales() == [0.5**n for n in reversed(range(7))]
    changed = ("--model.layer_decay", "0.25", "--trainer.max_epochs", "2")
    assert start(monkeypatch, "--resume", "a", *changed, config=None) == 0
    assert scales() == [0.25**n for n in reversed(range(7))]


FAMILIES = {  # network -> blocks in front of the head
    "alexnet": 7, "convnext_tiny": 19, "densenet121": 62, "efficientnet_b0": 18, "efficientnet_v2_s": 42,
    "googlenet": 12, "inception_v3": 16, "maxvit_t": 14, "mnasnet0_5": 18, "mobilenet_v2": 19,
    "mobilenet_v3_small": 14, "regnet_y_400mf": 17, "resnet18": 9, "resnext50_32x4d": 17, "shufflenet_v2_x0_5": 18,
    "squeezenet1_1": 9, "swin_t": 16, "swin_v2_t": 16, "vgg11_bn": 10, "vit_b_16": 13, "wide_resnet50_2": 17,
    "timm/resnet10t": 5, "timm/vit_tiny_patch16_224": 13, "timm/convnext_atto": 13, "timm/regnety_002": 14,
    "timm/efficientnet_b0": 17, "timm/mixer_s16_224": 9, "timm/swin_tiny_patch4_window7_224": 13,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_blocks(name: str) -> None:
    """All parameters, each once; the head is the layer that makes the outputs, and norms are with their layers."""
    from lightning_shards.vision import networks

    with torch.device("cpu" if name.startswith(NEEDS_VALUES) else "meta"):
        network = networks.build(name, 5, 224)
    parts = blocks(network)
    assert sorted(key for part in parts for key in part) == sorted(key for key, _ in network.named_parameters())
    assert len(parts) - 1 == FAMILIES[name]
    named = dict(network.named_parameters())
    assert 5 in {named[key].shape[0] for key in parts[-1]} and sum(named[key].ndim > 1 for key in parts[-1]) == 1
    assert all(any(named[key].ndim > 1 for key in part) for part in parts)


def test_the_rate_falls_from_the_head_to_the_stem() -> None:
    network = torchvision.models.resnet18(num_classes=3)
    tuning = FineTuning(network, "resnet18", None, 1.0, 0.5)
    scale = {id(p): group["lr_scale"] for group in tuning.groups(network, 0.1) for p in group["params"]}
    assert len(scale) == len(list(network.parameters()))
    for path, depth_ in (("fc", 0), ("layer4.1", 1), ("layer4.0", 2), ("layer1.0", 8), ("conv1", 9), ("bn1", 9)):
        assert {scale[id(p)] for p in network.get_submodule(path).parameters()} == {0.5**depth_}
    assert all(g["weight_decay"] == 0.1 * (g["params"][0].ndim > 1) for g in tuning.groups(network, 0.1))


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "timm/resnet10t"])
def test_blocks_that_are_computed_twice_give_the_same(name: str) -> None:
    """Losses, gradients and running statistics, bit by bit."""
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        size = 32
        model = ImageModel(TARGETS, image_size=size, backbone=name, gradient_checkpointing=again).train()
        torch.manual_seed(1)
        model(torch.rand(2, 3, size, size) * 255).square().sum().backward()
        found.append(
            {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            | dict(model.backbone.named_buffers())
        )
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_blocks_are_left_out_more_often_towards_the_head() -> None:
    network = torchvision.models.efficientnet_b0()
    depth.drop_paths(network, "efficientnet_b0", 0.3)
    rates = [m.p for m in network.modules() if isinstance(m, torchvision.ops.StochasticDepth)]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.3) and rates == sorted(rates)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trained_blocks": 7}, "small_cnn has 6 blocks in front of its head: give 0 to 6"),
        ({"trained_blocks": -1}, "give 0 to 6"),
        ({"thaw_after": 1.5}, "thaw_after is 1.5, it must be between 0 and 1"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0, it must be above 0"),
        ({"drop_path": 0.1}, "small_cnn has no stochastic depth"),
        ({"drop_path": 1.0, "backbone": "convnext_tiny"}, "drop_path is 1.0, it must be"),
        ({"gradient_checkpointing": True}, "goes by blocks, and small_cnn has none"),
        ({"backbone": "linear", "fields": {"features": [8]}, "trained_blocks": 0}, "linear has none"),
        ({"backbone": "mlp", "fields": {"features": [8]}, "layer_decay": 0.5}, "mlp has none"),
        ({"backbone": "timm/vgg11", "drop_path": 0.1}, "timm/vgg11 has no stochastic depth"),
    ],
)
def test_what_a_network_cannot_do_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        ImageModel(**{"targets": TARGETS, "image_size": 28, "backbone": "small_cnn", **changes})
    assert "\n" not in str(error.value)
