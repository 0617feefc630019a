"""The engine as a distribution: alone, without Lightning; and installed by pip, which never asks an index for it."""

from __future__ import annotations

import http.server
import io
import json
import re
import shutil
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from template import PROJECT, litter, run, succeed

ABSENT = ("lightning", "pytorch_lightning", "wandb", "torchmetrics", "jsonargparse", "torchvision", "tensorboard")
LOOP = """
import importlib.util, json, sys
from lightning_shards.data import ShardLoader
loader = ShardLoader("images", batch_size=100, crop=28)
seen = []
for batch in loader:
    assert batch["image"].shape == (100, 3, 28, 28) and len(batch["target"]) == 100
    seen += batch.ids.tolist()
    if len(seen) == 400:
        state = loader.state_dict()
again = ShardLoader("images", batch_size=200, crop=28)
again.load_state_dict(state)
rest = [number for batch in again for number in batch.ids.tolist()]
heavy = [name for name in %r if name in sys.modules]
print(json.dumps([len(seen), len(set(seen)), sorted(seen[400:]) == sorted(rest), heavy]))
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment in `env` that has the engine's base dependencies and nothing else."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(PROJECT / "engine", folder / "engine", ignore=litter)
    succeed(["uv", "venv", "--quiet", "--python", sys.executable, "env"], folder)
    succeed(["uv", "pip", "install", "--quiet", "--python", "env", "./engine"], folder)
    return folder


def python(folder: Path) -> str:
    return str(folder / "env" / "bin" / "python")


@pytest.mark.project
def test_the_engine_alone_packs(alone: Path) -> None:
    """With nothing but the base dependencies: every command that needs no model."""
    missing = f"import importlib.util as u; print([name for name in {ABSENT!r} if not u.find_spec(name)])"
    assert succeed([python(alone), "-c", missing], alone).strip() == str(list(ABSENT))
    command = [python(alone), "-m", "lightning_shards"]
    sample = str(PROJECT / "sample" / "fashion-mnist-10k.zip")
    packed = json.loads(succeed([*command, "pack", sample, "data", "--json"], alone))
    assert packed["splits"]["train"]["images"] == 8000
    assert "10,000 samples" in succeed([*command, "verify", "data"], alone)
    (alone / "tars").mkdir()
    shutil.copy(alone / "data" / "train" / "000000.tar", alone / "tars")
    assert json.loads(succeed([*command, "adopt", "tars", "--json"], alone))["splits"]["train"]["shards"] == 1


@pytest.mark.project
def test_the_engine_alone_iterates(alone: Path) -> None:
    """In six lines of plain PyTorch, and goes on with another batch size where it was left."""
    sample = str(PROJECT / "sample" / "fashion-mnist-10k.zip")
    succeed([python(alone), "-m", "lightning_shards", "pack", sample, "images"], alone)
    seen, different, same, heavy = json.loads(succeed([python(alone), "-c", LOOP % (ABSENT,)], alone))
    assert (seen, different, same, heavy) == (8000, 8000, True, [])


@pytest.mark.project
def test_the_engine_alone_reports_runs(alone: Path) -> None:
    """Of a run that was trained elsewhere."""
    run_folder = alone / "runs" / "theirs"
    run_folder.mkdir(parents=True)
    (run_folder / "config.yaml").write_text("data:\n  path: data/mine\n")
    (run_folder / "metrics.csv").write_text("step,epoch,train/loss,val/accuracy\n1,0,2.0,\n2,0,,0.5\n")
    (run_folder / "summary.json").write_text(json.dumps({"status": "done", "metrics": {"test/accuracy": 0.9}}))
    command = [python(alone), "-m", "lightning_shards"]
    (row,) = json.loads(succeed([*command, "runs", "--json"], alone))
    assert row["run"] == "theirs" and row["status"] == "done"
    succeed([*command, "report", "theirs"], alone)
    assert "</html>" in (run_folder / "report.html").read_text()


def test_types_of_the_engine_are_seen() -> None:
    assert (PROJECT / "engine" / "src" / "lightning_shards" / "py.typed").exists()


def test_extras_are_forwarded(default_bake: Path) -> None:
    """A project has the engine's extras under the same names, and each names the folder, not an index."""
    project = tomllib.loads((default_bake / "pyproject.toml").read_text())["project"]
    engine = tomllib.loads((default_bake / "engine" / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(engine["optional-dependencies"]) == {*extras, "train"}
    for name, given in extras.items():
        assert given == [f"lightning-shards[{name}] @ {{root:uri}}/engine"]


class Index(http.server.BaseHTTPRequestHandler):
    """A package index that has everything, in versions for everybody, and writes down what it was asked for."""

    asked: list[str]
    versions = ("2.6.9", "4.49.9", "99.0")

    def do_GET(self) -> None:
        if found := re.fullmatch(r"/simple/([^/]+)/", self.path):
            self.asked.append(found[1])
            stem = found[1].replace("-", "_")
            links = [f'<a href="/files/{stem}-{each}-py3-none-any.whl">{each}</a>' for each in self.versions]
            self._send("<!DOCTYPE html>" + "".join(links), "text/html")
        else:
            stem, version = self.path.rpartition("/")[2].split("-")[:2]
            self._send(wheel(stem, version), "application/octet-stream")

    def _send(self, content: str | bytes, kind: str) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def wheel(stem: str, version: str) -> bytes:
    """An empty distribution."""
    info = f"{stem}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {stem}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


@pytest.fixture
def index() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Asked", (Index,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple", asked
    server.shutdown()


def test_pip_never_asks_an_index_for_the_engine(
    default_bake: Path, tmp_path: Path, index: tuple[str, list[str]]
) -> None:
    """Whoever took the name there would run in every project: it comes from the folder, whatever the index offers."""
    place, asked = index
    succeed(["uv", "venv", "--quiet", "--python", sys.executable, "env"], tmp_path)
    succeed(["uv", "pip", "install", "--quiet", "--python", "env", "pip", "hatchling"], tmp_path)
    install = [str(tmp_path / "env/bin/python"), "-m", "pip", "install", "--dry-run", "--no-build-isolation"]
    project = tmp_path / "a project"
    shutil.copytree(default_bake, project)
    done = run([*install, "--index-url", place, f"{project}[s3]"], tmp_path, env={"PIP_NO_CACHE_DIR": "1"})
    assert done.returncode == 0, done.stderr
    assert {"torch", "lightning", "webdataset", "s3fs"} <= set(asked), asked
    assert "lightning-shards" not in asked and "lightning-shards-0.1.0" in done.stdout, done.stdout
