"""What a run's best weights say of images, one row an image: to a CSV file, or as a line of JSON each."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray

from ..decoding.crop import Crop
from ..shards.dataset import replacing
from ..shards.errors import InputError
from ..training import hardware
from ..training.evaluate import batch_size
from ..training.model import ImageModel
from .images import Images, batches


class Prediction(NamedTuple):
    """Of one image."""

    name: str
    scores: NDArray[np.float32] | None  # (T,) probabilities or numbers; None where it could not be decoded
    error: str  # why not


def predict(model: ImageModel, config: dict[str, Any], images: Images) -> Iterator[Prediction]:
    """What `model`, trained by a run of this `config`, says of all images, in their order."""
    device = hardware.accelerator(config["trainer"]["accelerator"])  # or the CPU, where that is all there is
    hardware.quiet()
    hardware.prepare(device)
    fabric = Fabric(accelerator=device, devices=1, precision=hardware.precision(device))  # type: ignore[arg-type]
    network = fabric.setup_module(model.eval())
    crop = Crop(model.hparams["image_size"], center=config["data"]["eval_crop"])
    for first, pixels, errors in batches(images, crop, batch_size(config["data"])):
        with torch.inference_mode():
            outputs = network(fabric.to_device(torch.from_numpy(pixels)).permute(0, 3, 1, 2))
            scores = model.objective.scores(outputs.float()).cpu().numpy()
        for row, error in enumerate(errors):
            yield Prediction(images.name(first + row), None if error else scores[row], error)


def facts(of: Prediction, task: str, targets: list[str], every: bool) -> dict[str, Any]:
    """A prediction as JSON; `every` gives the probability of each class, too."""
    if of.scores is None:
        return {"path": of.name, "error": of.error}
    if task == "regression":
        return {
            "path": of.name,
            "predicted": {name: float(f"{x:.6g}") for name, x in zip(targets, of.scores, strict=True)},
        }
    scores = of.scores.astype(np.float64).round(6)
    told = {"scores": dict(zip(targets, scores.tolist(), strict=True))} if every else {}
    if task == "multi_label":
        return {"path": of.name, "predicted": [targets[number] for number in np.flatnonzero(scores >= 0.5)], **told}
    best = int(of.scores.argmax())
    return {"path": of.name, "predicted": targets[best], "score": float(scores[best]), **told}


def writer(
    out: TextIO, task: str, targets: list[str], every: bool, as_json: bool
) -> Callable[[dict[str, Any]], object]:
    """A function that writes `facts` as a row of a CSV file (labels are joined by `|`), or as a line of JSON."""
    if as_json:
        return lambda told: out.write(json.dumps(told, ensure_ascii=False) + "\n")
    of_each = [("predicted", name) for name in targets] if task == "regression" else [("predicted",)]
    fields: list[tuple[str, ...]] = [("path",), *of_each, *[("score",)] * (task == "single_label"), ("error",)]
    fields += [("scores", name) for name in targets if every and task != "regression"]
    table = csv.writer(out, lineterminator="\n")
    table.writerow(field[-1] for field in fields)

    def row(told: dict[str, Any]) -> None:
        cells: dict[tuple[str, ...], Any] = {}
        for key, value in told.items():
            if isinstance(value, dict):
                cells |= {(key, name): number for name, number in value.items()}
            else:
                cells[key,] = "|".join(value) if isinstance(value, list) else value
        table.writerow(cells.get(field, "") for field in fields)

    return row


@contextmanager
def opened(path: Path | None, force: bool) -> Iterator[TextIO]:
    """The file to write, which is there when all was written; None: standard output, as far as somebody reads it."""
    if path is None:
        try:
            yield sys.stdout
            sys.stdout.flush()
        except BrokenPipeError:  # such as `head`, which has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        return
    check_new(path, force)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield file


def check_new(path: Path, force: bool) -> None:
    """Raise InputError where a file cannot be written at `path`, or would be replaced without `force`."""
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} into")
    if path.is_dir() or (path.exists() and not force):
        raise InputError(
            f"{path} exists: choose another name" + ("" if path.is_dir() else ", or replace it by --force")
        )
