"""The benchmarks of loaders and of GPUs run with what a project has installed, and their figures become tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from template import ROOT, run, succeed

pytestmark = pytest.mark.project
PHOTOS = """
import cv2, numpy, pathlib
random = numpy.random.default_rng(0)
for number in range(40):
    folder = pathlib.Path({folder!r}, str(number % 2))
    folder.mkdir(parents=True, exist_ok=True)
    coarse = random.integers(0, 255, (15, 20, 3), numpy.uint8)
    cv2.imwrite(str(folder / f"{{number}}.jpg"), cv2.resize(coarse, (500, 375)))
"""
TRIAL = ["--rounds", "1", "--seconds", "0.3", "--warmup", "0.1", "--again", "0", "--epoch", "256"]


@pytest.fixture(autouse=True)
def warm_children(warm_python_of_project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a benchmark starts itself is warm, too."""
    monkeypatch.setenv("PYTHONEXECUTABLE", warm_python_of_project)


@pytest.fixture(scope="module")
def photos(project: Path, warm_python_of_project: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    succeed([warm_python_of_project, "-c", PHOTOS.format(folder=str(folder))], project)
    return folder


def test_loaders_are_compared(project: Path, warm_python_of_project: str, photos: Path, tmp_path: Path) -> None:
    """Ours, the bare decoder and what the project's own libraries can do; a loader that is not there is named."""
    command = [warm_python_of_project, str(ROOT / "benchmarks/loaders.py"), "--images", str(photos), *TRIAL]
    command += ["--only", "ours,bare,webdataset,originals,ffcv", "--cases", "256short"]
    command += ["--work", str(tmp_path / "work"), "--json", str(tmp_path / "loaders.json")]
    said = succeed(command, project)
    (case,) = json.loads((tmp_path / "loaders.json").read_text())["cases"]
    assert [row["name"] for row in case["rows"]] == ["ours", "bare", "webdataset", "originals"]
    assert case["images"] >= 256 and case["size"] == 224
    assert "no module ffcv" in case["missing"]["ffcv"] and "Not measured: ffcv" in said
    means = [row["mean_pixel"] for row in case["rows"]]
    assert max(means) - min(means) < 15, means  # all decode the same images
    for row in case["rows"]:
        assert row["min"] == row["median"] > 0 and row["memory_mb"] > 10, row
        assert row["ours_is_times"][0] == round(case["rows"][0]["rates"][0] / row["rates"][0], 2), row
    assert case["pixel_error"]["webdataset"] == 0 < case["pixel_error"]["ours"] < case["pixel_error"]["OpenCV area"]

    (work,) = (path for path in (tmp_path / "work").iterdir() if path.is_dir())
    command = [warm_python_of_project, str(ROOT / "benchmarks/decoders.py"), "--work", str(work), "--cases", "256short"]
    succeed([*command, "--images", "4", "--rounds", "1", "--json", str(tmp_path / "decoders.json")], project)
    ways = json.loads((tmp_path / "decoders.json").read_text())["256short"]
    parts = [name for name in ways["decoders"] if "crop" in name]
    assert len(parts) == 4 and all(ways["decoders"][name][1] == 0 for name in parts), "the pixels of the whole image"
    assert ways["filters"]["PIL, antialiased"][1] == 0
    assert len(ways["PNG"]) == 4 and all(error == 0 for _, error in ways["PNG"].values())

    docs = tmp_path / "docs"
    (docs / "results").mkdir(parents=True)
    (docs / "performance.md").write_text("before\n<!-- loaders -->\nstale\n<!-- end -->\nbehind\n")
    command = [warm_python_of_project, str(ROOT / "benchmarks/report.py"), str(tmp_path / "loaders.json")]
    succeed([*command, "--docs", str(docs)], ROOT)
    page = (docs / "performance.md").read_text()
    assert page.startswith("before\n") and page.endswith("\nbehind\n") and "stale" not in page
    assert f"| {case['rows'][1]['median']:,} |" in page
    assert (docs / "loaders.svg").read_text().count("<rect") == 1 + len(case["rows"])


def test_doors_are_compared(project: Path, warm_python_of_project: str, photos: Path, tmp_path: Path) -> None:
    """The loader with a mask, with a transform, and webdataset's stages behind its order."""
    command = [warm_python_of_project, str(ROOT / "benchmarks/loaders.py"), "--images", str(photos), *TRIAL, "--doors"]
    command += ["--only", "ours,mask,torchvision,samples", "--cases", "256short"]
    said = succeed([*command, "--work", str(tmp_path / "work"), "--json", str(tmp_path / "doors.json")], project)
    (case,) = json.loads((tmp_path / "doors.json").read_text())["cases"]
    assert [row["name"] for row in case["rows"]] == ["ours", "mask", "torchvision", "samples"], said
    assert case["missing"] == {} and all(row["median"] > 0 for row in case["rows"])
    command = [warm_python_of_project, str(ROOT / "benchmarks/report.py"), str(tmp_path / "doors.json")]
    (tmp_path / "results").mkdir()
    (tmp_path / "performance.md").write_text("before\n<!-- doors -->\nstale\n<!-- end -->\n")
    succeed([*command, "--block", "doors", "--docs", str(tmp_path)], ROOT)
    page = (tmp_path / "performance.md").read_text()
    assert f"| {case['rows'][1]['median']:,} |" in page and not (tmp_path / "loaders.svg").exists()


def test_unknown_names_are_refused(project: Path, warm_python_of_project: str) -> None:
    done = run([warm_python_of_project, str(ROOT / "benchmarks/loaders.py"), "--only", "ours,nobody"], project)
    assert done.returncode and "no loader nobody" in done.stderr


def gpu(python: str, project: Path, folder: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """A trial of gpu.py without a GPU: its exit status, what it said, and the figures."""
    command = [python, str(ROOT / "benchmarks/gpu.py"), "--device", "cpu", "--quick", "--minutes", "4"]
    command += ["--work", str(folder / "work"), "--json", str(folder / "gpu.json"), *arguments]
    done = run(command, project)
    return done.returncode, done.stdout + done.stderr, json.loads((folder / "gpu.json").read_text())


def test_the_gpu_command_without_a_gpu(
    project: Path, warm_python_of_project: str, photos: Path, tmp_path: Path
) -> None:
    """Some parts, in small; what is not there is named; the tables hold what the JSON does."""
    chosen = ["--only", "forecast,waits,fashion", "--data", str(photos), "--fashion", str(tmp_path / "none")]
    status, said, figures = gpu(warm_python_of_project, project, tmp_path, *chosen)
    assert status == 0, said
    parts = {name: part["status"] for name, part in figures["parts"].items()}
    assert parts == dict.fromkeys(["facts", "data", "forecast", "waits", "fashion"], "done"), said
    found = {name: part["figures"] for name, part in figures["parts"].items()}
    forecast = found["forecast"]["small_cnn"]
    assert forecast["stages"]["both"]["images_per_second"] > 0 < forecast["ratio"]
    assert forecast["forecast"]["seconds"] > 0 and len(found["forecast"]["rounds"]["ratio"]) == 1
    assert found["waits"]["steps_that_waited"] == 1, "the check of the loss, every 10 steps"
    assert "train/nan_guard.py" in next(iter(found["waits"]["places"]))
    assert "has no Fashion-MNIST" in found["fashion"]["left_out"]

    page = tmp_path / "gpu.md"
    page.write_text("before\n<!-- gpu -->\nstale\n<!-- end -->\nbehind\n")
    command = [warm_python_of_project, str(ROOT / "benchmarks/gpu.py"), "--tables", str(tmp_path / "gpu.json")]
    succeed([*command, "--doc", str(page)], project)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nbehind\n") and "stale" not in text
    assert "say nothing about a GPU" in text and "steps, of which 1 waited" in text
    assert (
        f"| {forecast['ratio']:.3f} |" in text and f"{forecast['stages']['both']['images_per_second']:,.0f} |" in text
    )
    assert json.loads((tmp_path / "results" / "gpu.json").read_text()) == figures


def test_a_part_that_fails_is_recorded_and_the_others_go_on(
    project: Path, warm_python_of_project: str, tmp_path: Path
) -> None:
    status, said, figures = gpu(
        warm_python_of_project, project, tmp_path, "--only", "loop,facts", "--data", str(tmp_path / "none")
    )
    parts = figures["parts"]
    assert status == 1 and parts["facts"]["status"] == "done"
    assert parts["data"]["status"] == "failed" and "no JPEG files" in parts["data"]["error"]
    assert parts["loop"] == {"status": "left out", "error": "data failed"} and "no JPEG files" in said
