"""A forecast as one screen of text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from ..cost.usage import Usage, duration, number
from ..terminal import in_bytes, several

STAGES = {"disk": "disk, cold", "loader": "loader alone", "model": "model alone", "both": "both, end to end"}
WIDTH = 100


def render(report: Mapping[str, Any]) -> str:
    """At most 24 lines of 100 columns."""
    data, energy = report["dataset"], report["energy"]
    lines = [
        f"{report['model']} at {report['inputs']}, {report['precision']}, micro-batch"
        f" {report['micro_batch_size']}, compile {'on' if report['compile'] else 'off'}, on"
        f" {report['devices']} x {report['hardware']}",
        f"{data['path']}: {data['images']:,} images, {in_bytes(data['bytes'])}; {report['workers']} decoding threads",
        *_stages(report),
        *textwrap.wrap(f"To change: {report['advice']}.", WIDTH),
        "",
        f"{report['images']:,} images: {_amount(report['forecast'], report['currency'])}; {_energy(energy)}",
        f"this run: {_run(report['run'])}: {_amount(report['run'], report['currency'])}",
        *([f"  {report['run']['ended_by']} ends it before"] if report["run"]["ended_by"] else []),
        *_packing(report),
        *_gpus(report),
    ]
    return "\n".join(line if len(line) <= WIDTH else line[: WIDTH - 4] + " ..." for line in lines)


def _stages(report: Mapping[str, Any]) -> list[str]:
    images, reading = report["images"], report["reading"]
    lines = [f"{'':<16}{'images/s':>11}{f'for {images:,}':>16}"]
    for name, stage in report["stages"].items():
        rate = stage["images_per_second"]
        speed = f"{reading['bytes_per_second'] / 1e6:,.0f} MB/s" if reading["bytes_per_second"] else ""
        notes = [speed, reading["note"]] if name == "disk" else []
        notes += ["<- the slowest"] if name == report["bottleneck"] else []
        cells = f"{rate:>11,.0f}{duration(images / rate):>16}" if rate else f"{'not measured':>27}"
        lines.append(f"{label(name, report):<16}{cells}  {'; '.join(filter(None, notes))}".rstrip())
    return lines


def label(stage: str, report: Mapping[str, Any]) -> str:
    """What people call a part of the training."""
    return "network" if stage == "disk" and report["reading"]["kind"] == "network" else STAGES[stage]


def _energy(energy: Mapping[str, Any]) -> str:
    joules = energy["joules_per_image"]
    return "; ".join(
        filter(None, (f"{number(joules)} J an image by {energy['source']}" if joules else "", energy["note"]))
    )


def _run(run: Mapping[str, Any]) -> str:
    validated = f", and {run['validated']:,} validated" if run["validated"] else ""
    return f"{several(run['epochs'], 'epoch')}, {several(run['images'], 'image')}{validated}"


def _packing(report: Mapping[str, Any]) -> list[str]:
    part = report.get("packing")
    if not part:
        return []
    size = f"{in_bytes(part['bytes'])} on disk, {part['images_per_second']:,.0f} images/s"
    return [f"packing before: {part['images']:,} images, {size}: {_amount(part, report['currency'])}"]


def _gpus(report: Mapping[str, Any]) -> list[str]:
    currency = report["currency"]
    lines = ["", f"{'':<13}{'images/s':>9}{'time':>10}{'kWh':>8}{f'power, {currency}':>12}{f'rent, {currency}':>11}"]
    for gpu in report["gpus"]:
        held = {"model": " ", "loader": "*", "disk": "+"}[gpu["limit"]]
        base = gpu["scaled_from"]
        how = f"estimated; speed {base['kind']} {base['date']}" if base else "measured now"
        lines.append(
            f"{gpu['name']:<13}{gpu['images_per_second']:>9,.0f}{held}{duration(3600 * gpu['hours']):>9}"
            f"{_cell(gpu['kwh']):>8}{_cell(gpu['electricity']):>12}{_cell(gpu['rent']):>11}  {how}"
        )
    limits = {gpu["limit"] for gpu in report["gpus"]}
    marks = {"loader": "* this machine's loader limits", "disk": "+ this machine's disk limits"}
    notes = [text for name, text in marks.items() if name in limits]
    return [*lines, "; ".join([*notes, "estimates (see prices.yaml) may be off by a factor of 2"])]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _amount(part: Mapping[str, Any], currency: str) -> str:
    return str(Usage(part["seconds"], part["kwh"], part["cost"], currency))
