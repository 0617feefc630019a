"""Networks of torchvision and timm, and weights to start from: published ones, checkpoints and files of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
import yaml
from lightning_shards.errors import InputError
from lightning_shards.train.trained_model import load_model
from lightning_shards.vision import timm_models
from lightning_shards.vision.weights import find_weights, image_size_of
from safetensors.torch import save_file
from team import backbones
from team.model import ImageModel

from .test_train import project, start  # noqa: F401  (`project` is a fixture)

TARGETS = ["a", "b", "c"]
HALF = [0.5, 0.5, 0.5]


def model(**settings: Any) -> ImageModel:
    return ImageModel(**{"targets": TARGETS, "image_size": 32, **settings})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State dicts as torchvision and timm publish them, with random numbers."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    for name in ("resnet18", "resnet34", "googlenet", "efficientnet_v2_s"):
        extra = {"init_weights": False} if name == "googlenet" else {}
        torch.save(torchvision.models.get_model(name, **extra).state_dict(), folder / f"{name}.pth")
    for name in ("resnet10t", "vit_tiny_patch16_224"):
        save_file(timm.create_model(name).state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "file", "mean", "size"),
    [
        ("resnet18", "resnet18.pth", [0.485, 0.456, 0.406], 224),
        ("efficientnet_v2_s", "efficientnet_v2_s.pth", [0.485, 0.456, 0.406], 384),
        ("googlenet", "googlenet.pth", HALF, 224),
        ("timm/resnet10t", "resnet10t.safetensors", [0.485, 0.456, 0.406], 176),
        ("timm/vit_tiny_patch16_224", "vit_tiny_patch16_224.safetensors", HALF, 224),
    ],
)
def test_files_of_published_weights(files: Path, name: str, file: str, mean: list[float], size: int) -> None:
    """They bring mean and size; the last layer is for other classes; a tiny image gets the stem that they know."""
    net = model(backbone=name, weights=str(files / file))
    known = net.hparams["pretrained"]
    assert known["mean"] == mean and known["image_size"] == size
    assert net.mean.flatten().tolist() == pytest.approx([255 * m for m in mean])
    assert f"trained with images of {size} pixels, data.image_size is 32" in net.note and "random weights" in net.note
    state = torch.load(files / file) if file.endswith("pth") else None
    if state:
        own = net.backbone.state_dict()
        assert all(torch.equal(own[k], v) for k, v in state.items() if k in own and not k.startswith(("fc", "class")))


def test_the_wide_small_network_is_larger_where_a_convolution_is_cheap() -> None:
    """In its later stages, whose maps are small; it is never asked for other images than the narrow one."""
    narrow, wide = (backbones.build(name, 10, 28) for name in ("small_cnn", "small_cnn_wide"))
    sizes = [sum(weight.numel() for weight in net.parameters()) for net in (narrow, wide)]
    assert sizes == [288_746, 1_083_370]
    assert all(wide(torch.zeros(2, 3, side, side)).shape == (2, 10) for side in (8, 20, 28))


def test_the_size_that_weights_were_trained_at(files: Path) -> None:
    """What `embed` and a training take where they are given none."""
    for name, size in (("resnet18", 224), ("efficientnet_v2_s", 384), ("timm/resnet10t", 176), ("small_cnn", 224)):
        assert image_size_of(name, "imagenet") == size
    assert image_size_of("efficientnet_v2_s") == image_size_of("efficientnet_v2_s", str(files / "nowhere")) == 224


@pytest.mark.usefixtures("project")
def test_a_training_takes_the_size_of_its_weights_where_it_is_given_none(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, files: Path
) -> None:
    """`data.image_size null`: of published weights, of a run's, of what a person says of them; 224 without any."""

    def size(run: str, *given: str) -> int:
        arguments = ["--run", run, "--data.image_size", "null", "--data.fraction", "0.1", "--trainer.max_epochs", "1"]
        assert start(monkeypatch, *arguments, *given) == 0
        return int(yaml.safe_load(Path("runs", run, "config.yaml").read_text())["data"]["image_size"])

    of = ["--model.backbone", "timm/resnet10t", "--model.weights"]
    assert size("published", *of, str(files / "resnet10t.safetensors")) == 176
    assert "data.image_size is" not in capfd.readouterr().out, "nothing to say where the sizes agree"
    assert load_model("published", ImageModel).hparams["image_size"] == 176
    assert size("told", *of, str(files / "resnet10t.safetensors"), "--model.pretrained", "{image_size: 48}") == 48
    assert size("on", *of, "runs/told/checkpoints/best.ckpt") == 48
    assert size("random") == 224
    assert start(monkeypatch, "--resume", "told", "--data.image_size", "null", config=None) == 0
    assert load_model("told", ImageModel).hparams["image_size"] == 48, "the same over a resume"
    capfd.readouterr()
    wrong = ["--run", "wrong", "--data.image_size", "null", "--model.pretrained", "{image_size: 0}"]
    assert start(monkeypatch, *wrong) == 2 and not Path("runs/wrong").exists()
    (said,) = capfd.readouterr().err.splitlines()
    assert "a number of pixels" in said, said


