"""`forecast`: measure the parts of a training, and say what they come to: hours, kWh, money, and what to change."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule

from ..cost.prices import Gpu, Prices
from ..cost.usage import Usage
from ..train import hardware, loop_state
from ..train.contract import title
from ..train.datamodule import ShardDataModule
from .bench import Bench
from .storage_bench import reading

RESNET50_FLOPS = 24.5e9  # to train on one image of 224 pixels: what the `speed` of prices.yaml stands for
SHARES = {"disk": 0.15, "loader": 0.12, "model": 0.28, "both": 0.28, "validation": 0.05}  # of the time; loader: twice
Announce = Callable[[str], None]


def forecast(
    model_class: type[LightningModule],
    arguments: Sequence[str],
    images: int,
    seconds: float,
    announce: Announce = lambda part: None,
    whole: Mapping[str, int] | None = None,
    datamodule_class: type[ShardDataModule] = ShardDataModule,
) -> dict[str, Any]:
    """Measure for about `seconds` and more for warming up; the report as plain data.

    Args:
        model_class: what to train.
        arguments: settings, as for train.py.
        images: what to forecast for, beside the configured run.
        announce: is called with what is measured next.
        whole: images of each split of the whole dataset, where the settings name a sample of it.
        datamodule_class: what hands out the data.

    Raises InputError for settings that train.py would refuse, and where the prices are missing.
    """
    with tempfile.TemporaryDirectory(prefix="forecast-") as scratch:
        bench = Bench(model_class, list(arguments), scratch, whole or {}, datamodule_class)
        announce("reading")
        source = reading(bench.data, SHARES["disk"] * seconds, bench.scale)
        rates: dict[str, float | None] = {}
        size = source["bytes"] / bench.images
        rates["disk"] = source["bytes_per_second"] and source["bytes_per_second"] * bench.nodes / size
        for part, measure in (("loader", bench.loader), ("model", bench.model_alone)):
            announce(part)
            rates[part] = bench.world * bench.over_sizes(partial(_without_watts, measure), SHARES[part] * seconds)[0]
        announce("loader and model together")
        rate, watts = bench.over_sizes(bench.both, SHARES["both"] * seconds)
        rates["both"] = bench.world * rate
        announce("validation")
        validated = validations(bench) * images_of_a_validation(bench)
        rate_validated = bench.validation(SHARES["validation"] * seconds) if validated else None
    announce("")
    return _report(bench, source, rates, watts, images, (validated, rate_validated))


def _without_watts(measure: Callable[[float], float], seconds: float) -> tuple[float, None]:
    return measure(seconds), None


def validations(bench: Bench) -> int:
    """How many validations the configured run has."""
    steps = bench.images // (bench.data.global_batch_size * bench.world)
    return loop_state.validations(bench.trainer, steps, bench.trainer.max_epochs or 1) if bench.held_out else 0


def images_of_a_validation(bench: Bench) -> int:
    """How many images each of them measures on: as many as `trainer.limit_val_batches` leaves."""
    limit, batch = bench.trainer.limit_val_batches, bench.world * bench.resolved["micro_batch_size"]
    batches = limit if isinstance(limit, int) else int(limit * math.ceil(bench.held_out / batch))
    return min(bench.held_out, batches * batch)


def _report(
    bench: Bench,
    source: dict[str, Any],
    rates: dict[str, float | None],
    watts: float | None,
    images: int,
    validation: tuple[int, float | None],
) -> dict[str, Any]:
    prices, data, epochs = bench.prices, bench.data, bench.trainer.max_epochs or 1
    slow = {name: rates[name] for name in ("disk", "loader", "model") if not (name == "disk" and source["cached"])}
    known = {name: rate for name, rate in slow.items() if rate}
    bottleneck = min(known, key=lambda name: known[name])
    rate = min([rates["both"] or 0.0, *([known["disk"]] if "disk" in known else [])])

    def take(seconds: float) -> Usage:
        joules = None if watts is None else watts * seconds
        kwh = None if joules is None else joules / 3.6e6
        return Usage(seconds, kwh, prices.cost(seconds, joules, bench.nodes), prices.currency)

    trained, (validated, rate_validated) = epochs * bench.images, validation
    validating = validated / (bench.world * (rate_validated or 2 * rate / bench.world))
    run = take(trained / rate + validating)
    return {
        "hardware": hardware.device_name(bench.device),
        "devices": bench.world,
        "model": title(bench.model),
        "image_size": data.crop.size,
        "inputs": data.inputs,
        "sizes": {str(side): share for side, share in bench.sizes.items()},
        **bench.resolved,
        "dataset": {"path": str(data.dataset.root), "images": bench.images, "bytes": source["bytes"]},
        "images": images,
        "stages": {
            name: {"images_per_second": part, "hours": part and images / part / 3600} for name, part in rates.items()
        },
        "reading": source,
        "bottleneck": bottleneck,
        "advice": advice(bottleneck, bench, source, rate / known[bottleneck]),
        "images_per_second": rate,
        "energy": {
            "source": bench.energy.source,
            "note": bench.energy.note,
            "watts": watts,
            "joules_per_image": None if watts is None else watts / rate,
        },
        "currency": prices.currency,
        "host": {
            "watts": (prices.cpu_watts + prices.rest_watts) / prices.power_supply,
            "electricity": prices.electricity,
            "rent": prices.rent,
        },
        "forecast": take(images / rate).to_dict(),
        "run": {
            "epochs": epochs,
            "images": trained,
            "validated": validated,
            "ended_by": bench.spending.budget.spent(run),
            **run.to_dict(),
        },
        "gpus": [
            _here(take(images / rate), rate, bottleneck, prices, bench.nodes),
            *(_beside(gpu, bench, known, images) for gpu in (prices.gpus if bench.flops else ())),
        ],
    }


def advice(bottleneck: str, bench: Bench, source: dict[str, Any], together: float) -> str:
    """What to change about the slowest part."""
    workers, size = bench.resolved["workers"], bench.data.crop.size
    cuda = bench.device == "cuda"
    said = {
        "disk": "copy the dataset to an SSD, or pack smaller images (pack --short-side)",
        "loader": f"more CPU cores ({workers} decode now), or smaller images (pack --short-side {size * 8 // 7})",
        "model": "a faster GPU (below), or a smaller model.backbone or data.image_size"
        if cuda
        else "a GPU (below), or a smaller model.backbone or data.image_size",
    }[bottleneck]
    if bottleneck == "disk" and source["kind"] == "network":
        said = "copy the dataset to this machine's disk, or give data.cache_bytes room for all of it"
    if together < 0.85:
        said += f"; loader and model share the CPU, together they reach {together:.0%}"
    return said


def _here(took: Usage, rate: float, limit: str, prices: Prices, machines: int) -> dict[str, Any]:
    """This machine as it was measured, in the table of GPUs."""
    return {
        "name": "this machine",
        "images_per_second": rate,
        "limit": limit,
        "hours": took.seconds / 3600,
        "kwh": took.kwh,
        "electricity": None if took.kwh is None else took.kwh * prices.electricity,
        "rent": None if prices.rent is None else prices.rent * machines * took.seconds / 3600,
        "kind": "measured",
        "scaled_from": None,
    }


def _beside(gpu: Gpu, bench: Bench, known: dict[str, float], images: int) -> dict[str, Any]:
    """What `gpu` would do in place of each device of this machine, with its disk and its loader."""
    prices, listed = bench.prices, bench.prices.gpu(hardware.device_name(bench.device))
    if listed and bench.device == "cuda":
        model = known["model"] * gpu.speed / listed.speed
    else:
        model = bench.world * gpu.speed * RESNET50_FLOPS / (bench.flops or 1.0)
    rates = {**known, "model": model}
    limit = min(rates, key=lambda name: rates[name])
    seconds = images / rates[limit]
    watts = (gpu.watts * bench.world + (prices.cpu_watts + prices.rest_watts) * bench.nodes) / prices.power_supply
    kwh = watts * seconds / 3.6e6
    return {
        "name": gpu.name,
        "images_per_second": rates[limit],
        "limit": limit,
        "hours": seconds / 3600,
        "kwh": kwh,
        "electricity": kwh * prices.electricity,
        "rent": None if gpu.rent is None else gpu.rent * bench.world * seconds / 3600,
        "kind": "estimated",
        "scaled_from": {"speed": gpu.speed, "kind": gpu.kind, "source": gpu.source, "date": gpu.date},
    }
