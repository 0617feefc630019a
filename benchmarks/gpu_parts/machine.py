"""The machine: device, driver, versions, processor."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from lightning_shards.train.hardware import versions
from loaders import machine

from . import Figures, Setup

ASKED = "name,driver_version,memory.total,power.limit,clocks.max.sm,pcie.link.gen.max,pcie.link.width.max"


def figures(setup: Setup) -> Figures:
    import torch

    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "machine", machine(cores) | {"kernel": platform.release(), "memory_gb": round(memory / 1e9, 1)}
    yield "compiler", shutil.which(os.environ.get("CC", "cc")) is not None
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    yield "commit", commit.stdout.strip() or None
    yield "versions", versions()
    if setup.device == "cpu":
        return
    device = torch.cuda.get_device_properties(0)
    yield (
        "device",
        {
            "name": device.name,
            "capability": f"{device.major}.{device.minor}",
            "memory_gb": round(device.total_memory / 1e9, 1),
            "devices": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        },
    )
    told = subprocess.run(
        ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"], capture_output=True, text=True, check=True
    )
    values = [value.strip() for value in told.stdout.splitlines()[0].split(",")]
    yield "nvidia_smi", dict(zip(ASKED.split(","), values, strict=True))