def test_positions_are_interpolated_for_another_size(files: Path) -> None:
    for size in (224, 64):
        net = model(backbone="timm/vit_tiny_patch16_224", weights=str(files / "vit_tiny_patch16_224.safetensors"),
                    image_size=size)  # fmt: skip
        assert "pos_embed" not in net.note and net.backbone.get_parameter("pos_embed").shape[1] == (size // 16) ** 2 + 1


def test_positions_of_an_own_run_are_interpolated_for_another_size(tmp_path: Path) -> None:
    for name, positions in (("vit_b_16", "encoder.pos_embedding"), ("timm/vit_tiny_patch16_224", "pos_embed")):
        before = model(backbone=name, image_size=64)
        file = tmp_path / "own.ckpt"
        kept = dict(before.hparams) | {"targets": [*TARGETS, "d"]}
        torch.save({"state_dict": before.state_dict(), "hyper_parameters": kept}, file)
        after = model(backbone=name, image_size=96, weights=str(file))
        assert positions not in after.note
        old, new = (net.backbone.get_parameter(positions) for net in (before, after))
        assert new.shape[1] == 6**2 + 1 and torch.equal(new[:, 0], old[:, 0])
        assert new[:, 1].sub(old[:, 1]).norm() < 0.7 * old[:, 1].norm()


@pytest.mark.parametrize(
    ("name", "weights", "sentences"),
    [
        ("resnet34", "resnet18.pth", ("80 are missing (layer1.2.conv1.weight,", "another backbone, resnet18")),
        ("resnet18", "resnet34.pth", ("are not the network's", "another backbone, resnet34")),
        ("resnet50", "resnet18.pth", ("are of another shape", "another backbone, resnet18")),
        ("timm/resnet18", "resnet10t.safetensors", ("are missing", "another backbone, timm/resnet10t")),
        ("resnet18", "nowhere.pth", ("there is no file",)),
        ("resnet18", __file__, ("is no checkpoint",)),
        ("timm/resnet18d0", None, ("timm/resnet18d",)),
        ("timm/resnet18.a1", None, ("a1_in1k",)),
        ("convnext_tini", None, ("convnext_tiny",)),
    ],
)
def test_what_does_not_fit_is_one_sentence(files: Path, name: str, weights: str | None, sentences: Any) -> None:
    with pytest.raises(InputError) as error:
        model(backbone=name, weights=weights and str(files / weights))
    assert all(part in str(error.value) for part in sentences) and "\n" not in str(error.value), error.value


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": {"a": Bad()}}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="no checkpoint"):
        model(backbone="resnet18", weights=str(tmp_path / "w.pth"))
    assert not (tmp_path / "ran").exists()


def test_timm_without_a_network_says_which_file_to_get(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        model(backbone="timm/resnet10t", weights="imagenet")
    for part in ("model.safetensors", "https://huggingface.co/timm/resnet10t.c3_in1k", "--model.weights FILE"):
        assert part in str(error.value)
    bare = next(name for name in timm.list_models() if not timm.list_models(f"{name}.*", pretrained=True))
    with pytest.raises(InputError, match="has no published weights"):
        find_weights(f"timm/{bare}", "imagenet")


def test_torchvision_without_a_network_says_which_file_to_put_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: Path
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    said = rf"cannot fetch http.*resnet18-.*put that file into {tmp_path}.*FILE"
    with pytest.raises(InputError, match=said):
        model(backbone="resnet18", weights="imagenet")
    file = Path(torchvision.models.get_model_weights("resnet18").DEFAULT.url).name
    for damaged in (b"", b"<html>log in first</html>", (files / "resnet18.pth").read_bytes()[:100_000]):
        (tmp_path / "hub/checkpoints" / file).write_bytes(damaged)
        with pytest.raises(InputError, match=said) as error:
            model(backbone="resnet18", weights="imagenet")
        assert "\n" not in str(error.value)


def test_timm_from_its_hub(files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the hub's folder on this machine, laid out as the hub's client does."""
    import huggingface_hub.constants

    repo = tmp_path / "models--timm--resnet10t.c3_in1k"
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc" / "model.safetensors").write_bytes((files / "resnet10t.safetensors").read_bytes())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("timm.models._hub.get_cache_dir", lambda: str(tmp_path), raising=False)
    net = model(backbone="timm/resnet10t", weights="imagenet", image_size=176)
    given = model(backbone="timm/resnet10t", weights=str(files / "resnet10t.safetensors"), image_size=176)
    assert net.note == "random weights begin fc.weight, fc.bias"
    taken, wanted = net.backbone.state_dict(), given.backbone.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in taken.items() if not name.startswith("fc"))


def test_without_timm_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="uv sync --extra timm"):
        timm_models.build("timm/resnet10t", 3, 64)


def test_timm_is_imported_only_where_it_is_named() -> None:
    code = "import sys, team.model, lightning_shards.train, lightning_shards.train.cli; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("project")
def test_a_run_carries_on_what_its_weights_expect(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, files: Path, tmp_path: Path
) -> None:
    """Over a resume, into a run that starts from its weights, and into what is made of them; a large stem, too."""
    given = ["--model.backbone", "resnet18", "--model.weights", str(files / "resnet18.pth")]
    given += ["--model.pretrained", yaml.safe_dump({"mean": HALF}, default_flow_style=True).strip()]
    assert start(monkeypatch, "--run", "a", *given, "--trainer.max_epochs", "1") == 0
    assert "the weights were trained with images of 224 pixels, data.image_size is 16" in capfd.readouterr().out
    for name in ("a", "b"):
        net = load_model(name, ImageModel)
        assert net.mean.flatten().tolist() == pytest.approx([127.5] * 3) and net.std[0, 0] == pytest.approx(255 * 0.229)
        assert net.backbone.conv1.stride == (2, 2), "the stem that was published"
        if name == "a":
            assert start(monkeypatch, "--resume", "a", "--trainer.max_epochs", "2", config=None) == 0
            best = ["--model.backbone", "resnet18", "--model.weights", "runs/a/checkpoints/best.ckpt"]
            capfd.readouterr()
            assert start(monkeypatch, "--run", "b", *best, "--trainer.max_epochs", "1") == 0
            assert "the weights were trained" not in capfd.readouterr().out
    before = sorted(Path("runs").iterdir())
    capfd.readouterr()
    of_another = ["--model.backbone", "resnet18", "--model.weights", str(files / "resnet34.pth")]
    assert start(monkeypatch, "--run", "c", *of_another) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert "resnet34" in said, said
    assert sorted(Path("runs").iterdir()) == before, "nothing is written"


def test_a_network_of_timm_is_exported(tmp_path: Path) -> None:
    net = model(backbone="timm/convnext_atto", gradient_checkpointing=True, drop_path=0.1, image_size=64).eval()
    program = torch.export.export(net, (torch.zeros(2, 3, 64, 64, dtype=torch.uint8),))
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.allclose(program.module()(images), net(images), atol=1e-5)
    assert net.features(images).ndim == 2
    assert isinstance(backbones.build("timm/convnext_atto", 2, 64), torch.nn.Module)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mean": [0.5, 0.5]}, "three numbers each"),
        ({"std": [0.5, 0.0, 0.5]}, "std above 0"),
        ({"std": [0.5, float("nan"), 0.5]}, "std above 0"),
        ({"image_size": 0}, "a number of pixels"),
        ({"image_size": float("inf")}, "a number of pixels"),
        ({"means": HALF}, "model.pretrained has no means"),
    ],
)
def test_what_weights_cannot_expect_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        model(backbone="small_cnn", pretrained=given)
