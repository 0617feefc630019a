"""Segmentation from the tars to the report, a folder of masks and an exported program; masks themselves: test_masks."""

from __future__ import annotations

import base64
import csv
import itertools
import json
import os
import shutil
import signal
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
import yaml
from lightning_shards import testing
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.decode import decode_mask
from lightning_shards.data.joined import renumbering
from lightning_shards.data.mask_file import palette, palette_png
from lightning_shards.data.tar_index import ShardIndex
from lightning_shards.errors import InputError
from lightning_shards.inference.mask_folder import MaskFolder
from lightning_shards.inference.squares import corners, joined
from lightning_shards.vision import segmentation, weights
from lightning_shards.vision.mask_pictures import GAP, WRONG, overlaps, side_by_side
from lightning_shards.vision.weight_fit import fit
from team.model import ImageModel
from team.objectives import Segmentation

from .in_place import PROJECT
from .test_inference import call
from .test_train import start

NAMES = list(testing.NAMES)
SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"path": "masks", "global_batch_size": 10, "image_size": 32, "eval_crop": 1.0, "max_skipped_fraction": 0.2},
    "model": {"backbone": "small_unet", "learning_rate": 0.01},
    "trainer": {"max_epochs": 2, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
    "log": {"wandb": False},
}


def model(**changes: Any) -> ImageModel:
    torch.manual_seed(0)
    return ImageModel(NAMES, **{"task": "segmentation", "image_size": 32, "backbone": "small_unet", **changes})


def damage_a_mask(tar: Path) -> None:
    """Flip a byte of the pixels of the first mask in a shard."""
    with tarfile.open(tar) as archive:
        member = next(one for one in archive if one.name.endswith("mask.png"))
    content = bytearray(tar.read_bytes())
    content[member.offset_data + member.size - 20] ^= 255
    tar.write_bytes(content)
    ShardIndex.build(tar).save(tar.with_name(tar.name + ".index"))


