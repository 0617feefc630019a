"""A run's best weights as one file that runs without this project: a PyTorch program (.pt2), or ONNX (.onnx).

It takes RGB images, uint8 (B, 3, S, S) for any B, and what else the model's `inputs` name; it gives probabilities or
numbers, float32 (B, T), of masks (B, T, S, S). What they mean, and how images are cut, is in it as JSON: the extra file
`about.json` of a .pt2, the metadata `about` of an ONNX file.
"""

from __future__ import annotations

import importlib.util
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import InputError, RunError
from ..files import replacing, writing
from ..runs.files import earlier_metrics
from ..train import hardware
from ..train.contract import inputs, title
from .predict import cutoffs, image_size

FORMATS = (".pt2", ".onnx")
FORMAT = "lightning-shards-model/1"
TOLERANCE = 1e-3  # by which an output of the file may differ from the model's; as a share of numbers above 1
MOST_ONNX = 2_000_000_000  # bytes: one file of protobuf holds no more


class Deployed(nn.Module):
    """A model's `scores` as the forward of a module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        scores: Tensor = self.model.scores(*inputs)
        return scores


def export(model: Any, about: dict[str, Any], path: Path) -> None:
    """Write `model` to `path`, in the format of its extension. Raises RunError where the file would say something else.

    Args:
        about: goes into the file; of `describe`.
    """
    check_format(path)
    if path.suffix == ".onnx" and sum(p.nbytes for p in model.parameters()) > MOST_ONNX:
        raise InputError(f"{path} would be larger than the 2 GB of an ONNX file: export to .pt2")
    hardware.quiet()
    for message in (".*No complete tensor found.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message=message)
    deployed = Deployed(model).eval().requires_grad_(False)
    chance, names = torch.Generator().manual_seed(0), list(about["inputs"])
    examples = [_example(row[0], row[1], chance) for row in about["inputs"].values()]
    with torch.inference_mode():
        wanted = deployed(*examples).numpy()
    dynamic = (tuple({0: Dim.DYNAMIC} for _ in examples),)
    program = torch.export.export(deployed, tuple(x[:2] for x in examples), dynamic_shapes=dynamic)
    write, run = (_save, _run) if path.suffix == ".pt2" else (_save_onnx, _run_onnx)
    with writing(path), replacing(path) as temporary:
        write(program, json.dumps(about), temporary, ["images"] if names == ["image"] else names)
        difference = float(np.abs(run(temporary, examples) - wanted).max())
        if not difference < TOLERANCE * max(1.0, np.abs(wanted).max()):
            raise RunError(f"what was exported differs by {difference:.2g} from the model's scores: it is not kept")


def describe(model: Any, config: dict[str, Any], run: Path, transform: Any = None) -> dict[str, Any]:
    """What whoever uses the file must know, the `transform` of what is measured on, too.

    Raises InputError for a model whose `scores` take what has no shape.
    """
    task, targets = (config["trained_on"][name] for name in ("task", "targets"))
    size = image_size(model, config)
    taken = _rows(
        inputs(model, "exported"), {"image": [[3, size, size], "uint8"]} | (config["trained_on"]["fields"] or {})
    )
    if task == "detection":
        raise InputError(
            "export writes scores, and a detector finds boxes: use predict --coco, or load_model in Python"
        )
    means = {"single_label": "probability of each class", "multi_label": "probability of each label"}
    means["segmentation"] = "probability of each class of each pixel"
    shape = f"{len(targets)}, {size}, {size}" if task == "segmentation" else str(len(targets))
    return {
        "format": FORMAT,
        "run": run.name,
        "task": task,
        "targets": list(targets),
        "images": f"uint8 (B, 3, {size}, {size}), RGB, 0..255",
        "inputs": taken,  # in this order: shape of a row, and dtype
        "scores": f"float32 (B, {shape}), {means.get(task, 'numbers')}",
        "cutoffs": dict(zip(targets, map(_rounded, found), strict=True)) if (found := cutoffs(model)) else None,
        "transform": transform
        and f"{transform.__module__}.{getattr(transform, '__qualname__', type(transform).__qualname__)}",
        "crop": {"size": size, "center": config["data"].get("eval_crop", 1.0)},
        "backbone": title(model),
        "metrics": earlier_metrics(run),
        "versions": hardware.versions(),
    }


def _rounded(probability: float) -> float:
    return float(f"{probability:.6g}")


def _rows(names: tuple[str, ...], fields: dict[str, Any]) -> dict[str, Any]:
    """Shape and dtype of a row of each input."""
    for name in names:
        if fields.get(name, [None])[0] is None:
            raise InputError(
                f"the model looks at {name!r}, which has no fixed shape in the data: it cannot be exported"
            )
    return {name: fields[name] for name in names}


def _example(shape: list[int], dtype: str, chance: torch.Generator) -> Tensor:
    """Five rows of an input."""
    kind: torch.dtype = getattr(torch, dtype)
    if kind.is_floating_point:
        return torch.rand(5, *shape, dtype=kind, generator=chance)
    return torch.randint(0, 256 if kind is torch.uint8 else 2, (5, *shape), generator=chance).to(kind)


def check_format(path: Path) -> None:
    """Raise InputError for a format that there is not, or whose libraries are missing."""
    if path.suffix not in FORMATS:
        raise InputError(f"{path} ends with none of {', '.join(FORMATS)}: name a file that does")
    if path.suffix == ".onnx" and (
        missing := [x for x in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(x)]
    ):
        raise InputError(f"{missing[0]} is not installed: `uv run --extra onnx python -m ...` brings it")


def _save(program: ExportedProgram, about: str, path: Path, names: list[str]) -> None:
    made = io.BytesIO()  # torch's own writer aborts the process where a disk is full
    torch.export.save(program, made, extra_files={"about.json": about})
    path.write_bytes(made.getbuffer())


def _run(path: Path, inputs: list[Tensor]) -> Any:
    with path.open("rb") as file, torch.inference_mode():
        return torch.export.load(file).module()(*inputs).numpy()  # type: ignore[arg-type]


def _save_onnx(program: ExportedProgram, about: str, path: Path, names: list[str]) -> None:
    made = torch.onnx.export(program, dynamo=True, input_names=names, output_names=["scores"], verbose=False)
    assert made is not None
    made.model.metadata_props["about"] = about
    made.save(path, external_data=False)


def _run_onnx(path: Path, inputs: list[Tensor]) -> Any:
    """By ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    return session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})[0]
