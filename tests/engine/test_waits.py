"""A training step never makes the host wait for the device, but where something is shown, logged or checked.

On a GPU, CUDA itself tells of every wait. Without one, the operations that would wait there are noted as they are
called in the real training: values read into Python, and operations whose result's shape depends on values.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import team
import torch
from lightning_shards.train.module import LearningRate

from .test_train import project, start  # noqa: F401  (`project` is a fixture)
from .waits import Waits

STEPS, EPOCHS = 24, 2


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
    waits, begin = Waits(Path(team.__file__).parent), LearningRate.on_train_batch_start

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
    assert waits.step == EPOCHS * STEPS - 1 and "train/loss " in "".join(capfd.readouterr())
    logged = {step for step in range(EPOCHS * STEPS) if (step + 1) % 16 == 0}
    checked = {epoch * STEPS + step for epoch in range(EPOCHS) for step in (9, 19)}  # NanGuard, every 10 steps
    shown = {epoch * STEPS + step for epoch in range(EPOCHS) for step in (19, 23)}  # the bar, every 20; validation
    allowed = logged | checked | shown | ({0} if device == "cuda" else set())  # the first one warms up
    seen = {step: found for step, found in waits.found.items() if step >= 0}
    assert not {step: found for step, found in seen.items() if step not in allowed}
    assert set(seen) >= logged | checked, "it is known to wait there: else nothing is being watched"
