"""Each speed setting on and off: images/s of a ResNet-50's training, on one batch that stays on the device.

The copy ahead is measured with the loader: without it, batches come in ordinary memory, and the step copies them.
"""

from __future__ import annotations

import tempfile
from typing import Any

from baked import team
from lightning_shards.forecasting.bench import Bench

from . import Figures, Setup, tried

ROUNDS = 2
Trial = tuple[Any, list[str], str]  # class of the bench, settings that are changed, what is measured


def trials(setup: Setup) -> dict[str, Trial]:
    """By name."""

    class Unhelped(Bench):
        def instantiate_classes(self) -> None:
            super().instantiate_classes()
            data, ahead = self.datamodule, self.datamodule.train_dataloader

            def nothing_ahead() -> Any:
                loader = ahead()
                loader._device = None
                return loader

            vars(data)["train_dataloader"] = nothing_ahead

    found: dict[str, Trial] = {
        "defaults": (Bench, [], "model_alone"),
        "no channels_last": (Bench, ["--model.channels_last", "false"], "model_alone"),
        "no fused optimizer": (Bench, ["--model.fused", "false"], "model_alone"),
        "copied ahead": (Bench, [], "both"),
        "copied by the step": (Unhelped, [], "both"),
    }
    if setup.device == "cuda":
        found["float32 with TF32"] = (Bench, ["--trainer.precision", "32-true"], "model_alone")
        found["compiled"] = (Bench, ["--model.compile", "true"], "model_alone")
    return found


def figures(setup: Setup) -> Figures:
    base = [*setup.training, "--model.backbone", setup.network, "--model.compile", "false"]
    rounds, known = (1 if setup.quick else ROUNDS), trials(setup)
    seconds = 0.3 if setup.quick else max(1.0, setup.seconds / (rounds * len(known) + 3) - 3)
    made: dict[str, Any] = {}
    model, sample = team()
    rates: dict[str, list[float]] = {}

    with tempfile.TemporaryDirectory() as scratch:

        def measure(name: str) -> list[float]:
            kind, changed, what = known[name]
            if name not in made:
                made[name] = kind(model, [*base, *changed], scratch, {}, **sample)
            rate = getattr(made[name], what)(seconds)
            rates.setdefault(name, []).append(round(rate[0] if what == "both" else rate, 1))
            return list(rates[name])

        several = [name for name in known if name != "compiled"]
        tries = several * rounds + ["compiled"] * (rounds if "compiled" in known else 0)  # which takes longest
        for place, name in enumerate(tries):
            if name not in tries[:place] or (name in rates and setup.rest > 20):
                yield name, tried(lambda name=name: measure(name))  # type: ignore[misc]
