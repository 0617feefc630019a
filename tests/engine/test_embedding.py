"""`embed`, and trainings that read what it made: the network's own values, once for each image, whatever was killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning_shards.data import Crop, Dataset, ShardLoader
from lightning_shards.data.array_file import IN_TAR, MISSING
from lightning_shards.data.batch import Batch
from lightning_shards.data.embedding import Embedding
from lightning_shards.data.fields import dataset_fields
from lightning_shards.data.order import WindowedOrder
from lightning_shards.data.shortened import Shortened
from lightning_shards.errors import InputError
from lightning_shards.inference.embed import Embedder, Look
from lightning_shards.inference.embedding_writer import unfinished
from lightning_shards.train import knn
from lightning_shards.train.trained_model import load_model
from lightning_shards.vision import last_layer
from team import backbones
from team.augment import Mix
from team.model import ImageModel
from team.objectives import OBJECTIVES

from .conftest import write_dataset
from .in_place import PACKAGE, PROJECT
from .test_inference import call
from .test_train import SMALL, start, summary

CENTRE = {"shuffle": False, "crop": Crop(16), "workers": 1, "max_skipped_fraction": 0.5}
LACKING = [3, 50]  # damaged images of the training set


@pytest.fixture(scope="module")
def embedded(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its dataset of 96 images, and features and scores of the run's weights."""
    folder = tmp_path_factory.mktemp("embedded") / "project"
    shutil.copytree(trained, folder)
    settings = {**SMALL, "data": {"path": "colours", "global_batch_size": 8, "max_skipped_fraction": 0.1}}
    head = {"backbone": "linear", "learning_rate": 0.01}
    (folder / "small.yaml").write_text(yaml.safe_dump(settings | {"model": head}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call(patch, "embed", "first", "colours", "--batch-size", 7) == 0
        assert call(patch, "embed", "first", "colours", "--scores") == 0
    return folder


@pytest.fixture
def project(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(embedded, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@contextmanager
def opened(**settings: Any) -> Iterator[ShardLoader]:
    loader = ShardLoader("colours", 8, **settings)
    yield loader
    loader.close()


def rows(name: str, **settings: Any) -> dict[int, torch.Tensor]:
    """The values of a field, by id, of a pass; of samples that are valid."""
    with opened(**{**CENTRE, **settings}) as loader:
        return {
            int(number): values.clone()
            for batch in loader
            for number, values, valid in zip(batch.ids, batch[name], batch.valid, strict=True)
            if valid
        }


def test_features_and_scores_are_what_the_network_makes_of_the_centre(embedded: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(embedded)
    model = load_model("first", ImageModel)
    features, scores, images = (
        rows("features", features="features"),
        rows("teacher", teacher="teacher"),
        rows("image"),
    )
    assert sorted(features) == sorted(scores) == sorted(images) == sorted(set(range(96)) - set(LACKING))
    for number, image in images.items():
        with torch.inference_mode():
            torch.testing.assert_close(features[number].float(), model.features(image[None])[0], rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(scores[number].float(), model.scores(image[None])[0], rtol=2e-3, atol=2e-3)
    assert rows("target", features="features") == rows("target")


def test_numpy_alone_reads_an_array(embedded: Path) -> None:
    files = sorted((embedded / "colours/train").glob("*.features-*.npy"))
    records = np.concatenate([np.load(file, mmap_mode="r") for file in files])
    assert records.dtype.names == ("values", "target", "there")
    assert records["values"].shape == (96, 1, 128) and records["values"].dtype == np.float16
    assert np.flatnonzero(records["there"] == IN_TAR).tolist() == LACKING


def test_a_head_learns_of_them_and_the_tars_are_not_read(project: Path, monkeypatch: Any, capfd: Any) -> None:
    for file in (project / "colours").glob("*/*.tar.index"):
        file.unlink()
    assert start(monkeypatch, "--run", "head", "--data.features", "features", "--trainer.max_epochs", "6") == 0
    told = summary("head")
    assert told["metrics"]["test/accuracy"] > 0.9 and told["skipped"] == 2 * 6, told
    listed = [json.loads(line) for line in Path("runs/head/skipped/rank-0.jsonl").read_text().splitlines()]
    assert {line["id"] for line in listed} == set(LACKING)
    assert listed[0]["error"] == "could not be decoded when 'features' was embedded"
    made = sorted(file.name for file in (project / "colours/train").glob("*.tar.index"))
    assert made == ["000000.tar.index", "000002.tar.index"], "which name the samples that are skipped"
    assert call(monkeypatch, "evaluate", "head") == 0 and call(monkeypatch, "report", "head") == 0
    assert call(monkeypatch, "export", "head", "head.pt2") == 0
    capfd.readouterr()
    assert call(monkeypatch, "predict", "head", "colours") == 2
    assert "the model looks at features, and predict reads images alone" in capfd.readouterr().err


def records(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of unit length, float64 (N, F), and classes of what could be embedded."""
    files = sorted(Path(f"colours/{split}").glob("*.features-*.npy"))
    read = np.concatenate([np.load(file) for file in files])
    read = read[read["there"] != IN_TAR]
    features = read["values"][:, 0].astype(np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True), read["target"]


def by_neighbours(split: str, count: int = 20) -> float:
    """The accuracy of nearest neighbours, one row at a time."""
    (features, classes), (queries, wanted) = records("train"), records(split)
    right = 0
    for query, own in zip(queries, wanted, strict=True):
        near = features @ query
        best = near.argsort()[::-1][:count]
        votes = np.bincount(classes[best], np.exp(near[best] / 0.07), minlength=3)
        right += int(votes.argmax() == own)
    return right / len(queries)


def test_nearest_neighbours_stand_beside_the_head(project: Path, monkeypatch: Any, capfd: Any) -> None:
    features = ("--log.report", "true", "--data.features", "features")
    assert start(monkeypatch, "--run", "head", *features, "--trainer.max_epochs", "2") == 0
    told = summary("head")
    for split in ("val", "test"):
        assert told["metrics"][f"{split}/knn_accuracy"] == pytest.approx(by_neighbours(split), abs=1e-6)
    assert told["resolved"]["knn_samples"] == 96 and told["resolved"]["knn_drawn"] is False
    assert "the 20 nearest of all 96 training samples" in Path("runs/head/report.html").read_text()
    assert start(monkeypatch, "--resume", "head", "--trainer.max_epochs", "3", config=None) == 0
    assert summary("head")["metrics"]["test/knn_accuracy"] == told["metrics"]["test/knn_accuracy"]
    monkeypatch.setattr(knn, "MOST_ROWS", 40)
    monkeypatch.setattr(knn, "LEAST_ROWS", 1)
    monkeypatch.setattr(knn, "_AT_A_TIME", 100)
    assert start(monkeypatch, "--run", "few", *features, "--trainer.max_epochs", "1") == 0
    assert summary("few")["resolved"] | {"knn_samples": 40, "knn_drawn": True} == summary("few")["resolved"]
    assert "the 20 nearest of 40 training samples, drawn by the seed" in Path("runs/few/report.html").read_text()
    assert 0 < summary("few")["metrics"]["val/knn_accuracy"] <= 1
    balanced = ("--data.balance", "1.0", "--trainer.max_epochs", "1")
    monkeypatch.setattr(knn, "MOST_ROWS", 100)
    assert start(monkeypatch, "--run", "balanced", *features, *balanced) == 0
    assert summary("balanced")["resolved"]["knn_samples"] == 96, "each once, however often a training shows it"
    assert summary("balanced")["metrics"]["test/knn_accuracy"] == told["metrics"]["test/knn_accuracy"]
    of_images = ("--trainer.max_epochs", "1", "--model.backbone", "small_cnn", "--data.image_size", "16")
    assert start(monkeypatch, "--run", "images", *of_images) == 0
    assert not any("knn" in name for name in (*summary("images")["metrics"], *summary("images")["resolved"]))


def test_a_draw_is_the_seeds_and_of_the_samples_that_are_trained_on(monkeypatch: Any) -> None:
    monkeypatch.setattr(knn, "_READ", 16)
    order = WindowedOrder([17, 30, 9, 40], [1] * 4, seed=3)
    assert knn.drawn(order, 96, 0).tolist() == list(range(96))
    few = knn.drawn(order, 30, 5)
    assert few.tolist() == knn.drawn(order, 30, 5).tolist() != knn.drawn(order, 30, 6).tolist()
    assert len(set(few.tolist())) == 30 and few.tolist() == sorted(few)
    short = Shortened(order, 50)
    assert set(knn.drawn(short, 20, 0).tolist()) < set(order.ids(0, 0, 50).tolist())


def test_a_run_goes_on_with_the_features_that_it_began_with(project: Path, monkeypatch: Any, capfd: Any) -> None:
    short = ("--data.features", "features", "--trainer.max_epochs", "1")
    assert start(monkeypatch, "--run", "head", *short) == 0
    another = ("embed", "small_cnn", "colours", "--weights", "none", "--image-size", 16)
    assert call(monkeypatch, *another) == 2
    assert "has another embedding 'features'" in capfd.readouterr().err
    assert call(monkeypatch, *another, "--force") == 0
    assert len(list(Path("colours").glob("*/*.features-*.npy"))) == 6, "those of before are gone"
    capfd.readouterr()
    assert start(monkeypatch, "--resume", "head", "--trainer.max_epochs", "2") == 2
    assert "is not what this run began with" in capfd.readouterr().err
    assert call(monkeypatch, "evaluate", "head") == 2
    assert "was embedded by another network" in capfd.readouterr().err
    begun = ("--model.weights", "runs/head/checkpoints/best.ckpt")
    assert start(monkeypatch, "--run", "next", *short, *begun) == 2
    assert "of a run on features that another network made" in capfd.readouterr().err
    assert call(monkeypatch, "embed", "first", "colours", "--force") == 0
    assert start(monkeypatch, "--run", "next", *short, *begun) == 0


def test_a_pass_over_features_is_exact_on_any_ranks(embedded: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(embedded)
    settings = {"features": "features", "max_skipped_fraction": 0.5}
    with opened(**settings) as whole:
        wanted = [batch.ids.tolist() for batch in whole]
    with opened(**settings, workers=1) as first:
        seen = [batch.ids.tolist() for _, batch in zip(range(3), first, strict=False)]
        state = first.state_dict()
    for rank in (0, 1):
        with opened(**settings, workers=2, rank=rank, world_size=2) as half:
            half.load_state_dict(state)
            after = [batch.ids.tolist() for batch in half]
        assert after == wanted[len(seen) + rank :: 2][: len(after)] and len(after) == (len(wanted) - len(seen)) // 2


def test_views_are_random_crops_of_training_images_and_others_have_the_centre(project: Path, monkeypatch: Any) -> None:
    views = ("--views", 4, "--crop-ratio", 0.8, 1.2, "--batch-size", 10)
    assert call(monkeypatch, "embed", "first", "colours", "--name", "crops", *views) == 0
    told = (project / "colours/crops.embedding.json").read_text()
    assert '"ratio":[0.8,1.2]' in "".join(told.split())
    stored = np.load(next((project / "colours/train").glob("000000.tar.crops-*.npy")))["values"]
    assert stored.shape == (17, 4, 128) and not (stored[:, :1] == stored[:, 1:]).all()
    val = np.load(next((project / "colours/val").glob("*.crops-*.npy")))["values"]
    assert (val == np.load(next((project / "colours/val").glob("*.features-*.npy")))["values"]).all()
    assert call(monkeypatch, "embed", "first", "colours", "--name", "crops", *views, "--views", 2, "--force") == 0
    assert len(list(Path("colours").glob("*/*.crops-*.npy"))) == 6, "what has one view in both stays"
    assert start(monkeypatch, "--run", "two", "--data.features", "crops", "--trainer.max_epochs", "1") == 0
    assert call(monkeypatch, "embed", "first", "colours", "--name", "crops", *views, "--force") == 0
    chosen = []
    with (
        opened(features="crops", max_skipped_fraction=0.5) as one,
        opened(features="crops", max_skipped_fraction=0.5, workers=1) as other,
    ):
        for _ in range(6):
            for batch, same in zip(one, other, strict=True):
                assert (batch["features"] == same["features"]).all(), "whoever reads a sample, its view is the same"
                for number, values in zip(batch.ids.tolist(), batch["features"].numpy(), strict=True):
                    if number < 17 and number not in LACKING:
                        (view,) = np.flatnonzero((stored[number] == values).all(axis=1)).tolist()
                        chosen.append(view)
    assert set(chosen) == {0, 1, 2, 3}


def test_a_kill_loses_nothing_that_was_written(project: Path, monkeypatch: Any, capfd: Any) -> None:
    for file in (project / "colours").glob("*/*features*"):
        file.unlink()
    command = [sys.executable, "-m", PACKAGE, "embed", "first", "colours", "--batch-size", "4", "--json"]
    dataset = Dataset.open(Path("colours"))
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not (begun := list(Path("colours/train").glob("000001.tar.features-*.partial"))):
            assert process.poll() is None
        while not (np.memmap(begun[0])[-1 - 4096 :: -1] != 0).any() and process.poll() is None:
            pass
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    capfd.readouterr()
    assert call(monkeypatch, *command[3:]) == 0
    report = json.loads(capfd.readouterr().out)
    assert 0 < report["embedded"] < 96 + 2 * 60, report
    assert report["splits"]["train"] == {"samples": 96, "lacking": 2}
    found = Embedding.find(dataset, "features")
    assert found and not len(unfinished(found.plan(dataset, "train"), dataset.splits["train"], 0, 1))
    assert not list(Path("colours").glob("*/*.partial")) and MISSING == 0
    assert call(monkeypatch, *command[3:]) == 0
    assert json.loads(capfd.readouterr().out)["embedded"] == 0


@pytest.mark.parametrize("devices", [True, False], ids=["devices", "torchrun"])
def test_two_processes_share_the_shards(project: Path, devices: bool) -> None:
    before = rows("features", features="features")
    launcher = (
        ["--devices", "2"] if devices else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    )
    given = [PACKAGE, "embed", "first", "colours", "--name", "two", "--json"]
    command = [sys.executable, "-m", *given, *launcher] if devices else [sys.executable, *launcher, "-m", *given]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["splits"]["train"] == {"samples": 96, "lacking": 2} and told["embedded"] == 96 + 2 * 60
    after = rows("features", features="two")
    assert all(torch.allclose(after[number].float(), before[number].float(), atol=2e-3) for number in before)


def test_the_teacher_comes_beside_the_image_kept_decoded_or_not(embedded: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(embedded)
    settings = {"crop": Crop(16), "max_skipped_fraction": 0.5, "shuffle": True}
    alone = rows("image", **settings)
    for kept in (0, 1 << 30, 1 << 30):
        beside = rows("image", **settings, teacher="teacher", decoded_bytes=kept)
        assert sorted(beside) == sorted(alone) and all((beside[n] == alone[n]).all() for n in alone)
    for file in Path("colours/train").glob("*.decoded-*"):
        file.unlink()


def test_a_pupil_learns_what_its_teacher_says(project: Path, monkeypatch: Any) -> None:
    """Of mixed images, too; and it is measured and predicts as any other model."""
    learns = ["--data.teacher", "teacher", "--model.backbone", "small_cnn", "--data.image_size", "16"]
    learns += ["--model.distillation", "1.0", "--model.mixup", "0.2", "--trainer.max_epochs", "8"]
    assert start(monkeypatch, "--run", "pupil", *learns) == 0
    pupil, said = load_model("pupil", ImageModel), rows("teacher", teacher="teacher")
    last = torch.load("runs/pupil/checkpoints/last.ckpt", weights_only=True)  # the best one knows the classes best
    pupil.load_state_dict(last["state_dict"])
    with torch.inference_mode():
        away = [pupil(image[None]).softmax(1)[0].sub(said[n]).abs().max() for n, image in rows("image").items()]
    assert float(torch.stack(away).mean()) < 0.1, "what the teacher says, though that is no good"
    assert call(monkeypatch, "evaluate", "pupil") == 0 and call(monkeypatch, "export", "pupil", "pupil.pt2") == 0


def test_a_teacher_that_says_the_target_teaches_the_target() -> None:
    logits, classes = torch.randn(4, 3), torch.tensor([0, 2, 1, 2])
    sure = torch.nn.functional.one_hot(classes, 3).float()
    for task, loss, targets in (
        ("single_label", "cross_entropy", classes),
        ("single_label", "binary_cross_entropy", classes),
        ("multi_label", None, sure),
        ("regression", None, sure),
    ):
        objective: Any = OBJECTIVES[task](3, 0.0, loss)
        torch.testing.assert_close(objective.taught(logits, sure), objective.losses(logits, targets))
    model = ImageModel(["a", "b", "c"], fields={"teacher": [3]}, backbone="small_cnn", image_size=16, distillation=0.25)
    fields, ids = {"target": classes, "teacher": sure.flip(1).half()}, torch.arange(4)
    batch = Batch(fields, ids, ids, torch.ones(4, dtype=torch.bool))
    mix = Mix(classes.roll(1), torch.tensor([0.5, 1.0, 0.25, 0.75]))
    entropy = torch.nn.functional.cross_entropy
    for part, share in ((0, 0.25), (1, 0.0)):
        model.train(part == 0)
        hard = mix.share * entropy(logits, classes, reduction="none")
        hard += (1 - mix.share) * entropy(logits, classes.roll(1), reduction="none")
        soft = mix.share * entropy(logits, sure.flip(1), reduction="none")
        soft += (1 - mix.share) * entropy(logits, sure.flip(1).roll(1, 0), reduction="none")
        torch.testing.assert_close(model.losses(logits, batch, mix), (1 - share) * hard + share * soft)
    with pytest.raises(InputError, match=r"not for segmentation"):
        ImageModel(["a", "b"], "segmentation", 16, {"teacher": [2]}, "small_unet", distillation=0.5)


def test_the_forecast_writes_nothing(project: Path, monkeypatch: Any, capfd: Any) -> None:
    before = sorted(project.rglob("*"))
    given = ("embed", "first", "colours", "--name", "new", "--forecast", "--seconds", 0.3, "--images", "1M")
    assert call(monkeypatch, *given) == 0
    assert "1,000,000 images: " in capfd.readouterr().out
    assert call(monkeypatch, *given, "--json") == 0
    told = json.loads(capfd.readouterr().out)
    assert told["bytes"] == 1_000_000 * (128 * 2 + 8 + 1) and told["embedding"]["seconds"] > 0
    assert sorted(project.rglob("*")) == before


def test_a_training_on_features_is_forecast(project: Path, monkeypatch: Any, capfd: Any) -> None:
    shutil.copy(PROJECT / "prices.yaml", project)
    given = ("--config", "small.yaml", "--data.features", "features", "--seconds", 0.5, "--json")
    assert call(monkeypatch, "forecast", *given) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["inputs"] == "128 features (features)" and told["forecast"]["seconds"] > 0
    assert told["reading"]["bytes"] == 96 * (128 * 2 + 8 + 1) and told["reading"]["bytes_per_second"] > 0


@pytest.mark.parametrize(
    "name", ["small_cnn", "small_cnn_wide", "convnext_tiny", "vit_b_16", "swin_t", "densenet121", "maxvit_t", "vgg11"]
)
def test_features_of_every_family_are_what_the_last_layer_sees(name: str) -> None:
    with torch.device("meta"):
        network = backbones.build(name, 7, 224).eval()
        seen = last_layer.features(network, torch.zeros(2, 3, 224, 224))
    last = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)][-1]
    assert seen.shape == (2, last.in_features) and last.out_features == 7
    with pytest.raises(InputError, match="does not end in one linear layer"), torch.device("meta"):
        last_layer.features(backbones.build("squeezenet1_1", 7, 224).eval(), torch.zeros(2, 3, 224, 224))


def evaluated(sample: dict[str, Any], random: np.random.Generator) -> None:
    sample["image"][:] = 255 - sample["image"]


evaluated.evaluation = True  # type: ignore[attr-defined]


def test_another_transform_makes_another_embedding(embedded: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(embedded)
    dataset, model = Dataset.open(Path("colours")), load_model("first", ImageModel)
    about = (model, "first", False, dataset, "changed", Look(Crop(16)), dataset_fields(dataset))
    made = [Embedder(*about, transform).embedding.network for transform in (None, evaluated, lambda *both: None)]
    assert made[0] == made[2] and made[1] == {**made[0], "transform": f"{__name__}.evaluated"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["embed", "no_such", "colours"], "'no_such' is no run and no checkpoint; as a backbone: .* is not known"),
        (["embed", "first", "nowhere"], "no packed dataset"),
        (["embed", "first", "colours", "--name", "../out"], "cannot be an embedding's name"),
        (["embed", "first", "colours", "--name", "decoded"], "cannot be an embedding's name"),
        (["embed", "first", "colours", "--views", "0"], "views"),
        (["embed", "first", "colours", "--views", "900"], "900 views"),
        (["embed", "first", "colours", "--batch-size", "0"], "--batch-size is 0"),
        (["embed", "first", "colours", "--views", "2", "--crop-scale", "0.8", "0.2"], "--crop-scale is .0.8, 0.2."),
        (["embed", "first", "colours", "--devices", "many"], "--devices many cannot be had here"),
        (["embed", "resnet18", "colours", "--weights", "nowhere.ckpt"], "there is no file nowhere.ckpt"),
        (["embed", "first", "colours", "--image-size", "0"], "--image-size is 0"),
        (["embed", "first", "colours", "--weights", "imagenet"], "first has weights of its own: leave it out"),
        (["embed", "runs/first/checkpoints/last.ckpt", "colours", "--weights", "none"], "ckpt has weights of its own"),
        (["embed", "first", "colours", "--flip", "0.5"], "--flip is for random crops, and one view is"),
        (["embed", "first", "colours", "--seed", "0"], "--seed is for random crops, and one view is"),
        (["embed", "first", "colours", "--views", "9", "--batch-size", "8"], "--batch-size 8 is less than the --views"),
        (["embed", "first", "colours", "--images", "1G"], "--images is for a forecast: add --forecast"),
        (["embed", "first", "colours", "--forecast", "--images", "0"], "--images is 0, it must be a number above 0"),
        (["embed", "first", "colours", "--forecast", "--seconds", "inf"], "--seconds is inf, it must be a number"),
        (["embed", "first", "colours", "--name", ""], "--name is empty: name something, or leave it out"),
        (["embed", "maxvit_t", "colours", "--weights", "none", "--image-size", "100"], "224 or a multiple"),
    ],
)
def test_bad_input_of_embed(project: Path, monkeypatch: Any, capfd: Any, arguments: list[str], sentence: str) -> None:
    before = sorted(project.rglob("*"))
    assert call(monkeypatch, *arguments) == 2
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 1
    assert re.search(sentence, said), said
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data.features", "other"], "colours has no embedding 'other'"),
        (["--data.teacher", "other", "--model.backbone", "small_cnn"], "colours has no embedding 'other'"),
        (["--model.distillation", "0.5", "--model.backbone", "small_cnn"], "learns from data.teacher: scores of the"),
        (["--model.distillation", "0.5", "--model.backbone", "small_cnn", "--data.teacher", "features"], "of the same"),
        (["--model.distillation", "2", "--model.backbone", "small_cnn"], "model.distillation is 2.0, it must be"),
        (["--data.features", "features", "--model.backbone", "small_cnn"], "takes images, not features"),
        (["--data.features", "features", "--model.mixup", "0.2"], "model.mixup changes images"),
        (["--data.features", "features", "--data.crop_scale", "[0.5, 1]"], "data.crop_scale changes images"),
        (["--data.features", "features", "--data.crop_ratio", "[1, 1]"], "data.crop_ratio changes images"),
        (["--data.features", "features", "--data.flip", "0"], "data.flip changes images"),
        (["--data.features", "features", "--data.repeats", "2"], "data.features has one view of each"),
        (["--data.features", "null"], "takes features: name some in data.features"),
        (["--data.features", "features", "--model.trained_blocks", "0"], "model.trained_blocks"),
        (["--data.features", "features", "--model.backbone", "mlp", "--model.layer_decay", "0.5"], "model.layer_decay"),
        (["--data.features", "features", "--data.mixture", "{colours: 1, ./colours/../colours: 1}"], "mixture"),
    ],
)
def test_bad_input_of_a_training(
    embedded: Path, monkeypatch: Any, capfd: Any, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(embedded)
    capfd.readouterr()
    assert start(monkeypatch, "--run", "bad", *arguments) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert sentence in said and not Path("runs/bad").exists()


def of_another_dataset(project: Path) -> None:
    write_dataset(project / "others", sizes=(5, 6), held_out=0)
    shutil.copy("colours/features.embedding.json", "others")
    shutil.rmtree("colours")
    Path("others").rename("colours")


def cut(project: Path) -> None:
    path = project / "colours/features.embedding.json"
    path.write_bytes(path.read_bytes()[:-20])


def made_up(project: Path) -> None:
    path = project / "colours/features.embedding.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"length": 1 << 60}))


def without_an_array(project: Path) -> None:
    next((project / "colours/train").glob("000000.tar.features-*.npy")).unlink()


def with_a_cut_array(project: Path) -> None:
    path = next((project / "colours/train").glob("000000.tar.features-*.npy"))
    path.write_bytes(path.read_bytes()[:-4000])


@pytest.mark.parametrize("damage", [of_another_dataset, cut, made_up, without_an_array, with_a_cut_array])
def test_what_does_not_fit_is_never_read(
    project: Path, monkeypatch: Any, capfd: Any, damage: Callable[[Path], None]
) -> None:
    damage(project)
    capfd.readouterr()
    assert start(monkeypatch, "--run", "bad", "--data.features", "features") == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert "embed" in said and not Path("runs/bad").exists()
    again = ["embed", "first", "colours"]
    if damage not in (without_an_array, with_a_cut_array):
        assert call(monkeypatch, *again) == 2 and "embed again with --force" in capfd.readouterr().err
        again.append("--force")
    assert call(monkeypatch, *again) == 0
    assert start(monkeypatch, "--run", "good", "--data.features", "features", "--trainer.max_epochs", "1") == 0


def test_a_full_disk_is_a_sentence_and_keeps_what_was_made(project: Path, monkeypatch: Any, capfd: Any) -> None:
    real = os.posix_fallocate

    def full(descriptor: int, start: int, size: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith("000002.tar.new"):
            raise OSError(28, "No space left on device")
        real(descriptor, start, size)

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        patch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
        assert call(patch, "embed", "first", "colours", "--name", "new") == 1
    assert "No space left on device" in (said := capfd.readouterr().err) and "what was made is kept" in said
    assert len(list(Path("colours/train").glob("*.new-*.npy"))) == 2 and not Path("colours/new.embedding.json").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: type("", (), {"free": 100})())
    assert call(monkeypatch, "embed", "first", "colours", "--name", "new") == 2
    assert "has 100 bytes left: make room" in capfd.readouterr().err


def test_the_arrays_of_a_url_are_in_the_cache(web: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    given = ("embed", "small_cnn", web.url, "--weights", "none", "--image-size", 16)
    assert call(monkeypatch, *given) == 0
    assert len(list((tmp_path / "cache/lightning-shards/arrays").glob("*.npy"))) == 5, "val and test are the same tar"
    with pytest.raises(InputError, match="has no embedding"):
        ShardLoader(web.url, 8, features="other")
    loader = ShardLoader(web.url, 8, features="features")
    assert sum(len(batch.ids) for batch in loader) == 96
    loader.close()
