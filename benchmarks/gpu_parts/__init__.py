"""The parts of `gpu.py`: each is a generator that yields (name, figure) as it measures, in a process of its own.

What a part has yielded is kept when it fails, or is ended at its limit, later on. Each plans by `setup.seconds`: it
takes fewer rounds, or leaves out its last measurements and yields `left_out`, where that is short.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Figures = Iterator[tuple[str, Any]]
LAST_LINES = 12  # of an error
TEMPLATE = Path(__file__).resolve().parents[2]
sys.path.append(str(TEMPLATE / "tests"))  # some parts check as the engine's tests do


@dataclass(frozen=True)
class Setup:
    """What each part is told."""

    device: str  # cuda or cpu
    seconds: float  # to plan for
    limit: float  # seconds after which it is ended
    quick: bool  # the sizes of a trial
    work: Path  # where data and runs of the measurements are
    photos: Path | None  # JPEGs in class folders, in place of made ones
    fashion: Path  # folder of Fashion-MNIST's four files
    peers: str  # the Python that has the other loaders
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds of the plan."""
        return self.seconds - (time.monotonic() - self.began)

    @property
    def rest(self) -> float:
        """Seconds until it is ended."""
        return self.left + self.limit - self.seconds

    @property
    def images(self) -> Path:
        """Photos with a short side of 256 pixels, in class folders; hard links repeat them."""
        return self.work / "images"

    @property
    def dataset(self) -> Path:
        """The same, packed."""
        return self.work / "packed"

    @property
    def training(self) -> list[str]:
        """Settings of train.py: configs/desktop.yaml on the photos, smaller in a trial."""
        settings = ["--config", str(Path("configs/desktop.yaml").absolute()), "--data.path", str(self.dataset)]
        settings += ["--log.wandb", "false", "--prices", str(Path("prices.yaml").absolute())]
        settings += ["--trainer.accelerator", "gpu" if self.device == "cuda" else "cpu"]
        if self.quick:
            settings += ["--data.global_batch_size", "16", "--data.image_size", "32"]
        return [*settings, "--data.micro_batch_size", str(self.micro)]

    @property
    def micro(self) -> int:
        """Rows in one forward of a ResNet-50 that fit, in float32 too."""
        import torch

        if self.quick or self.device == "cpu":
            return 8
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        return next((rows for rows, gigabytes in ((256, 38), (128, 19), (64, 9)) if memory > gigabytes), 32)

    @property
    def network(self) -> str:
        """What most parts train."""
        return "small_cnn" if self.quick else "resnet50"


@dataclass(frozen=True)
class Part:
    """What `gpu.py` knows of a part."""

    title: str
    module: str
    share: float  # of the time
    needs: tuple[str, ...] = ()  # parts that must have gone well before


PARTS = {
    "facts": Part("the machine", "machine", 0.02),
    "data": Part("photos and samples, packed", "data", 0.07),
    "forecast": Part("loader, model and both", "forecast", 0.20, ("data",)),
    "settings": Part("each speed setting on and off", "settings", 0.16, ("data",)),
    "loop": Part("the training loop beside a bare one", "loops", 0.05, ("data",)),
    "waits": Part("waits for the device, and copies from it", "waits", 0.05, ("data",)),
    "resume": Part("killed and resumed", "resume", 0.08, ("data",)),
    "fashion": Part("Fashion-MNIST to 95%", "fashion", 0.17),
    "loader": Part("the loader beside others", "loaders_by_cores", 0.09, ("data",)),
    "tests": Part("the project's own tests", "own_tests", 0.15),
}


def call(arguments: list[str], timeout: float | None = None, cwd: Path | None = None) -> str:
    """Run Python with the project's package and return what it printed. Raises RuntimeError with its last lines."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:3])} ended with {done.returncode}:\n{last_lines(done.stderr)}")
    return done.stdout


def environment() -> dict[str, str]:
    """Of a process of the project: its package can be imported, W&B has no account."""
    folders = [str(Path("src").absolute()), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders)), "WANDB_MODE": "offline"}


def last_lines(text: str) -> str:
    return "\n".join([line[:300] for line in text.splitlines() if line.strip()][-LAST_LINES:])


def tried(measure: Callable[[], Any]) -> Any:
    """The figures of one measurement, or why there are none: the others of its part go on."""
    try:
        return measure()
    except (Exception, SystemExit):
        return {"error": last_lines(traceback.format_exc())}


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """With `path` as the working folder."""
    here = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(here)
