"""What `embed` says: of an embedding that was made, and before, what one will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..cost.energy import EnergyMeter
from ..cost.prices import Prices
from ..cost.usage import Usage
from ..terminal import in_bytes
from ..train import hardware
from .embed import Embedder

HEAD_BATCH = 1024  # rows of a step of the head whose rate is forecast


def render(report: Mapping[str, Any]) -> str:
    """The report of `Embedder.run` as text."""
    views = f", {report['views']} views of each training image" if report["views"] > 1 else ""
    samples = sum(split["samples"] for split in report["splits"].values())
    lines = [
        f"{report['dataset']}: {report['name']}, {report['length']} numbers an image{views}, {samples:,} images,"
        f" {in_bytes(report['bytes'])}"
    ]
    for split, counts in report["splits"].items():
        if counts["lacking"]:
            lines.append(f"  {split}: {counts['lacking']:,} images could not be decoded, and will be skipped")
    if report["embedded"]:
        lines.append(f"  {report['embedded']:,} embedded now, {report['images_per_second']:,.0f} images/s")
    else:
        lines.append("  all of it was there already")
    setting = "teacher" if report["network"]["kind"] == "scores" else "features"
    lines.append(f"to train on it: --data.{setting} {report['name']}")
    return "\n".join(lines)


def forecast(made: Embedder, images: int, seconds: float) -> dict[str, Any]:
    """Measure for about `seconds`, and say what it takes to embed `images` images, and to train on them."""
    device, split = made.fabric.device, next(iter(made.plans()))
    views = made.embedding.views if split == "train" else 1
    every = np.array([[0, made.dataset.samples(split)]])
    made.to_device()
    first = next(batch for batch, _ in made.values(split, every))
    alone = _rate(lambda: made.look_at(first["image"]), len(first), seconds / 3, device)
    gpus = hardware.gpu_uuids([device.index or 0]) if device.type == "cuda" else []
    prices = Prices.read("prices.yaml") if Path("prices.yaml").exists() else None
    world = made.fabric.world_size
    meter = EnergyMeter(prices, gpus, hardware.device_name(device.type), world, 1) if prices else None
    together, joules, took = _together(made, split, every, seconds / 3, meter)
    head = _rate(_head_step(made.embedding.length, device), HEAD_BATCH, seconds / 3, device)
    rate = world * together / views
    spent, watts = images / rate, None if joules is None else joules / took

    def take(spent: float) -> Usage:
        energy = None if watts is None else watts * spent
        cost = prices.cost(spent, energy) if prices else None
        return Usage(spent, None if energy is None else energy / 3.6e6, cost, prices.currency if prices else None)

    return {
        "hardware": hardware.device_name(device.type),
        "devices": world,
        "network": dict(made.embedding.network),
        "length": made.embedding.length,
        "views": views,
        "images": images,
        "bytes": made.plans()[split].record.itemsize * images,
        "images_per_second": {"network": world * alone / views, "network and loader": rate, "head": world * head},
        "embedding": take(spent).to_dict(),
        "epoch": take(images / (world * head)).to_dict(),
        "text": [str(take(spent)), str(take(images / (world * head)))],
    }


def render_forecast(report: Mapping[str, Any]) -> str:
    """The report of `forecast` as text."""
    rates, (embedding, epoch) = report["images_per_second"], report["text"]
    return "\n".join(
        [
            f"{report['hardware']}, {report['network']['title']}, {report['length']} numbers an image",
            f"  network alone     {rates['network']:>12,.0f} images/s",
            f"  with the loader   {rates['network and loader']:>12,.0f} images/s",
            f"  a linear head     {rates['head']:>12,.0f} images/s",
            f"{report['images']:,} images: {embedding} to embed them once, {in_bytes(report['bytes'])} on disk;"
            f" then {epoch} for each epoch of a linear head",
        ]
    )


def _rate(step: Callable[[], Any], rows: int, seconds: float, device: torch.device) -> float:
    """Rows/s of a step, after one to warm up."""
    step()
    _synchronize(device)
    began, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - began < seconds:
        step()
        _synchronize(device)
        steps += 1
    return rows * steps / (time.perf_counter() - began)


def _together(
    made: Embedder, split: str, every: Any, seconds: float, meter: EnergyMeter | None
) -> tuple[float, float | None, float]:
    """Looks/s of loader and network, joules, and seconds: from the second batch on, again and again."""
    rows, began, joules = 0, 0.0, meter.joules() if meter else None
    while True:
        for batch, values in made.values(split, every):
            values.cpu()
            now = time.perf_counter()
            if began:
                rows += len(batch)
            else:
                began, joules = now, meter.joules() if meter else None
            if rows and now - began > seconds:
                after = meter.joules() if meter else None
                spent = None if joules is None or after is None else after - joules
                return rows / (now - began), spent, now - began


def _head_step(length: int, device: torch.device) -> Callable[[], Any]:
    """A step of a linear head on features that stay in memory."""
    head = nn.Linear(length, 100, device=device)
    rows = torch.randn(HEAD_BATCH, length, device=device).half()
    targets = torch.zeros(HEAD_BATCH, dtype=torch.int64, device=device)
    optimizer = torch.optim.AdamW(head.parameters(), fused=device.type in ("cpu", "cuda"))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(rows.float()), targets).backward()
        optimizer.step()

    return step


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
