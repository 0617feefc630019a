"""`predict` and `export`: a trained model at work, on images of any kind and outside this project."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from lightning_shards.inference import export, images
from lightning_shards.train.trained_model import best_model
from team import __main__ as commands
from team.model import ImageModel

from . import PATIENCE
from .conftest import NAMES, encoded, picture, write_dataset
from .in_place import PACKAGE, PROJECT
from .samples import write_tree
from .servers import Web
from .test_train import SMALL, project, start, summary

__all__ = ["project"]  # a fixture
ENVIRONMENT = dict(os.environ)


@pytest.fixture(scope="module")
def learned(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `runs/` of a training that knows the colours."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL | {"data": {**SMALL["data"], "path": str(dataset)}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert start(patch, "--run", "one") == 0
    return folder / "runs"


@pytest.fixture
def run(learned: Path, project: Path) -> Path:
    """A folder with that run, and images of all classes in `new/`."""
    shutil.copytree(learned, project / "runs")
    for number in range(6):
        folder = project / "new" / NAMES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encoded(number))
    return project


def call(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """Run a command in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", [PACKAGE, *map(str, arguments)])
    try:
        return commands.main()
    except SystemExit as end:
        return int(end.code or 0)


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_any_source_of_images_is_predicted(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    files = sorted(path.relative_to(run / "new") for path in (run / "new").glob("*/*"))
    with zipfile.ZipFile("new.zip", "w") as archive:
        for path in files:
            archive.write(run / "new" / path, path)
        archive.writestr("notes.txt", "no image")
    (run / "new" / "notes.txt").write_text("no image")
    Path("new/list.csv").write_text("file\n" + "".join(f"{path}\n" for path in files))
    Path("list.csv").write_text("path\n" + "".join(f"{path}\n" for path in files))
    capfd.readouterr()
    sources = [
        ["new"],
        ["new.zip"],
        ["new/list.csv", "--path-column", "file"],
        ["list.csv", "--images", "new"],
        ["list.csv", "--images", "new.zip"],
    ]
    told = []
    for source in sources:
        assert call(monkeypatch, "predict", "last", *source) == 0
        told.append(table(capfd.readouterr().out))
    assert all(rows == told[0] for rows in told)
    assert [row["path"] for row in told[0]] == [str(path) for path in files]
    assert all(row["predicted"] == Path(row["path"]).parent.name and not row["error"] for row in told[0])
    assert call(monkeypatch, "predict", "one", "new/red/0.png", "--json", "--scores") == 0
    (line,) = map(json.loads, capfd.readouterr().out.splitlines())
    assert line["path"] == "new/red/0.png" and line["predicted"] == "red" and list(line["scores"]) == NAMES
    assert line["score"] == max(line["scores"].values()) and sum(line["scores"].values()) == pytest.approx(1, abs=1e-4)


def test_scores_are_those_of_the_best_weights_for_the_centre(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    weights = torch.load("runs/one/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    model = ImageModel(NAMES, backbone="small_cnn", image_size=16).eval()
    model.load_state_dict(weights)
    shutil.rmtree("new")
    cut = []
    for number in range(5):
        image = np.random.default_rng(number).integers(0, 256, (20, 36, 3), dtype=np.uint8)
        write_tree(run / "new", {f"{number}.png": cv2.imencode(".png", image)[1].tobytes()})
        cut.append(cv2.resize(image[1:19, 9:27, ::-1], (16, 16)))  # 0.875 of 20 pixels
    with torch.inference_mode():
        logits = model(torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2))
    wanted = (logits / weights["calibration.temperature"]).softmax(1)
    assert call(monkeypatch, "predict", "one", "new", "--json", "--scores") == 0
    found = [list(json.loads(line)["scores"].values()) for line in capfd.readouterr().out.splitlines()]
    assert np.allclose(found, wanted, atol=2e-6) and np.ptp(wanted.numpy(), axis=0).max() > 0.01


def test_predictions_of_a_split_are_those_that_were_measured(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, web: Web, tmp_path: Path
) -> None:
    monkeypatch.setattr(images.machine, "cache_folder", lambda: tmp_path / "cache")
    data = summary("one")["dataset"]["path"]
    assert call(monkeypatch, "predict", "one", data, "--out", "a.csv", "--scores") == 0
    rows = table(Path("a.csv").read_text())
    assert rows[0]["path"] == "test/000000.tar/00000000" and len(rows) == 21
    right = [row["predicted"] == NAMES[int(Path(row["path"]).name) % 3] for row in rows]
    assert np.mean(right) == pytest.approx(summary("one")["metrics"]["test/accuracy"], abs=1e-6)
    assert list(rows[0]) == ["path", "predicted", "score", "error", *(f"scores:{name}" for name in NAMES)]
    assert call(monkeypatch, "predict", "one", web.url, "--out", "b.csv", "--scores") == 0
    assert Path("b.csv").read_text() == Path("a.csv").read_text(), "behind a URL, too"
    assert call(monkeypatch, "predict", "one", data, "--split", "val", "--json") == 0
    assert len(capfd.readouterr().out.splitlines()) == 21


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_the_other_tasks_predict_and_export(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, task: str
) -> None:
    root = write_dataset(tmp_path / task, task=task)
    assert start(monkeypatch, "--run", task, "--data.path", str(root), "--trainer.max_epochs", "6") == 0
    capfd.readouterr()
    scores = ["--scores"] * (task == "multi_label")
    assert call(monkeypatch, "predict", task, root, *scores) == 0
    rows = table(capfd.readouterr().out)
    if task == "multi_label":
        assert np.mean([row["predicted"] == NAMES[number % 3] for number, row in enumerate(rows)]) > 0.9
        assert list(rows[0]) == ["path", "predicted", "error", *(f"scores:{name}" for name in NAMES)]
        assert call(monkeypatch, "predict", task, root, "--json") == 0
        lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert ["|".join(line["predicted"]) for line in lines] == [row["predicted"] for row in rows]
    else:
        assert list(rows[0]) == ["path", "predicted:shade", "error"]
        assert call(monkeypatch, "predict", task, root, "--scores") == 2
        assert "--scores gives probabilities of classes, and regression gives numbers" in capfd.readouterr().err
        assert np.mean([abs(float(row["predicted:shade"]) - number % 3 / 2) for number, row in enumerate(rows)]) < 0.2
    assert call(monkeypatch, "export", task, "m.pt2") == 0
    small = torch.from_numpy(np.stack([picture(number, 16) for number in range(3)])).permute(0, 3, 1, 2)
    scores = torch.export.load("m.pt2").module()(small)
    assert not scores.requires_grad and scores.shape == (3, 3 if task == "multi_label" else 1)
    model = best_model(ImageModel, Path("runs") / task)[0].eval()
    assert torch.allclose(scores, model.objective.scores(model.calibration(model(small))), atol=1e-5)


def test_what_cannot_be_decoded_is_said_and_the_rest_predicted(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (run / "new" / "broken.png").write_bytes(encoded(0)[:40])
    (run / "new" / "other.gif").write_bytes(b"GIF89a")
    (run / "new" / "gone.jpg").symlink_to("nowhere.jpg")
    odd = os.fsdecode(b"odd \xff.png")
    (run / "new" / odd).write_bytes(encoded(1))
    capfd.readouterr()
    assert call(monkeypatch, "predict", "one", "new") == 0
    printed = capfd.readouterr()
    rows = {row["path"]: row for row in table(printed.out)}
    assert len(rows) == 10 and "3 could not be decoded" in printed.err
    assert "damaged" in rows["broken.png"]["error"] and "no JPEG" in rows["other.gif"]["error"]
    assert "No such file" in rows["gone.jpg"]["error"] and not rows["gone.jpg"]["predicted"]
    assert call(monkeypatch, "predict", "one", "new", "--out", "all.csv") == 0
    assert os.fsencode(odd) + b",green," in Path("all.csv").read_bytes()
    assert call(monkeypatch, "predict", "one", "new", "--json") == 0
    capfd.readouterr()
    assert call(monkeypatch, "predict", "one", "new/broken.png", "--out", "x.csv") == 1
    assert "no image of new/broken.png could be decoded" in capfd.readouterr().err
    assert not list(Path().glob("x.csv*"))


def test_damaged_members_of_a_zip_are_rows(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    with zipfile.ZipFile("new.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"{number}.png", encoded(number))
        places = [archive.getinfo(f"{number}.png").header_offset for number in range(4)]
    data = bytearray(Path("new.zip").read_bytes())
    data[places[1] + 60 : places[1] + 70] = bytes(10)  # in the compressed bytes
    central = data.index(b"PK\1\2", data.index(b"PK\1\2", data.index(b"PK\1\2") + 1) + 1)
    data[places[2] + 6] = data[central + 8] = 1  # encrypted, it says
    Path("new.zip").write_bytes(data)
    capfd.readouterr()
    assert call(monkeypatch, "predict", "one", "new.zip") == 0
    rows = table(capfd.readouterr().out)
    assert [bool(row["error"]) for row in rows] == [False, True, True, False]
    assert "encrypted" in rows[2]["error"] and rows[3]["predicted"] == "red"


def test_ctrl_c_breaks_off_a_download(run: Path, web: Web, warm_python: str) -> None:
    web.faults["test/000000.tar"] = ["stall"]
    environment = {**ENVIRONMENT, "XDG_CACHE_HOME": str(run / "cache")}
    command = [warm_python, "-m", PACKAGE, "predict", "one", web.url, "--out", "x.csv"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not web.gets["test/000000.tar"] and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and said.splitlines()[-1] == "stopped; nothing was written"
    assert not list(Path().glob("x.csv*"))


@pytest.mark.parametrize("arguments", [["predict", "one", "many", "--out", "x.csv"], ["export", "one", "x.pt2"]])
def test_a_full_disk_is_one_sentence(run: Path, arguments: list[str]) -> None:
    """Files may have 4 KB."""
    write_tree(run / "many", {f"{number}.png": encoded(0, side=8) for number in range(300)})
    process = subprocess.run(
        [sys.executable, "-m", PACKAGE, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY)),
    )
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1] == f"error: {arguments[-1]} could not be written (File too large)"
    assert not list(Path().glob("x.*"))


def test_a_reader_that_goes_away_is_no_failure(run: Path, warm_python: str) -> None:
    for number in range(3000):
        (run / "new" / f"{number}.png").write_bytes(encoded(number, side=8))
    command = [warm_python, "-m", PACKAGE, "predict", "last", "new"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    assert process.stdout.readline() == "path,predicted,score,error\n"
    process.stdout.close()
    assert process.wait(PATIENCE) == 0 and "Traceback" not in process.stderr.read()
    process.stderr.close()


ELSEWHERE = """
import json, numpy, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
names = json.loads(session.get_modelmeta().custom_metadata_map["about"])["targets"]
scores = session.run(None, dict(images=numpy.load("pixels.npy")))[0]
print(json.dumps([names, scores.tolist()]))
"""


def alone(code: str) -> str:
    """What a program prints that does not import this project."""
    code += f"\nimport sys\nassert not [name for name in sys.modules if name.startswith({PACKAGE!r})]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_exported_program_runs_as_the_readme_says(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    assert call(monkeypatch, "export", "last", "model.pt2", "--json") == 0
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert told["targets"] == NAMES and told["crop"] == {"size": 16, "center": 0.875} and told["run"] == "one"
    cv2.imwrite("photo.jpg", cv2.resize(picture(4, 20), (60, 40), interpolation=cv2.INTER_CUBIC)[:, :, ::-1])
    (code,) = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), flags=re.DOTALL)
    found = ast.literal_eval(alone(code))
    assert call(monkeypatch, "predict", "one", "photo.jpg", "--json", "--scores") == 0
    wanted = json.loads(capfd.readouterr().out)["scores"]
    assert found == pytest.approx(wanted, abs=0.05) and max(wanted, key=wanted.__getitem__) == "green"


def test_an_onnx_model_says_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")  # which `make setup` brings
    assert call(monkeypatch, "export", "last", "model.onnx") == 0
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, 16, 16), dtype=np.uint8)
    np.save("pixels.npy", pixels)
    names, scores = json.loads(alone(ELSEWHERE))
    model = best_model(ImageModel, run / "runs" / "one")[0].eval()
    with torch.inference_mode():
        assert names == NAMES and np.allclose(scores, model.scores(torch.from_numpy(pixels)), atol=1e-5)


def test_metrics_as_json_are_alone_on_standard_output(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    capfd.readouterr()
    assert call(monkeypatch, "evaluate", "one", "--json") == 0
    assert json.loads(capfd.readouterr().out)["test/accuracy"] == summary("one")["metrics"]["test/accuracy"]


def test_an_export_that_differs_is_not_kept(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    scores = export._run
    monkeypatch.setattr(export, "_run", lambda *given: scores(*given) + 0.01)
    assert call(monkeypatch, "export", "one", "m.pt2") == 1
    assert "differs by 0.01" in capfd.readouterr().err and not list(Path().glob("m.pt2*"))


def test_commands_of_the_readme_work(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = re.findall(r"^uv run .*?python -m \S+ ((?:predict|export) .*)$", (PROJECT / "README.md").read_text(), re.M)
    assert len(lines) == 3
    pytest.importorskip("onnxruntime")
    for line in lines:
        arguments = shlex.split(line.replace("path/to/images", "new"), comments=True)
        assert call(monkeypatch, *arguments) == 0 and Path(arguments[-1]).stat().st_size > 100


BAD = [
    (["predict", "nobody", "new"], "there is no run 'nobody'"),
    (["predict", "one", "nowhere"], "nowhere does not exist"),
    (["predict", "one", "runs"], "runs has no images"),
    (["predict", "one", ""], "what to work on is empty"),
    (["predict", "one", "bad.zip"], "bad.zip is no whole zip"),
    (["predict", "one", "up.csv"], "row 1 has the path '../x.png'"),
    (["predict", "one", "up.csv", "--path-column", "image"], "no column 'image'"),
    (["predict", "one", "up.csv", "--images", "small.yaml"], "is no folder and no zip"),
    (["predict", "one", "up.csv", "--images", "nowhere.zip"], "is no folder and no zip"),
    (["predict", "one", "new", "--images", "new"], "new is no table: leave it out"),
    (["predict", "one", "new", "--path-column", "path"], "new is no table: leave it out"),
    (["predict", "one", "new", "--split", "test"], "new is no such dataset: leave it out"),
    (["predict", "one", "nowhere", "--split", "test"], "nowhere does not exist"),
    (["predict", "one", "http://127.0.0.1:9/x.csv", "--images", "new"], "x.csv is no table: leave it out"),
    (["predict", "last", "--flip", ""], "what to work on is empty"),
    (["predict", "one", "DATA", "--split", ""], "--split is empty: name something, or leave it out"),
    (["predict", "one", "DATA", "--out="], "--out is empty: name something, or leave it out"),
    (["predict", "one", "twice.csv"], "has two columns 'path'"),
    (["predict", "one", "loop"], "loop cannot be read (Too many levels of symbolic links"),
    (["predict", "one", "x" * 300], "cannot be read (File name too long"),
    (["predict", "one", "up.csv", "--out", "up.csv", "--force"], "up.csv is what is read"),
    (["predict", "one", "new", "--out", "new", "--force"], "new is no file"),
    (["predict", "one", "DATA", "--split", "extra"], "no split 'extra'"),
    (["predict", "one", "new", "--out", "small.yaml"], "small.yaml exists"),
    (["predict", "one", "new", "--out", "no/where.csv"], "there is no folder no"),
    (["predict", "empty", "new"], "has no checkpoint yet"),
    (["export", "one", "m.pth"], "ends with none of .pt2, .onnx"),
    (["export", "one", "small.yaml"], "ends with none of .pt2, .onnx"),
    (["export", "one", "no/m.pt2"], "there is no folder no"),
    (["export", "one", "old.pt2"], "old.pt2 exists"),
]


def test_bad_input_is_one_sentence_and_nothing_is_written(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    Path("bad.zip").write_bytes(b"PK no zip")
    Path("up.csv").write_text("path\n../x.png\n")
    Path("twice.csv").write_text("path,path\nx.png,x.png\n")
    Path("loop").mkdir()
    Path("loop/self").symlink_to("self")
    Path("old.pt2").write_bytes(b"old")
    Path("runs/empty").mkdir()
    Path("runs/empty/config.yaml").write_text(Path("runs/one/config.yaml").read_text())
    before = sorted(Path().rglob("*"))
    data = summary("one")["dataset"]["path"]
    capfd.readouterr()
    for arguments, sentence in BAD:
        assert call(monkeypatch, *(data if word == "DATA" else word for word in arguments)) == 2, arguments
        printed = capfd.readouterr()
        lines = printed.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and sentence in lines[0], lines
        assert not printed.out
    assert sorted(Path().rglob("*")) == before and Path("old.pt2").read_bytes() == b"old"
    config = yaml.safe_load(Path("runs/one/config.yaml").read_text())
    for name in ("eval_crop", "cache", "cache_bytes"):  # which an older version did not have
        del config["data"][name]
    Path("runs/one/config.yaml").write_text(yaml.safe_dump(config))
    assert call(monkeypatch, "predict", "one", "new") == call(monkeypatch, "predict", "one", data) == 0
    capfd.readouterr()
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert call(monkeypatch, "export", "one", "m.onnx") == 2
    assert "onnx is not installed: `uv run --extra onnx" in capfd.readouterr().err
    assert call(monkeypatch, "export", "one", "old.pt2", "--force") == 0
    assert len(Path("old.pt2").read_bytes()) > 1000
