"""A gallery in the loggers: the images of a pass with what the model says of them, and the confusion matrix in W&B."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable
from typing import Any

import cv2
import torch

from ..terminal import say
from .wandb_logger import Wandb


def show(loggers: Iterable[Any], evaluation: dict[str, Any]) -> None:
    """The images of a pass, and the confusion matrix, in W&B; the images in any logger that takes some."""
    for logger in loggers if evaluation else ():  # there is one on rank zero only
        if isinstance(logger, Wandb):
            _log(logger, evaluation)
        elif hasattr(logger, "log_image"):
            _offer(logger, evaluation)


def _log(logger: Wandb, evaluation: dict[str, Any]) -> None:
    logger.try_to(lambda: logger.experiment.log(_shown(evaluation)))


def _offer(logger: Any, evaluation: dict[str, Any]) -> None:
    """Hand the images to a logger as Lightning's own take them; what it makes of them ends no training."""
    examples = [(kind, example) for kind, examples in evaluation["examples"].items() for example in examples]
    images = [_pixels(example["image"]) for _, example in examples]
    captions = [f"{kind}: {_caption(example, evaluation['targets'])}" for kind, example in examples]
    try:
        logger.log_image(key=f"{evaluation['split']}/predictions", images=images, caption=captions)
    except Exception as defect:
        say(f"{type(logger).__name__} took no images: {type(defect).__name__}: {defect}", sys.stderr)


def _shown(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What was found on a split, as W&B's images and charts."""
    import wandb

    split = evaluation["split"]
    shown: dict[str, Any] = {
        f"{split}/predictions": [
            wandb.Image(_pixels(example["image"]), caption=f"{kind}: {_caption(example, evaluation['targets'])}")
            for kind, examples in evaluation["examples"].items()
            for example in examples
        ]
    }
    if "confusion" in evaluation["counts"]:
        shown[f"{split}/confusion_matrix"] = _matrix_plot(
            evaluation["counts"]["confusion"], evaluation["targets"], split
        )
    return shown


def _pixels(image: str) -> Any:
    """RGB, uint8 (S, S, 3), of a data URL."""
    data = torch.frombuffer(bytearray(base64.b64decode(image.partition(",")[2])), dtype=torch.uint8).numpy()
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def _caption(example: dict[str, Any], names: list[str]) -> str:
    """`prediction (how sure) | target`."""
    if example["predicted"] and isinstance(example["predicted"][0], float):
        predicted, actual = (
            [f"{n} {value:.3g}" for n, value in zip(names, example[key], strict=True)]
            for key in ("predicted", "actual")
        )
    else:
        predicted = [f"{names[number]} ({score:.0%})" for number, score in example["predicted"]]
        actual = [names[number] for number in example["actual"]]
    return f"{', '.join(predicted) or 'nothing'} | {', '.join(actual) or 'nothing'}"


def _matrix_plot(counts: list[list[int]], names: list[str], split: str) -> Any:
    """W&B's own confusion matrix, from counts (actual, predicted)."""
    import wandb

    rows = [[names[a], names[p], count] for a, row in enumerate(counts) for p, count in enumerate(row)]
    return wandb.plot_table(
        data_table=wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=rows),
        vega_spec_name="wandb/confusion_matrix/v1",
        fields={"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
        string_fields={"title": f"Confusion matrix ({split})"},
    )
