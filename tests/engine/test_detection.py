"""Detection from the tars to the report and a file in COCO's form; the boxes' own way into the tars: test_boxes."""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from lightning_shards import testing
from lightning_shards.data.tar_index import ShardIndex
from lightning_shards.errors import InputError
from lightning_shards.inference.squares import Cut
from lightning_shards.inference.squares import boxes as joined
from lightning_shards.train import contract
from lightning_shards.train.datamodule import ShardDataModule
from lightning_shards.vision import detection, weights
from lightning_shards.vision.box_metrics import BoxPrecision
from lightning_shards.vision.boxes import found, padded, share_wrong
from lightning_shards.vision.weight_fit import fit
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from team.model import ImageModel
from team.objectives import Detection
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from . import PATIENCE
from .conftest import encoded
from .in_place import PACKAGE
from .samples import write_tree
from .test_inference import call
from .test_segmentation import killed_on_one_and_gone_on_with_two
from .test_train import start

NAMES = list(testing.NAMES)
KINDS = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "ssdlite320_mobilenet_v3_large",
)
SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"path": "boxes", "global_batch_size": 10, "image_size": 32, "crop_scale": [0.8, 1.0], "eval_crop": 1.0,
             "max_skipped_fraction": 0.2},
    "model": {"backbone": "small_detector", "learning_rate": 0.01},
    "trainer": {"max_epochs": 6, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
    "log": {"wandb": False},
}  # fmt: skip


def boxes(*rows: list[float], most: int = 4) -> Tensor:
    """(1, most, 6)."""
    made = torch.zeros(1, most, 6)
    made[:, :, 5] = -1
    for place, row in enumerate(rows):
        made[0, place] = torch.tensor(row)
    return made


