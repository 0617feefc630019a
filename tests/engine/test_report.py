"""report.html: what it says is what the run's files say, a browser opens it alone, and it says what is missing."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import train
from lightning_shards.reporting import charts, numbers, report
from lightning_shards.runs.files import read
from team import __main__ as commands
from team.model import ImageModel

from . import PATIENCE
from .conftest import NAMES, picture

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no browser here: install chromium to open the report in it")


@pytest.fixture
def copy(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained run's folder, in a project of its own, to be changed."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "first"


def text(page: str) -> str:
    """What a person reads: without tags, styles and drawings' paths."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def told(folder: Path, name: str = "evaluation/test.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def change(folder: Path, name: str, **values: Any) -> None:
    """Change or (with None) remove keys of a JSON file of the run."""
    content = {**told(folder, name), **values}
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m it", *arguments])
    try:
        return commands.main()
    except SystemExit as end:
        return int(end.code or 0)


def test_the_page_says_what_the_files_say(trained: Path) -> None:
    page = (trained / "runs/first/report.html").read_text()
    read, summary = text(page), told(trained / "runs/first", "summary.json")
    for figure in (
        f"{summary['metrics']['test/accuracy']:.1%}",
        "test split of 60 images",
        numbers.count(summary["images_seen"]),
        numbers.duration(summary["seconds"]),
        numbers.count(summary["images_per_second"]),
        f"{summary['data_wait_fraction']:.1%}",
        summary["hardware"],
        summary["versions"]["torch"],
        summary["dataset"]["fingerprint"],
        "uv run train.py --config runs/first/config.yaml",
        "small_cnn",
        *NAMES,
    ):
        assert figure in read, figure
    assert summary["skipped"] == 4 and "2 samples could not be read" in read
    assert "00000003" in read and "00000050" in read and "train/000000.tar" in read
    assert "What is missing" not in read
    for title in ("Loss", "Accuracy", "Learning rate", "Confusion matrix", "Images per second"):
        assert f'aria-label="{title}"' in page, title
    assert len(page) < 1_000_000
    ids = re.findall(r'[ "]id="([^"]+)"', page)
    assert not [word for word in ("<script", 'http-equiv="refresh', "<link", "<iframe") if word in page] and ids
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?\s*(?:https?:|//)""", page), "nothing from elsewhere"


def test_counts_and_images_are_those_of_the_test_split(trained: Path) -> None:
    found, summary = told(trained / "runs/first"), told(trained / "runs/first", "summary.json")
    matrix = np.array(found["counts"]["confusion"])
    assert matrix.sum(axis=1).tolist() == [20, 20, 20]
    assert matrix.trace() / 60 == pytest.approx(summary["metrics"]["test/accuracy"])
    assert 0 < matrix.trace() < 60, "the model makes mistakes, else this test shows nothing"
    examples, wrong = found["examples"], int(60 - matrix.trace())
    assert len(examples["right"]) == min(12, 60 - wrong) and len(examples["surest"]) == min(12, wrong)
    shown = [example["id"] for kind in examples.values() for example in kind]
    assert len(set(shown)) == len(shown), "no image is shown twice"
    sure = [example["predicted"][0][1] for example in examples["surest"]]
    assert sure == sorted(sure, reverse=True)
    for kind, group in examples.items():
        for example in group:
            assert example["actual"] == [example["id"] % 3], "the sample's own class"
            assert (example["predicted"][0][0] == example["actual"][0]) == (kind == "right")
            data = base64.b64decode(example["image"].partition(",")[2])
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            assert pixels is not None and pixels.shape == (16, 16, 3)
            colour = picture(example["id"]).mean(axis=(0, 1))
            assert np.abs(pixels.mean(axis=(0, 1))[::-1] - colour).max() < 4, "the sample's own image"
            assert (example["shard"], example["number"]) == ("test/000000.tar", example["id"])


def test_the_command_makes_the_same_page_again(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    before = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    for name in ("first", "runs/first", "last"):
        assert run_command(monkeypatch, "report", name) == 0
        assert capsys.readouterr().out.strip() == "runs/first/report.html"
        assert (copy / "report.html").read_text() == before
    assert not list(copy.glob("*.tmp"))


def test_a_run_without_a_validation_has_no_column_of_it(copy: Path) -> None:
    assert "<th>train</th><th>val</th><th>test</th>" in report.render(report.read(copy))
    metrics = told(copy, "summary.json")["metrics"]
    kept = {name: value for name, value in metrics.items() if not name.startswith("val/")}
    change(copy, "summary.json", metrics=kept | {"test/temperature": 1.5})
    page = report.render(report.read(copy))
    assert "<th>train</th><th>test</th>" in page and "<th>temperature</th>" in page
    change(copy, "summary.json", metrics=kept | {"test/temperature": 1.0})
    page = report.render(report.read(copy))
    assert "<th>calibration error</th>" in page and "<th>temperature</th>" not in page and "unscaled</th>" not in page


def test_what_is_no_run_is_one_sentence(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    Path("runs/notes").mkdir()
    Path("other").mkdir()
    for name, words in (
        ("nowhere", "there is no run 'nowhere'"),
        ("notes", "has no config.yaml"),
        ("other/first", "cannot be a run's name"),
        ("../x", "cannot be a run's name"),
    ):
        assert run_command(monkeypatch, "report", name) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert not list(Path().rglob("notes/*")) and not list(Path().rglob("other/*"))


def test_a_killed_run_has_a_report_that_says_so(copy: Path) -> None:
    (copy / "summary.json").unlink()
    with (copy / "metrics.csv").open("a") as file:
        file.write("99,0.1,0.")  # torn
    read = text(report.write(copy).read_text())
    assert "unfinished" in read and "summary.json is not there" in read and "--resume first" in read
    assert "not measured" in read and "test split, 60 images" in read.lower()


def test_a_run_that_went_on_after_its_summary_is_unfinished(copy: Path) -> None:
    step = told(copy, "summary.json")["steps"]
    with (copy / "metrics.csv").open("a") as file:
        file.write(f"{step + 1},0.1\n")
    assert "unfinished" in text(report.write(copy).read_text())


def test_a_run_of_an_older_version_names_what_it_lacks(copy: Path) -> None:
    change(copy, "summary.json", kwh=None, cost=None, resolved=None, monitor=None, mode=None, dataset=None, began=None)
    shutil.rmtree(copy / "evaluation")
    read = text(report.write(copy).read_text())
    assert "does not say kwh, cost, resolved" in read and "evaluation/ is not there" in read
    assert f"{told(copy, 'summary.json')['metrics']['test/accuracy']:.1%}" in read


DAMAGES: list[tuple[str, bytes, str]] = [
    ("summary.json", b'{"status": "do', "summary.json is damaged: it is no JSON"),
    ("summary.json", b"[1, 2]", "another form"),
    ("summary.json", b'{"status": 3, "metrics": {"test/accuracy": "high"}, "seconds": "many"}', "damaged at seconds"),
    ("config.yaml", b"model: [", "config.yaml is damaged: it is no YAML"),
    ("config.yaml", b"\xff\xfe\x00", "config.yaml is damaged"),
    ("metrics.csv", b"step,a\nx,1\n\0\xff,\n3\n4,five\n", "not measured"),
    ("evaluation/test.json", b"{", "evaluation/test.json is damaged"),
    ("evaluation/test.json", b'{"format": 1, "split": "test", "images_seen": 1000000}', "evaluation/ is damaged"),
    ("evaluation/test.json", b'{"format": 9}', "another version"),
    ("skipped/rank-0.jsonl", b'{"id": 3, "epo\n[]\n{"epoch": 0}\n', "not measured"),
]


@pytest.mark.parametrize(("name", "content", "words"), DAMAGES)
def test_damaged_files_are_named(copy: Path, name: str, content: bytes, words: str) -> None:
    (copy / name).write_bytes(content)
    assert words in text(report.write(copy).read_text())


def test_a_run_that_fails_at_its_first_step_has_a_report(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: ImageModel, batch: Any, batch_idx: int) -> Any:
        raise RuntimeError("the <first> step")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ImageModel, "training_step", fails)
    arguments = ["--config", str(trained / "c.yaml"), "--data.path", str(trained / "colours"), "--log.wandb", "false"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "--run", "bad"])
    with pytest.raises(RuntimeError):
        train.main()
    read = text(Path("runs/bad/report.html").read_text())
    assert "failed" in read and "RuntimeError: the <first> step" in read
    assert "metrics.csv is not there" in read and "evaluation/ is not there" in read
    assert "--config runs/bad/config.yaml" in read


def test_a_report_that_cannot_be_made_spoils_no_run(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(charts, "lines", lambda *_: 1 / 0)
    arguments = ["--config", str(trained / "c.yaml"), "--data.path", str(trained / "colours"), "--log.wandb", "false"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "--run", "one", "--trainer.max_epochs", "1"])
    train.main()
    assert "report.html could not be made: ZeroDivisionError" in capfd.readouterr().err
    assert told(Path("runs/one"), "summary.json")["status"] == "done"


def test_what_a_run_is_judged_by_has_its_chart(copy: Path) -> None:
    usual = len(report._learning(read(Path("runs/first"))))
    change(copy, "summary.json", monitor="balanced_accuracy")  # as a summary has it
    assert len(report._learning(read(Path("runs/first")))) == usual + 1


def test_settings_changed_on_a_resume_are_in_the_command(copy: Path) -> None:
    change(copy, "summary.json", changed_on_resume={"trainer.max_epochs": 3, "data.path": "a b", "patience": None})
    expected = (
        "uv run train.py --config runs/first/config.yaml --trainer.max_epochs 3 --data.path 'a b' --patience null"
    )
    assert expected in text(report.write(Path("runs/first")).read_text())


def hostile(folder: Path) -> str:
    """A page of a run whose classes, images and errors are out to do harm."""
    names = ["<script>alert(1)</script>", "$x_{1}$ & \"co\" 'x'", "猫"]
    found = told(folder)
    found["examples"]["right"][0]["image"] = "https://elsewhere.invalid/a.png"
    found["examples"]["right"][1]["image"] = 'data:image/png;base64,"><script>throw 1</script>'
    change(folder, "evaluation/test.json", targets=names, examples=found["examples"])
    change(folder, "summary.json", status="failed", error="<img src=https://elsewhere.invalid/b.png onerror=alert(1)>")
    return report.write(folder).read_text()


def test_names_and_errors_are_text(copy: Path) -> None:
    page = hostile(copy)
    assert "<script" not in page and "<img src=h" not in page
    assert 'src="https' not in page
    read = text(page)
    for name in ("<script>alert(1)</script>", "$x_{1}$ & \"co\" 'x'", "猫", "<img src=https://elsewhere.invalid/b.png"):
        assert name in read


def test_a_backslash_in_a_name_stays_one() -> None:
    for name in ("loss \\x", "loss \\1", "loss \\g<0>"):
        assert f'aria-label="{html.escape(name)}' in charts.lines(name, {"": [(1, 1.0), (2, 0.5)]})


def test_many_classes_and_long_curves_stay_small() -> None:
    generator = np.random.default_rng(0)
    matrix = generator.integers(0, 9, (200, 200)).tolist()
    assert len(charts.confusion(matrix, [f"class {i}" for i in range(200)])) < 200_000
    points = [(i, 1 / (1 + i)) for i in range(100_000)]
    assert len(charts.lines("Loss", {"train": points})) < 40_000


# -- in a browser


def browse(folder: Path, page: Path, *options: str) -> tuple[list[str], list[str]]:
    """Open `page` in the browser: (what it wrote into the console, addresses that it asked for)."""
    assert BROWSER is not None
    log = folder / "network.json"
    log.unlink(missing_ok=True)
    quiet = ["--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync"]
    command = [
        *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *quiet),
        *("--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND"),
        *("--enable-logging=stderr", "--v=0", f"--log-net-log={log}", f"--user-data-dir={folder / 'profile'}"),
        *(*options, page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]
    console = re.findall(r"CONSOLE[^\]]*\] \"(.*)\", source", done.stderr)
    content = log.read_text()
    events = json.loads(content if content.rstrip().endswith("}") else content.rstrip().rstrip(",") + "]}")["events"]
    started = [event["params"] for event in events if "initiator" in event.get("params", {})]
    # what the browser asks for itself (the time, updates) has no origin; a page's request has one
    return console, [str(p.get("url")) for p in started if p["initiator"] != "not an origin"]


def screenshot(folder: Path, page: Path, name: str, width: int, *options: str) -> np.ndarray:
    """RGB pixels (height, width, 3) of the page, which must have neither errors nor requests."""
    path = folder / f"{name}.png"
    console, asked = browse(folder, page, f"--window-size={width},2400", f"--screenshot={path}", *options)
    assert console == [] and asked == [], (console, asked)
    pixels = cv2.imread(str(path))
    assert pixels is not None and pixels.shape == (2400, width, 3)
    return pixels[:, :, ::-1]


@needs_browser
def test_a_browser_opens_it_alone_in_light_and_dark(trained: Path, tmp_path: Path) -> None:
    page = trained / "runs/first/report.html"
    light = screenshot(tmp_path, page, "light", 1280, "--blink-settings=preferredColorScheme=1")
    dark = screenshot(tmp_path, page, "dark", 1280, "--blink-settings=preferredColorScheme=0")
    assert np.median(light) > 240 and np.median(dark) < 60
    assert light[:1400].std() > 20 and dark[:1400].std() > 20, "there is something to see"
    console, asked = browse(tmp_path, page, f"--print-to-pdf={tmp_path / 'report.pdf'}")
    assert (console, asked) == ([], []) and (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


@needs_browser
@pytest.mark.parametrize("kind", ["classes", "labels", "long names"])
def test_it_fits_a_phone(copy: Path, tmp_path: Path, kind: str) -> None:
    """In a frame of 390 pixels, since windows have a smallest width; another page measures how wide it is."""
    if kind == "labels":
        counts = {"stat_scores": [[10, 1, 40, 2, 1000]] * 3, "average_precision": [0.5] * 3}
        change(copy, "evaluation/test.json", task="multi_label", counts=counts)
    if kind == "long names":
        change(copy, "evaluation/test.json", targets=["a_name_without_a_space_" * 4, "many words " * 9, "b" * 200])
        change(copy, "summary.json", status="failed", error="x" * 400, hardware="A very long name of a GPU " * 4)
    source, page = report.write(copy).resolve().as_uri(), tmp_path / "phone.html"
    page.write_text(
        f"<iframe id=phone src='{source}' style='width:390px;height:4000px;border:0'></iframe><script>phone.onload = "
        "() => console.log('width ' + phone.contentDocument.documentElement.scrollWidth)</script>"
    )
    console, asked = browse(tmp_path, page, f"--screenshot={tmp_path / 'phone.png'}", "--window-size=500,4000")
    assert asked == [] and len(console) == 1
    assert 300 < int(console[0].removeprefix("width ")) <= 390, console


@needs_browser
def test_the_browser_would_tell_of_errors_and_requests(trained: Path, copy: Path, tmp_path: Path) -> None:
    """The same look at a page that has both, and at one whose own policy keeps a foreign image from being fetched."""
    good = (trained / "runs/first/report.html").read_text()
    assert "<head>" in good
    bad = tmp_path / "bad.html"
    image = "<img src='http://elsewhere.invalid/a.png'>"
    bad.write_text(re.sub("<meta http-equiv[^>]*>", "", good) + f"<script>throw new Error('x')</script>{image}")
    console, asked = browse(tmp_path, bad, f"--screenshot={tmp_path / 'bad.png'}")
    assert any("Error: x" in line for line in console) and asked == ["http://elsewhere.invalid/a.png"]
    bad.write_text(good + image)
    console, asked = browse(tmp_path, bad, f"--screenshot={tmp_path / 'bad.png'}")
    assert any("Content Security Policy" in line for line in console) and asked == []
    hostile(copy)
    console, asked = browse(tmp_path, copy / "report.html", f"--screenshot={tmp_path / 'bad.png'}")
    assert console == [] and asked == []
