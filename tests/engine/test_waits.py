"""A training step never makes the host wait for the device, but where something is shown, logged or checked.

On a GPU, CUDA itself tells of every wait. Without one, the operations that would wait there are noted as they are
called in the real training: values read into Python, and operations whose result's shape depends on values.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning
import lightning_shards
import pytest
import team
import torch
from lightning_shards.train.module import LearningRate
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .test_train import project, start  # noqa: F401  (`project` is a fixture)

PACKAGE = Path(lightning_shards.__file__).parent
ROOMS = str(PACKAGE), str(Path(team.__file__).parent), str(Path(lightning.__file__).parent)
HOST = str(PACKAGE / "data")  # works on tensors that are the host's
READS = (torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.__array__)
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique", "_unique2", "unique_dim")
STEPS, EPOCHS = 24, 2


class Waits:
    """Notes where the host waited, by the step in which it was. Only the code of the project and Lightning counts."""

    def __init__(self) -> None:
        self.step = -1
        self.found: dict[int, list[str]] = defaultdict(list)

    def note(self, what: str) -> None:
        frame, places = sys._getframe(1), []
        while frame is not None:
            places.append((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back  # type: ignore[assignment]
        if any(path.startswith(HOST) for path, _ in places):
            return
        path, line = next((place for place in places if place[0].startswith(ROOMS)), places[1])
        self.found[self.step].append(f"{what} at {path}:{line}")

    @contextmanager
    def watching(self, device: str) -> Iterator[Waits]:
        with ExitStack() as stack:
            if device == "cuda":
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("always")
                warnings.showwarning = lambda message, *_, **__: (
                    self.note("a wait") if "synchronizing CUDA operation" in str(message) else None
                )
                stack.callback(torch.cuda.set_sync_debug_mode, "default")
                torch.cuda.set_sync_debug_mode("warn")
            else:
                stack.enter_context(_Operations(self.note))
                stack.enter_context(_Reads(self.note))
            yield self


class _Operations(TorchDispatchMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITS or masked:
            self.note(name)
        return func(*args, **(kwargs or {}))


class _Reads(TorchFunctionMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            self.note(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.unique(),
        lambda x: x.masked_fill_(x > 0, 1).masked_select(x > 0),
        lambda x: f"{x[0]:.2f}",
    ],
)
def test_what_waits_is_noticed(wait: Callable[[torch.Tensor], Any]) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values = torch.arange(-4.0, 4.0, device=device)
    waits = Waits()
    with waits.watching(device):
        torch.where(values > 0, values, 0.0).softmax(0).sum()
        assert not waits.found
        wait(values)
    assert waits.found[-1]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_training_step_waits_but_where_something_is_shown_or_checked(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, device: str
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device: only the operations are watched, in place of CUDA's own word")
    waits, begin = Waits(), LearningRate.on_train_batch_start

    def counted(self: LearningRate, *given: Any) -> None:
        waits.step += 1
        begin(self, *given)

    monkeypatch.setattr(LearningRate, "on_train_batch_start", counted)
    settings = {
        "--data.global_batch_size": 4,
        "--model.mixup": 0.2,
        "--model.cutmix": 1.0,
        "--model.erasing": 0.2,
        "--model.color_jitter": 0.2,
        "--trainer.max_epochs": EPOCHS,
        "--trainer.log_every_n_steps": 16,
        "--trainer.gradient_clip_val": 1.0,
        "--trainer.enable_progress_bar": "true",
        "--trainer.accelerator": "cpu" if device == "cpu" else "gpu",
    }
    with waits.watching(device):
        assert start(monkeypatch, "--run", "w", *(str(x) for pair in settings.items() for x in pair)) == 0
    assert waits.step == EPOCHS * STEPS - 1 and "train/loss=" in "".join(capfd.readouterr())
    logged = {step for step in range(EPOCHS * STEPS) if (step + 1) % 16 == 0}
    checked = {epoch * STEPS + step for epoch in range(EPOCHS) for step in (9, 19)}  # NanGuard, every 10 steps
    shown = {epoch * STEPS + step for epoch in range(EPOCHS) for step in (19, 23)}  # the bar, every 20; validation
    allowed = logged | checked | shown | ({0} if device == "cuda" else set())  # the first one warms up
    seen = {step: found for step, found in waits.found.items() if step >= 0}
    assert not {step: found for step, found in seen.items() if step not in allowed}
    assert set(seen) >= logged | checked, "it is known to wait there: else nothing is being watched"
