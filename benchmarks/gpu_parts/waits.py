"""How often a real training makes the host wait for the device, where, and how often values are copied to the host.

The waits are CUDA's own word (`torch.cuda.set_sync_debug_mode`); without a GPU, the operations that would wait. The
copies are counted by torch's profiler, which sees all threads: that of the loader waits for its own stream.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning
import torch
from baked import team
from engine.waits import Waits
from lightning_shards.train import TrainingCLI

from . import Figures, Setup, folder

STEPS, PROFILED = 120, range(40, 80)
TRIAL = 12, range(0)
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


class Steps(lightning.Callback):  # type: ignore[misc]
    """Tells which step it is, profiles some of them, and ends the training."""

    def __init__(self, waits: Waits, steps: int, profiled: range, trace: Path) -> None:
        self.waits, self.steps, self.profiled, self.trace = waits, steps, profiled, trace
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) if profiled else None

    def on_train_batch_start(self, trainer: Any, model: Any, batch: Any, number: int) -> None:
        self.waits.step += 1
        if self.profiler and self.waits.step == self.profiled.start:
            self.profiler.start()
        if self.profiler and self.waits.step == self.profiled.stop:
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.trace))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = self.waits.step >= self.steps


def figures(setup: Setup) -> Figures:
    model, sample = team()
    waits = Waits(Path.cwd() / "src")
    steps, profiled = TRIAL if setup.quick else (STEPS, PROFILED if setup.device == "cuda" else range(0))
    settings = [*setup.training, "--model.backbone", setup.network, "--model.compile", "false"]
    settings += ["--data.global_batch_size", str(setup.micro)]
    settings += ["--trainer.limit_val_batches", "0", "--trainer.gradient_clip_val", "1.0", "--model.mixup", "0.2"]
    project = f"{Path.cwd()}/"
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(folder(scratch))
        cli = TrainingCLI(model, **sample, args=settings)
        own = Steps(waits, steps, profiled, scratch / "trace.json")
        cli.trainer.callbacks.append(own)  # type: ignore[attr-defined]
        with cli.run, waits.watching(setup.device):
            cli.start()
        counts = set(range(1, steps)) - ({profiled.start, profiled.stop} if profiled else set())  # there it waits, too
        seen = {step: found for step, found in waits.found.items() if step in counts}
        yield "steps", len(counts)
        yield "steps_that_waited", len(seen)
        yield "waits_a_step", round(sum(map(len, seen.values())) / len(counts), 3)
        places = Counter(shortened(wait, project) for found in seen.values() for wait in found)
        yield "places", dict(places.most_common(12))
        if profiled:
            yield "profiled", counted(json.loads((scratch / "trace.json").read_text())["traceEvents"], len(profiled))


def shortened(wait: str, project: str) -> str:
    """Without the folders that lie before a library or the project."""
    return wait.replace(project, "").rpartition("/site-packages/")[2]


def counted(events: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """Calls that wait, in threads that start kernels, and copies by their direction: each a step."""
    starts = {event["tid"] for event in events if event.get("name", "").startswith(("cudaLaunch", "cuLaunch"))}
    found: Counter[str] = Counter()
    for event in events:
        name = event.get("name", "")
        if name in WAITS:
            found[name if event["tid"] in starts else f"{name}, the loader's"] += 1
        elif event.get("cat") == "gpu_memcpy":
            found[" ".join(name.split()[:2])] += 1
    return {name: round(count / steps, 3) for name, count in sorted(found.items())}