def damage_boxes(tar: Path) -> None:
    """Let the first sample of a shard have a box outside its image."""
    with tarfile.open(tar) as archive:
        member = next(one for one in archive if one.name.endswith("boxes.json"))
    content = bytearray(tar.read_bytes())
    text = b'{"boxes": [[1, 2, 99, 9]], "labels": [0]}'.ljust(member.size)
    content[member.offset_data : member.offset_data + member.size] = text
    tar.write_bytes(content)
    ShardIndex.build(tar).save(tar.with_name(tar.name + ".index"))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, one of whose boxes cannot be, and a training on it that was killed on one device and
    went on with two."""
    folder = tmp_path_factory.mktemp("detection")
    damage_boxes(testing.tiny_dataset(folder / "boxes", "detection") / "train" / "000001.tar")
    return killed_on_one_and_gone_on_with_two(folder, SETTINGS)


@pytest.fixture
def run(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with that run and its dataset."""
    shutil.copytree(learned, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- training
def test_a_killed_training_goes_on_exactly_with_other_ranks_and_lists_damaged_boxes(learned: Path) -> None:
    folder = learned / "runs" / "one"
    summary = json.loads((folder / "summary.json").read_text())
    assert testing._count(folder, 120) == (0, 0), "samples lost, samples repeated"
    assert summary["status"] == "done" and summary["metrics"]["test/map_50"] > 0.5
    lines = [json.loads(line) for path in (folder / "skipped").iterdir() for line in path.read_text().splitlines()]
    assert lines and all("reaches out of the image" in line["error"] for line in lines)
    assert {line["shard"] for line in lines} == {"train/000001.tar"}


def test_metrics_of_two_ranks_are_those_of_one_and_of_coco_s_own_program(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Training measured on two ranks; `evaluate` does on one; and COCO's program counts what `predict` writes."""
    told = json.loads((run / "runs/one/summary.json").read_text())["metrics"]
    assert call(monkeypatch, "evaluate", "one", "--json") == 0
    measured = json.loads(capfd.readouterr().out)
    measured = measured.get("metrics", measured)
    for name in ("map", "map_50", *(f"ap/{name}" for name in NAMES)):
        assert measured[f"test/{name}"] == pytest.approx(told[f"test/{name}"], abs=1e-6), name
    assert call(monkeypatch, "predict", "one", "boxes", "--coco", "found.json", "--out", "t.csv") == 0
    said = json.loads(Path("found.json").read_text())
    assert [one["name"] for one in said["categories"]] == NAMES and len(said["images"]) == 30
    truth = {**said, "annotations": []}
    with tarfile.open("boxes/test/000000.tar") as archive:
        for image in said["images"]:
            member = archive.extractfile(f"{image['file_name'].rpartition('/')[2]}.boxes.json")
            assert member
            content = json.loads(member.read())
            for (left, top, right, bottom), label in zip(content["boxes"], content["labels"], strict=True):
                about = {
                    "image_id": image["id"],
                    "category_id": label + 1,
                    "iscrowd": 0,
                    "id": len(truth["annotations"]) + 1,
                }
                bbox = [left, top, right - left, bottom - top]
                truth["annotations"].append({**about, "bbox": bbox, "area": bbox[2] * bbox[3]})
    Path("truth.json").write_text(json.dumps(truth))
    known = COCO("truth.json")
    program = COCOeval(known, known.loadRes(said["annotations"]), "bbox")
    program.evaluate()
    program.accumulate()
    program.summarize()
    assert program.stats[0] == pytest.approx(measured["test/map"], abs=1e-6)
    assert program.stats[1] == pytest.approx(measured["test/map_50"], abs=1e-6)


def test_the_report_shows_boxes_that_are_there_and_boxes_that_were_found(learned: Path) -> None:
    page = (learned / "runs/one/report.html").read_text()
    evaluation = json.loads((learned / "runs/one/evaluation/test.json").read_text())
    assert "mAP" in page and "Most boxes wrong" in page and page.count('class="swatch"') == 3
    assert evaluation["counts"]["boxes"] == [10, 10, 10]
    example = evaluation["examples"]["right"][0]
    data = base64.b64decode(example["image"].partition(",")[2])
    pair = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert pair is not None and pair.shape == (192, 2 * 192 + 2, 3)
    assert example["found"] == 1 and [number for number, _ in example["predicted"]] == example["actual"]


def test_boxes_lie_in_the_image_s_own_pixels(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    (run / "new").mkdir()
    wide = np.full((32, 96, 3), testing.GRAY, np.uint8)
    wide[8:24, 70:88] = np.array(testing.COLOURS[1])[::-1]  # one thing, green, at the right
    cv2.imwrite("new/wide.png", wide)
    cv2.imwrite("new/large.png", cv2.resize(wide, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST))
    Path("new/broken.png").write_bytes(b"no image")
    assert call(monkeypatch, "predict", "one", "new", "--coco", "c.json") == 0
    rows = {row["path"]: row for row in csv.DictReader(capfd.readouterr().out.splitlines())}
    assert rows["broken.png"]["error"] and not rows["broken.png"]["boxes"]
    for name, times in (("wide.png", 1), ("large.png", 4)):
        assert rows[name]["predicted"].split("|")[0] == "green", rows
        edges = np.array(rows[name]["boxes"].split("|")[0].split(), float) / times
        assert np.abs(edges - (70, 8, 88, 24)).max() < 5, edges
    assert [(one["width"], one["height"]) for one in json.loads(Path("c.json").read_text())["images"]] == [
        (384, 128), (96, 32),
    ]  # fmt: skip
    assert call(monkeypatch, "predict", "one", "new", "--json", "--scores") == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert all(
        len(line["boxes"]) == len(line["score"]) and line["scores"].keys() == {*NAMES}
        for line in lines
        if "boxes" in line
    )
    assert call(monkeypatch, "predict", "one", "new", "--coco", "c.json") == 2 and "--force" in capfd.readouterr().err
    assert call(monkeypatch, "predict", "one", "new", "--coco", "no/c.json") == 2
    assert call(monkeypatch, "predict", "one", "new", "--coco", "x.json", "--out", "./x.json") == 2, "one file for both"
    assert not Path("x.json").exists()
    shutil.rmtree("new")
    Path("new").mkdir()
    Path("new/broken.png").write_bytes(b"no image")
    assert call(monkeypatch, "predict", "one", "new", "--coco", "none.json") == 1
    assert not Path("none.json").exists() and not list(Path().glob(".none*"))


@pytest.mark.parametrize(("full", "count"), [(False, 300), (True, 300), (True, 2)])
def test_what_happens_to_standard_output_is_not_said_of_the_file_of_boxes(
    run: Path, warm_python: str, full: bool, count: int
) -> None:
    """A reader that goes away leaves FILE to be written whole; a disk that is full is named as what it is."""
    write_tree(run / "new", {f"{number}.png": encoded(0, side=32) for number in range(count)})
    reader, out = os.pipe()
    os.close(reader)
    with os.fdopen(out, "w") as closed, Path("/dev/full").open("w") as no_space:
        process = subprocess.run(
            [warm_python, "-m", PACKAGE, "predict", "one", "new", "--scores", "--coco", "c.json"],
            stdout=no_space if full else closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
    if full:
        said = "error: standard output could not be written (No space left on device)"
        assert process.returncode == 1 and process.stderr.splitlines()[-1] == said and "Trace" not in process.stderr
        assert not list(Path().glob("c.json*"))
    else:
        assert process.returncode == 0 and "could not" not in process.stderr, process.stderr
        assert len(json.loads(Path("c.json").read_text())["images"]) == 300


@pytest.mark.parametrize("kind", KINDS)
def test_class_weights_are_refused_where_the_network_has_its_own_loss(kind: str, learned: Path) -> None:
    """By a training; what has been trained with them is measured as ever."""
    data = ShardDataModule(str(learned / "boxes"), global_batch_size=10)
    model = ImageModel(NAMES, "detection", 64, backbone=kind, class_weights={NAMES[0]: 2.0})
    with pytest.raises(InputError, match=f"class_weights is not for {kind}"):
        contract.weigh_classes(model, data)


COMMANDS = {
    "--flip": (["evaluate", "one", "--flip"], "boxes have no average"),
    "--masks": (["predict", "one", "boxes", "--masks", "m"], "--masks is for models of masks"),
    "export": (["export", "one", "m.pt2"], "a detector finds boxes: use predict --coco"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_what_boxes_do_not_have_is_refused(case: str, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    arguments, sentence = COMMANDS[case]
    assert call(monkeypatch, *arguments) == 2
    said = capfd.readouterr().err.strip()
    assert sentence in said and "\n" not in said


REFUSED = {
    "mixup": (["--model.mixup", "0.2"], "model.mixup moves or mixes what images show, and boxes would stay"),
    "smoothing": (["--model.label_smoothing", "0.1"], "model.label_smoothing is for classes of images"),
    "a network of images": (["--model.backbone", "resnet18"], "'resnet18' gives no boxes; there are small_detector"),
    "a network of masks": (["--model.backbone", "small_unet"], "'small_unet' gives no boxes"),
    "a loss": (["--model.loss", "cross_entropy"], "model.loss cross_entropy is for another task"),
    "balance": (["--data.balance", "1"], "needs a class for each sample"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_boxes_cannot_obey_are_one_sentence(
    case: str, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    arguments, sentence = REFUSED[case]
    assert start(monkeypatch, "--run", "bad", *arguments) == 2
    said = capfd.readouterr().err.strip()
    assert sentence in said and "\n" not in said and not Path("runs/bad").exists()


def test_a_detector_is_for_boxes(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    with pytest.raises(InputError, match="small_detector gives boxes, and the dataset has no boxes"):
        ImageModel(NAMES, image_size=32, backbone="small_detector")


# -- boxes, maps and the loss
def test_boxes_of_rows_are_one_tensor() -> None:
    rows = [{"boxes": torch.tensor([[1.0, 2, 3, 4]]), "labels": torch.tensor([2])}]
    rows.append({"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)})
    assert padded(rows, torch.tensor([True, True])).tolist() == [[[1, 2, 3, 4, 1, 2]], [[0, 0, 0, 0, 0, -1]]]
    assert padded(rows[1:], torch.tensor([True])).shape == (1, 1, 6)


def test_how_wrong_boxes_are() -> None:
    truth = boxes([0, 0, 10, 10, 1, 0], [20, 20, 30, 30, 1, 1])
    right = boxes([0, 0, 10, 9, 0.9, 0], [20, 20, 30, 31, 0.8, 1])
    cases = [(truth, 0.0, 2), (right, 0.0, 2), (boxes(), 1.0, 0), (boxes([0, 0, 10, 10, 0.9, 1]), 1.0, 0),
             (boxes([0, 0, 10, 10, 0.9, 0]), 0.5, 1), (boxes([0, 0, 10, 10, 0.2, 0]), 1.0, 0),
             (boxes([0, 0, 10, 10, 0.9, 0], [0, 0, 10, 9, 0.8, 0], [20, 20, 30, 30, 1, 1]), 1 / 3, 2)]  # fmt: skip
    for said, wanted, count in cases:
        assert share_wrong(said, truth).tolist() == pytest.approx([wanted])
        sure = said[0][(said[0, :, 5] >= 0) & (said[0, :, 4] >= 0.3)]
        assert found(sure, truth[0][truth[0, :, 5] >= 0]) == count
    assert share_wrong(boxes(), boxes()).tolist() == [0]


def maps_of(truth: Tensor, side: int = 64) -> Tensor:
    """Maps (B, T + 4, h, w) that say just what is there."""
    empty = torch.zeros(len(truth), 3 + 4, side // 4, side // 4)
    heat, edges, _ = detection.wanted(empty, truth)
    places = detection.centres(empty) * torch.tensor([1, 1, 1, 1]).view(4, 1, 1)
    away = (edges / 4 - places) * torch.tensor([-1, -1, 1, 1]).view(4, 1, 1)
    return torch.cat([torch.logit(heat, 1e-6), away.clamp(min=0.01).log()], 1)


def test_maps_that_are_what_is_wanted_give_the_boxes_that_are_there() -> None:
    truth = boxes([5, 7, 25, 19, 1, 0], [30, 2, 60, 60, 1, 2], [40, 20, 50, 32, 1, 1])
    said = detection.find(maps_of(truth))[0, :3]
    for row in truth[0, :3]:
        (one,) = said[said[:, 5] == row[5]]
        assert torch.allclose(one[:4], row[:4], atol=1e-3) and one[4] > 0.99
    rest = detection.find(maps_of(truth))[0, 3:]
    assert (rest[:, 4] < 0.01).all() and rest.shape == (97, 6)


def test_the_loss_is_what_the_papers_say() -> None:
    torch.manual_seed(1)
    truth = torch.cat([boxes([5, 7, 25, 19, 1, 0], [30, 2, 60, 60, 1, 2]), boxes()])
    maps = torch.randn(2, 7, 16, 16)
    losses = Detection(3).losses(maps, truth)
    heat, edges, height = detection.wanted(maps, truth)
    for row, things in ((0, 2), (1, 1)):
        said = maps[row, :3].sigmoid()
        entropy = F.binary_cross_entropy(said, heat[row], reduction="none")
        value = ((said - heat[row]) ** 2 * entropy).sum() / things
        away = generalized_box_iou_loss(detection.edges(maps)[row].flatten(1).T, edges[row].flatten(1).T)
        value += (away * height[row].flatten()).sum() / max(1, height[row].sum())
        assert losses[row].item() == pytest.approx(value.item(), rel=1e-5)
    assert heat[1].max() == 0 and heat[0].amax((1, 2)).tolist() == [1, 0, 1]
    assert Detection(3).losses(maps_of(truth), truth).max() < 0.01, "what is wanted costs nothing"
    weighted = Detection(3)
    weighted.weigh({"green": 5.0}, NAMES)
    assert (weighted.losses(maps, truth) > losses).all()


def test_the_detector_takes_any_size() -> None:
    for side in (32, 64, 75):
        maps = detection.SmallDetector(5).eval()(torch.zeros(2, 3, side, side))
        assert maps.shape == (2, 9, side // 4, side // 4)
        assert detection.find(maps).shape == (2, 100, 6) if side > 32 else True
    assert sum(p.numel() for p in detection.SmallDetector(10).parameters()) == pytest.approx(0.5e6, rel=0.2)


@pytest.mark.parametrize("name", KINDS)
def test_torchvision_s_networks_have_their_own_loss(name: str) -> None:
    """Of each kind one: rows that do not count have no part in it, and boxes come back in pixels of the square."""
    torch.manual_seed(0)
    network = detection.build(name, 3, 96)
    images, nothing = torch.rand(3, 3, 96, 96), boxes()
    truth = torch.cat([boxes([10, 10, 60, 60, 1, 2], [5, 5, 90, 30, 1, 0]), nothing, torch.full_like(nothing, -2)])
    losses = network(images, truth)
    assert losses.shape == (3,) and losses[0] == losses[1] > 0 and losses[2] == 0
    losses.sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    assert network(images, torch.full_like(truth, -2)).tolist() == [0, 0, 0]
    with torch.no_grad():
        said = network.eval()(images)
    assert said.shape == (3, 100, 6) and said[:, :, :4].max() <= 96 and said[:, :, 5].max() < 3
    assert Detection(3).losses(said, truth).isnan().all() and Detection(3).losses(losses, truth) is losses


def test_an_encoder_begins_with_the_weights_of_its_classification_network() -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    known = torchvision.models.mobilenet_v3_large(weights=None).state_dict()
    assert detection.encoder(name) == "mobilenet_v3_large" and not detection.encoder("ssd300_vgg16")
    network = detection.build(name, 3, 64)
    part = detection.ENCODER
    anew = fit(network, weights._encoder(network, known, part), name, "imagenet", name, part)
    own, keys = network.state_dict(), {f"{part}{key.removeprefix('features.')}": value for key, value in known.items()}
    assert anew and not any(key.startswith(part) for key in anew)
    same = [torch.equal(own[key], value) for key, value in keys.items() if key in own]
    assert len(same) > 100 and all(same)


def test_a_network_of_torchvision_is_trained_and_used(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    small = ["--run", "two", "--model.backbone", name, "--trainer.max_epochs", "1", "--data.fraction", "0.4"]
    assert start(monkeypatch, "--config", "small.yaml", *small, "--data.max_skipped_fraction", "0.5") == 0
    metrics = json.loads(Path("runs/two/summary.json").read_text())["metrics"]
    assert "test/map" in metrics and "test/loss" not in metrics, "it has a loss in training alone"
    assert call(monkeypatch, "predict", "two", "boxes", "--coco", "f.json", "--out", "f.csv") == 0
    assert len(json.loads(Path("f.json").read_text())["images"]) == 30
    assert "train/loss" in Path("runs/two/metrics.csv").read_text().splitlines()[0]


def test_precision_counts_boxes_of_many_batches_and_none() -> None:
    metric, table = BoxPrecision(3), BoxPrecision(3, counts=True)
    metric.update(boxes(), boxes())
    assert metric.compute()["map"] == 0 and metric.compute()["ap"].isnan().all()
    for one in (metric, table):
        one.reset()
        one.update(boxes([0, 0, 10, 10, 0.9, 0]), boxes([0, 0, 10, 10, 1, 0], [0, 0, 5, 5, 1, 1]))
        one.update(boxes([0, 0, 10, 10, 0.8, 2]), boxes())
        each = one.compute()["ap"]
        assert each[:2].tolist() == [1, 0] and each[2].isnan()
    value = metric.compute()
    assert value["map"] == value["map_50"] == 0.5, "the mean over the classes that occur"
    assert table.compute()["boxes"].tolist() == [1, 1, 0] and "boxes" not in value


# -- whole images
def test_boxes_of_squares_are_joined_and_twins_go() -> None:
    squares = np.zeros((2, 16, 16, 3), np.uint8)
    cut = Cut(0, (32, 48), 32, [(0, 0), (0, 16)], squares, "")
    first, second = (
        boxes([8, 2, 12, 6, 0.9, 1]).numpy()[0],
        boxes([0.2, 2, 4, 6, 0.7, 1], [0, 2, 4, 6, 0.6, 2]).numpy()[0],
    )
    made = joined(cut, [first, second])
    assert made.round(4).tolist() == [[16, 4, 24, 12, pytest.approx(0.9), 1], [16, 4, 24, 12, pytest.approx(0.6), 2]]
    assert joined(cut, [boxes().numpy()[0]] * 2).shape == (0, 6)
