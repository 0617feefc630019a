"""What "auto" means on this machine: precision, compilation, thread counts, and what is written down about both."""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.nn.parallel import DistributedDataParallel

from .. import machine

COMPILE_FROM_IMAGES = 2_000_000  # compiling costs about a minute; a run of this length earns it on any GPU


def accelerator(asked: str) -> str:
    """The accelerator that Lightning's `auto` will choose: cuda, mps or cpu."""
    if asked in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    if asked in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def precision(device: str) -> str:
    """bf16 where the GPU computes in it, float16 with loss scaling on older ones, float32 elsewhere."""
    if device != "cuda":
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def compiles(device: str, images: int) -> bool:
    """Whether torch.compile pays: on a GPU that Triton supports, with a C compiler, for a run of so many images."""
    if device != "cuda" or images < COMPILE_FROM_IMAGES or torch.cuda.get_device_capability()[0] < 7:
        return False
    return bool(shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc"))


def quiet() -> None:
    """Keep back what Lightning and torch tell their developers, and what our own first lines say. What Lightning only
    warns of although it drops what a model gives is raised: `explain` makes a refusal of it."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.callbacks").setLevel(logging.INFO)  # what a user has asked them to say
    for message in (
        ".*LeafSpec.*",
        ".*your dataloader is not resumable.*",
        ".*across ranks is zero.*",  # there is no val or no test
        ".*smaller than the logging interval.*",
        ".*srun. command is available.*",  # on any machine that has Slurm installed
        ".*but have no `validation_step`.*",  # a model need not have one
        ".*sync_dist=True.*",  # what is logged was added up over the ranks before
    ):
        warnings.filterwarnings("ignore", message=message)
    for message in (
        ".*this fit will run with no optimizer",  # configure_optimizers lacks its `return`
        "Found unsupported keys in the",  # of what configure_optimizers returns: a typing error
        ".*but the keys will be ignored",  # a model that steps its optimizers itself steps its schedulers, too
    ):
        warnings.filterwarnings("error", message=message)


def prepare(device: str) -> None:
    """Settings of the process that make it fast: TF32 for what is left in float32."""
    if device == "cuda":
        torch.set_float32_matmul_precision("high")


def tune(strategy: Strategy, accumulation: int) -> None:
    """Let DistributedDataParallel do less: gradients are views of what is sent, and buffers are not sent in every
    forward (`ema.share_statistics` does it where it matters).

    Without accumulation the graph is the same in every step, which DDP then need not find out again and again.
    """
    if isinstance(strategy, DDPStrategy):
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = (
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        )  # before torch 2.15
        tuned = {"gradient_as_bucket_view": True, buffers: False, "static_graph": accumulation == 1}
        if strategy._ddp_kwargs.get("find_unused_parameters"):
            del tuned["static_graph"]
        strategy._ddp_kwargs = tuned | strategy._ddp_kwargs


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines: list[str] = []
    with suppress(OSError):  # only Linux has it, and a container may hide it
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {machine.cpus()} cores"


def gpu_uuids(devices: Sequence[int]) -> list[str]:
    """The UUIDs of CUDA devices, by which NVML knows them whatever CUDA_VISIBLE_DEVICES says."""
    return [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in devices]


def versions() -> dict[str, str]:
    """Versions of what decides speed and results."""
    packages = ("lightning", "torchvision", "webdataset", "numpy", "opencv-python-headless", "simplejpeg", "deflate")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "torch": torch.__version__, **found}


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the project and whether files differ from it; None where git does not keep the project."""
    try:
        commands = (
            ["git", "ls-files", "--error-unmatch", "train.py"],  # the folder may lie in a repository that ignores it
            ["git", "rev-parse", "HEAD"],
            ["git", "status", "--porcelain", "--untracked-files=no"],
        )
        _, commit, changes = (
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changes)}
