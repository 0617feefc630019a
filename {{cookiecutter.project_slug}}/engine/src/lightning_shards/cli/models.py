"""`predict`, `export`: a run's best weights at work."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .. import machine
from ..entry import importing
from ..errors import InputError, RunError
from ..terminal import say, show


def add(commands: Any) -> None:
    """Add the parsers of these commands."""
    for add_one in (_add_predict, _add_export):
        add_one(commands)


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="what a run's best weights say of images",
        description="Say what the best weights of RUN (`last`: the newest) see in each image of SOURCE: a file, a "
        "folder (at any depth), a zip, a CSV or Parquet table of paths, or a packed dataset. One row an image, in CSV.",
    )
    parser.add_argument("name", metavar="RUN")
    parser.add_argument("source", metavar="SOURCE")
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE", help="the file to write (default: standard output)")
    add("--masks", type=Path, metavar="FOLDER", help="write the mask of each image, a PNG of its size, into FOLDER")
    add("--coco", type=Path, metavar="FILE", help="write the boxes of all images into FILE, in COCO's form")
    add(
        "--scores",
        action="store_true",
        help="a column with the probability of each class, too; its share of a mask, its surest box",
    )
    add("--flip", action="store_true", help="average over each image and its mirror image")
    add("--json", action="store_true", help="a line of JSON for each image, in place of CSV")
    add("--force", action="store_true", help="replace what is there")
    add("--split", help="of a packed dataset (test)")
    add("--path-column", metavar="NAME", help="of a table (path)")
    add("--images", type=Path, metavar="PLACE", help="folder or zip of a table's paths (default: the table's folder)")
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> None:
    from ..packing.report import progress_bar
    from ..runs.folder import find

    folder = find(arguments.name)
    with importing():
        from ..inference.coco_file import coco_file
        from ..inference.images import open_images
        from ..inference.mask_folder import check_new_folder, replacing_folder
        from ..inference.predict import check, cutoffs, predict
        from ..inference.rows import check_new, opened, to_dict, writer
        from ..train.datamodule import evaluation_transform
        from ..train.mirror import look_twice
        from ..train.trained_model import best_model

    machine.raise_on_stop()  # temporary files are removed then, too
    for file in filter(None, (arguments.out, arguments.coco)):
        check_new(file, arguments.force, [Path(arguments.source), *filter(None, [arguments.images])])
    if arguments.out and arguments.coco and arguments.out.resolve() == arguments.coco.resolve():
        raise InputError(f"--out and --coco both name {arguments.out}: give each a file of its own")
    if arguments.masks:
        check_new_folder(arguments.masks, arguments.force)
    datamodule_class = arguments.datamodule()
    model, config = best_model(arguments.model(), folder, datamodule_class)
    check(model)
    for flag, task, what in (("masks", "segmentation", "masks"), ("coco", "detection", "boxes")):
        if getattr(arguments, flag) and config["trained_on"]["task"] != task:
            raise InputError(f"--{flag} is for models of {what}, and {folder.name} was trained for other targets")
    if arguments.scores and config["trained_on"]["task"] == "regression":
        raise InputError(f"--scores gives probabilities of classes, and {folder.name} gives numbers: leave it out")
    mirrored = look_twice(model, config) if arguments.flip else None
    views = {"views": 2} if mirrored else {}
    source = arguments.source, arguments.split, arguments.path_column, arguments.images
    images = open_images(*source, config["data"])
    kind = config["trained_on"]["task"], list(config["trained_on"]["targets"]), arguments.scores
    decide_by = cutoffs(model)
    damaged, began = 0, time.monotonic()
    bar = progress_bar("predicting") if arguments.out or not sys.stdout.isatty() else nullcontext(lambda *done: None)
    try:
        with (
            opened(arguments.out, alone=not (arguments.masks or arguments.coco)) as out,
            replacing_folder(arguments.masks) as masks,
            coco_file(arguments.coco, kind[1]) as coco,
            bar as progress,
        ):
            write = writer(out, *kind, arguments.json, bool(masks))
            for number, prediction in enumerate(
                predict(model, config, images, evaluation_transform(datamodule_class)), 1
            ):
                if mirrored and not prediction.error:
                    mirrored.check_called()
                row = to_dict(prediction, *kind, decide_by) | views
                if masks and prediction.mask is not None:
                    row["mask"] = masks.write(prediction.name, prediction.mask)
                if coco:
                    coco.add(prediction)
                write(row)
                damaged += bool(prediction.error)
                progress(number, len(images))
            if damaged == len(images):
                raise RunError(f"no image of {arguments.source} could be decoded; the last one {prediction.error}")
            out.flush()  # before the other files get their names
    except KeyboardInterrupt:
        say("stopped; nothing was written" if arguments.out else "stopped", sys.stderr)
        os._exit(130)  # threads may wait for a server that does not answer
    rate = number / (time.monotonic() - began)
    message = f"{arguments.out}: " if arguments.out else ""
    message += f"{number:,} image{'s' * (number > 1)}, {rate:,.0f} a second{', each mirrored too' * bool(views)}"
    say(message + (f"; {damaged:,} could not be decoded" if damaged else ""), sys.stderr)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="a run's best weights as one file that runs without this project",
        description="Write the best weights of RUN (`last`: the newest) to FILE: a PyTorch program (.pt2) or ONNX "
        "(.onnx), which take uint8 RGB images and give probabilities, of each pixel for masks, or numbers.",
    )
    parser.add_argument("name", metavar="RUN")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--force", action="store_true", help="replace FILE")
    parser.add_argument("--json", action="store_true", help="print what the file says of itself as JSON")
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> None:
    from ..runs.folder import find

    folder = find(arguments.name)
    with importing():
        from ..inference.export import check_format, describe, export
        from ..inference.rows import check_new
        from ..train.datamodule import evaluation_transform
        from ..train.trained_model import best_model

    machine.raise_on_stop()
    check_format(arguments.file)
    check_new(arguments.file, arguments.force)
    datamodule_class = arguments.datamodule()
    model, config = best_model(arguments.model(), folder, datamodule_class)
    about = describe(model, config, folder, evaluation_transform(datamodule_class))
    export(model, about, arguments.file)
    taken = [
        about["images"] if name == "image" else f"{name} {dtype} ({', '.join(map(str, ['B', *shape]))})"
        for name, (shape, dtype) in about["inputs"].items()
    ]
    message = f"{arguments.file}: {', '.join(taken)} -> {about['scores']}"
    if about["transform"]:
        message += f"; {about['transform']} is not in it: apply it to the images before"
    show(json.dumps(about) if arguments.json else message)
