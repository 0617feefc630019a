"""`embed`: what a frozen network makes of every image, kept beside the tars."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .. import machine
from ..cost.usage import check_amounts
from ..entry import importing
from ..errors import InputError
from ..packing.options import size
from ..terminal import say, show
from .data import STOPPED


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "embed",
        help="run a frozen network over a dataset once, and keep what it makes of each image",
        description="Run NETWORK over all images of DATASET once and keep its features beside the tars, 16-bit numbers "
        "that a training reads in place of the images (data.features), or its scores beside them (data.teacher). "
        "Interrupted, the same command goes on.",
    )
    add = parser.add_argument
    add("network", metavar="NETWORK", help="a run, `last`, a checkpoint's file, or a backbone such as resnet50")
    add("dataset", metavar="DATASET", help="folder or URL")
    add("--name", help="by which a training calls it (default: features, or teacher with --scores)")
    add("--scores", action="store_true", help="keep the scores of a trained model, not its features")
    add("--weights", help="of a backbone: imagenet, a checkpoint, or none (imagenet)")
    add("--views", type=int, default=1, metavar="N", help="random crops of each training image; 1: its centre")
    add(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side of what the network sees (default: the run's, or that of its weights)",
    )
    add("--eval-crop", type=float, metavar="SHARE", help="of the shorter side that the centre is (the run's, or 0.875)")
    add("--crop-scale", type=float, nargs=2, metavar="SHARE", help="of the image, random crops (the run's, or 0.25 1)")
    add(
        "--crop-ratio", type=float, nargs=2, metavar="R", help="width / height, random crops (the run's, or 3/4 to 4/3)"
    )
    add("--flip", type=float, metavar="P", help="probability that a random crop is mirrored (the run's, or 0.5)")
    add("--seed", type=int, help="of random crops (0)")
    add("--batch-size", type=int, default=256, help="images at a time (%(default)s)")
    add("--workers", type=int, help="decoding threads (default: CPU cores)")
    add("--devices", default="auto", help="GPUs, or processes where there is none (default: all GPUs, or 1)")
    add("--force", action="store_true", help="replace what another network made under this name")
    add("--images", type=size, default=100_000_000, help="to forecast for, such as 1G (%(default)s)")
    add("--seconds", type=float, default=24.0, help="to measure for the forecast (%(default)s)")
    add("--forecast", action="store_true", help="measure, and say what it will take and leave; nothing is written")
    add("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_embed)


def _embed(arguments: argparse.Namespace) -> int:
    with importing():
        from ..inference.embed_report import forecast, render, render_forecast
        from ..inference.networks import embedder
        from ..packing.report import progress_bar

    for option in () if arguments.forecast else ("--images", "--seconds"):
        if option in arguments.typed:
            raise InputError(f"{option} is for a forecast: add --forecast, or leave it out")
    check_amounts(arguments.images, arguments.seconds)
    machine.raise_on_stop()
    made = embedder(arguments.model(), vars(arguments), arguments.datamodule())
    if arguments.forecast:
        report = forecast(made, arguments.images, arguments.seconds)
        if made.fabric.is_global_zero:
            show(json.dumps(report) if arguments.json else render_forecast(report))
        return 0
    try:
        with progress_bar("embedding") as progress:
            report = made.run(progress)
    except KeyboardInterrupt:
        say("stopped, what was made is kept; run the same command again", sys.stderr)
        return STOPPED
    if made.fabric.is_global_zero:
        show(json.dumps(report) if arguments.json else render(report))
    return 0