def killed_on_one_and_gone_on_with_two(folder: Path, settings: dict[str, Any]) -> Path:
    """The run `one` in `folder`, with a ledger: killed after seven batches on one device, finished on two."""
    (folder / "small.yaml").write_text(yaml.safe_dump(settings))
    often = ["--ledger", "true", "--save_every_minutes", "0.00001"]
    kill = ["--trainer.callbacks+=lightning_shards.testing.KillAt", "--trainer.callbacks.batches", "7"]
    given = ["--config", "small.yaml", "--run", "one", *often, *kill]
    testing.train(PROJECT, folder, *given, status=-signal.SIGKILL)
    testing.train(PROJECT, folder, "--resume", "one", "--trainer.devices", "2")
    return folder


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, one of whose masks is damaged, and a training on it that was killed on one device and
    went on with two."""
    folder = tmp_path_factory.mktemp("segmentation")
    damage_a_mask(testing.tiny_dataset(folder / "masks", "segmentation") / "train" / "000001.tar")
    return killed_on_one_and_gone_on_with_two(folder, SETTINGS)


@pytest.fixture
def run(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with that run and its dataset."""
    shutil.copytree(learned, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- training
def test_a_killed_training_goes_on_exactly_with_other_ranks_and_lists_damaged_masks(learned: Path) -> None:
    folder = learned / "runs" / "one"
    summary = json.loads((folder / "summary.json").read_text())
    assert testing._count(folder, 120) == (0, 0), "samples lost, samples repeated"
    assert summary["status"] == "done" and summary["metrics"]["test/mean_iou"] > 0.8
    lines = [json.loads(line) for path in (folder / "skipped").iterdir() for line in path.read_text().splitlines()]
    assert lines and all("mask" in line["error"] and line["shard"] == "train/000001.tar" for line in lines)


def test_metrics_of_two_ranks_are_those_of_one_and_of_the_masks(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Training measured on two ranks; `evaluate` does on one; and the masks that `predict` writes say the same."""
    told = json.loads((run / "runs/one/summary.json").read_text())["metrics"]
    assert call(monkeypatch, "evaluate", "one", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    found = found.get("metrics", found)
    names = ["mean_iou", "pixel_accuracy", *(f"iou/{name}" for name in NAMES)]
    for name in names:
        assert found[f"test/{name}"] == pytest.approx(told[f"test/{name}"], abs=1e-6), name
    assert call(monkeypatch, "predict", "one", "masks", "--masks", "out", "--out", "t.csv", "--scores") == 0
    rows = list(csv.DictReader(Path("t.csv").read_text().splitlines()))
    matrix = np.zeros((3, 3), np.int64)
    with tarfile.open("masks/test/000000.tar") as archive:
        for row in rows:
            key = row["path"].rpartition("/")[2]
            member = archive.extractfile(f"{key}.mask.png")
            assert member
            truth, said = decode_mask(member.read()), decode_mask(Path("out", row["mask"]).read_bytes())
            np.add.at(matrix, (truth, said), 1)
            shares = [float(row[f"scores:{name}"]) for name in NAMES]
            assert shares == pytest.approx(np.bincount(said.ravel(), minlength=3) / said.size, abs=1e-6)
            assert set(row["predicted"].split("|")) == {NAMES[number] for number in np.unique(said)}
    assert len(rows) == 30
    each = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    assert each.mean() == pytest.approx(found["test/mean_iou"], abs=1e-5)
    assert call(monkeypatch, "evaluate", "one", "--flip", "--json") == 0
    mirrored = json.loads(capfd.readouterr().out)
    assert mirrored.get("metrics", mirrored)["test/mean_iou"] > 0.8, "mirrored back"


def test_the_report_shows_image_truth_prediction_and_differences(learned: Path) -> None:
    page = (learned / "runs/one/report.html").read_text()
    evaluation = json.loads((learned / "runs/one/evaluation/test.json").read_text())
    assert "mean IoU" in page and "Most pixels wrong" in page and page.count('class="swatch"') == 3
    matrix = np.array(evaluation["counts"]["confusion"])
    assert matrix.sum() == 30 * 32 * 32, "pixels"
    example = evaluation["examples"]["surest"][0]
    data = base64.b64decode(example["image"].partition(",")[2])
    strip = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert strip is not None and strip.shape == (32, 4 * 32 + 3 * GAP, 3)
    assert {number for number, _ in example["predicted"]} >= set(example["actual"])


def test_masks_of_a_mixture_number_their_classes_alike(tmp_path: Path) -> None:
    """Pixels are not renumbered, so another order of the same names is refused."""
    first, same, other = (
        Dataset.open(testing.tiny_dataset(tmp_path / name, task="segmentation")) for name in ("first", "same", "other")
    )
    assert renumbering(first, same) is None
    with pytest.raises(
        InputError, match="number the classes of their mask differently: pack both with the same --names"
    ):
        renumbering(first, replace(other, targets=other.targets[::-1]))


def test_no_mask_takes_the_name_of_another(tmp_path: Path) -> None:
    folder, mask = MaskFolder(tmp_path, tmp_path), np.zeros((4, 4), np.uint8)
    written = [folder.write(name, mask) for name in ("a.jpg", "a.png.jpg", "a.png", "a.jpg")]
    assert written[:3] == ["a.png", "a.png.png", "a.png.png.png"] and len(set(written)) == 4


def test_masks_are_as_large_as_their_images_and_all_or_none_are_written(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (run / "new/deep").mkdir(parents=True)
    colours = np.array(testing.COLOURS, np.uint8)[:, ::-1]
    wide = np.repeat(colours[[0, 1, 2]], 32, 0)[None].repeat(30, 0)  # three colours side by side, 96 x 30
    cv2.imwrite("new/wide.png", wide)
    cv2.imwrite("new/wide.jpg", wide)
    cv2.imwrite("new/deep/tall.png", np.ascontiguousarray(wide.swapaxes(0, 1)))
    Path("new/broken.png").write_bytes(b"no image")
    assert call(monkeypatch, "predict", "one", "new", "--masks", "out") == 0
    rows = {row["path"]: row for row in csv.DictReader(capfd.readouterr().out.splitlines())}
    assert rows["broken.png"]["error"] and not rows["broken.png"]["mask"]
    written = sorted(path.relative_to("out").as_posix() for path in Path("out").rglob("*.png"))
    assert written == sorted(row["mask"] for row in rows.values() if row["mask"]) and len(written) == 3, "one of each"
    said = decode_mask(Path("out", rows["wide.png"]["mask"]).read_bytes())
    truth = np.repeat([0, 1, 2], 32)[None].repeat(30, 0)
    assert said.shape == (30, 96) and (said == truth).mean() > 0.8
    assert decode_mask(Path("out/deep/tall.png").read_bytes()).shape == (96, 30)
    assert call(monkeypatch, "predict", "one", "new", "--masks", "out") == 2, "it is there"
    assert "--force" in capfd.readouterr().err
    assert call(monkeypatch, "predict", "one", "new", "--masks", "out", "--force") == 0
    assert call(monkeypatch, "predict", "one", "masks", "--masks", "runs", "--force") == 2, "never what is no mask"
    Path("pictures").mkdir()
    cv2.imwrite("pictures/mine.png", np.zeros((8, 8), np.uint8))
    assert call(monkeypatch, "predict", "one", "new", "--masks", "pictures", "--force") == 2, "nor a person's images"
    Path("pictures/mine.png").unlink()
    os.mkfifo("pictures/pipe.png")
    assert call(monkeypatch, "predict", "one", "new", "--masks", "pictures", "--force") == 2, "nor what never ends"
    shutil.rmtree("new")
    Path("new").mkdir()
    Path("new/broken.png").write_bytes(b"no image")
    assert call(monkeypatch, "predict", "one", "new", "--masks", "none") == 1
    assert not Path("none").exists() and not list(Path().glob(".none*"))


def test_an_exported_program_has_the_masks(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    assert call(monkeypatch, "export", "one", "m.pt2", "--json") == 0
    about = json.loads(capfd.readouterr().out)
    assert about["scores"] == "float32 (B, 3, 32, 32), probability of each class of each pixel"
    scores = torch.export.load("m.pt2").module()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert scores.shape == (2, 3, 32, 32) and torch.allclose(scores.sum(1), torch.ones(2, 32, 32), atol=1e-5)
    assert call(monkeypatch, "export", "one", "m.onnx", "--json") == 0
    onnxruntime = pytest.importorskip("onnxruntime")
    (same,) = onnxruntime.InferenceSession("m.onnx").run(None, {"images": np.zeros((2, 3, 32, 32), np.uint8)})
    assert np.allclose(same, scores.detach().numpy(), atol=1e-4)


REFUSED = {
    "mixup": (["--model.mixup", "0.2"], "model.mixup moves or mixes"),
    "trivial_augment": (["--model.trivial_augment", "true"], "model.trivial_augment moves or mixes"),
    "a network of images": (["--model.backbone", "resnet18"], "'resnet18' gives no class for each pixel"),
    "another task's loss": (["--model.loss", "binary_cross_entropy"], "give cross_entropy_dice or cross_entropy"),
    "balance": (["--data.balance", "1"], "needs a class for each sample"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_masks_cannot_obey_are_one_sentence(
    case: str, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    arguments, sentence = REFUSED[case]
    assert start(monkeypatch, "--run", "bad", *arguments) == 2
    said = capfd.readouterr().err.strip()
    assert sentence in said and "\n" not in said and not Path("runs/bad").exists()


def test_networks_of_pixels_are_refused_for_classes_and_masks_for_other_models(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    with pytest.raises(InputError, match="small_unet gives a class for each pixel"):
        model(task="single_label")
    dataset = testing.tiny_dataset(run / "classes")
    assert call(monkeypatch, "evaluate", "one", "--data", dataset) == 2
    assert "trained for segmentation" in capfd.readouterr().err


# -- loss and networks
@pytest.mark.parametrize("loss", ["cross_entropy_dice", "cross_entropy"])
def test_the_loss_is_what_the_paper_says_of_the_pixels_that_count(loss: str) -> None:
    torch.manual_seed(1)
    logits, targets = torch.randn(4, 3, 6, 6, dtype=torch.float64), torch.randint(0, 3, (4, 6, 6))
    targets[:, :2], targets[3] = 255, 255
    found = Segmentation(3, loss=loss).losses(logits, targets)
    for row in range(3):
        said, truth = logits[row, :, 2:].softmax(0).flatten(1), targets[row, 2:].flatten()
        wanted = torch.nn.functional.one_hot(truth, 3).T.double()
        value = -(wanted * said.log()).sum(0).mean()
        if loss == "cross_entropy_dice":
            value += 1 - ((2 * (said * wanted).sum(1) + 1) / ((said + wanted).sum(1) + 1)).mean()
        assert found[row].item() == pytest.approx(value.item())
    assert found[3] == 0, "nothing counts"
    changed = logits.clone()
    changed[:, :, :2] = 9.0
    assert torch.allclose(Segmentation(3, loss=loss).losses(changed, targets), found), "255 plays no part"


def test_all_networks_give_a_class_for_each_pixel() -> None:
    for name in segmentation.names():
        if not name.endswith("101"):
            network = segmentation.build(name, 5).eval()
            with torch.no_grad():
                assert network(torch.zeros(2, 3, 40, 56)).shape == (2, 5, 40, 56), name
    with torch.no_grad():
        assert segmentation.SmallUNet(4).eval()(torch.zeros(1, 3, 27, 33)).shape == (1, 4, 27, 33)


def test_an_encoder_begins_with_the_weights_of_its_classification_network() -> None:
    name, known = "lraspp_mobilenet_v3_large", torchvision.models.mobilenet_v3_large(weights=None).state_dict()
    assert segmentation.encoder(name) == "mobilenet_v3_large" and not segmentation.encoder("small_unet")
    network = segmentation.build(name, 3)
    keys = {f"backbone.{key.removeprefix('features.')}": value for key, value in known.items()}
    anew = fit(network, weights._encoder(network, known, segmentation.ENCODER), name, "imagenet", name, "backbone.")
    own = network.state_dict()
    assert anew and all(key.startswith("classifier.") for key in anew)
    assert all(torch.equal(own[key], value) for key, value in keys.items() if key in own)
    with pytest.raises(InputError, match="does not fit"):
        fit(network, {}, name, "imagenet", name, "backbone.")


# -- pictures and files
def test_squares_cover_an_image_and_sums_decide_where_they_overlap() -> None:
    for height, width, side in itertools.product((1, 5, 16, 33), (1, 7, 16, 40), (1, 4, 5)):
        if side <= min(height, width):
            seen = np.zeros((height, width), int)
            for top, left in corners(height, width, side):
                assert 0 <= top <= height - side and 0 <= left <= width - side
                seen[top : top + side, left : left + side] += 1
            assert seen.all()
    first, second = np.zeros((2, 2, 4, 4), np.float32)
    first[0], first[1], second[0], second[1] = 0.6, 0.4, 0.1, 0.9
    assert joined((4, 6), 4, [(0, 0), (0, 2)], [first, second])[0].tolist() == [0, 0, 1, 1, 1, 1]


def test_a_mask_s_file_has_the_classes_for_programs_and_colours_for_people() -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    data = palette_png(mask)
    assert np.array_equal(decode_mask(data), mask)
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert shown is not None and np.array_equal(shown, palette()[mask])
    assert palette()[[0, 1, 2, 15, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [224, 224, 192],
    ]
    assert len({tuple(colour) for colour in palette().tolist()}) == 256


def test_differences_are_red_only_where_pixels_count() -> None:
    image, truth = np.full((4, 4, 3), 90, np.uint8), np.zeros((4, 4), np.uint8)
    truth[0], truth[1] = 255, 1
    said = np.zeros((4, 4), np.uint8)
    strip = side_by_side(image, truth, said)
    red = (strip[:, -4:] == WRONG).all(2)
    assert red[1].all() and red.sum() == 4
    assert dict(overlaps(truth, said)) == {0: 8 / 12, 1: 0.0}
