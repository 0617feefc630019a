"""What a pass over a split found, made ready for the page: tables for each class, charts, and images in groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.mask_file import bright_colour, palette
from ..runs.files import RunFiles
from . import charts, numbers

_GROUPS = {  # kind of example -> its heading, for classes, for numbers, for masks and for boxes
    "surest": ("Wrong, and most sure of it", "Furthest off", "Most pixels wrong", "Most boxes wrong"),
    "wrong": ("Other mistakes, drawn at random", "Drawn at random", "Drawn at random", "Drawn at random"),
    "right": ("Right, drawn at random", "Closest", "Fewest pixels wrong", "Fewest boxes wrong"),
}
_HEADINGS = {"regression": 1, "segmentation": 2, "detection": 3}  # which of them; else the first
_NOTES = {
    "segmentation": (
        "Image, truth, prediction, and in red where they differ; cream-coloured pixels count nowhere. The classes above"
        " have their colours; shares are the intersection over union in this image."
    ),
    "detection": (
        "Left the boxes that are there, right those that were found, from a score of 30% on. The classes above have"
        " their colours. A box is found where one of its class overlaps it by half (intersection over union)."
    ),
}
_PAIRS = 8  # confusions that are listed
_ROWS = 1000  # of a table
_CHARTED = 6  # numbers that get charts
_SHOWN = 100  # images of a kind
_IN_CAPTION = 6  # classes of one image


def of(run: RunFiles) -> dict[str, Any]:
    """What `evaluation/` tells, for the page; an empty one where it tells nothing or is damaged."""
    nothing = {
        "title": "",
        "charts": [],
        "pairs": [],
        "columns": [],
        "rows": [],
        "groups": [],
        "note": "",
        "intervals": False,
    }
    evaluation = run.evaluation
    if not evaluation:
        return nothing
    try:
        names = [str(name) for name in evaluation["targets"]]
        title = f"{'Test' if evaluation['split'] == 'test' else 'Validation'} split, {evaluation['images']:,} images"
        tables = {"regression": _numbers, "detection": _boxes}
        found = tables.get(evaluation["task"], _classes)(evaluation, names)
        note = _NOTES.get(evaluation["task"], "")
        return nothing | found | {"title": title, "groups": _groups(evaluation, names), "note": note}
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        run.missing.append(f"evaluation/ is damaged ({type(error).__name__}: {error}): what it found is not shown")
        return nothing


def _classes(evaluation: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Precision and recall of each class, the weakest first; of pixels the intersection over union, too."""
    counts, matrix = evaluation["counts"], evaluation["counts"].get("confusion")
    pixels = evaluation["task"] == "segmentation"
    colours = palette()
    if matrix is not None:
        right = [row[i] for i, row in enumerate(matrix)]
        there, said = [sum(row) for row in matrix], [sum(column) for column in zip(*matrix, strict=True)]
    else:  # of each class: true positives, false positives, true negatives, false negatives, images
        right, there = ([row[i] for row in counts["stat_scores"]] for i in (0, 4))
        said = [row[0] + row[1] for row in counts["stat_scores"]]
    further = {
        title: counts[name]
        for name, title in (("average_precision", "average precision"), ("auroc", "AUROC"))
        if counts.get(name) and not pixels
    }
    cutoffs = evaluation.get("cutoffs")
    rows = []
    for i, name in enumerate(names):
        precision, recall = _share(right[i], said[i]), _share(right[i], there[i])
        f1 = _share(2 * right[i], said[i] + there[i])
        cells = [_cell(precision, said[i]), _cell(recall, there[i]), _cell(f1)]
        cells += [_cell(values[i]) for values in further.values()]
        if pixels:
            values = _share(right[i], said[i] + there[i] - right[i]), precision, recall
            cells = [_cell(value) for value in values]
        elif cutoffs:
            cells.append({"text": f"{cutoffs[i]:.1%}", "percent": None, "range": ""})
        colour = "#" + colours[i].tobytes().hex() if pixels else ""
        weight = 2.0 if f1 is None else f1
        first = f"{there[i]:,}"
        rows.append({"name": name, "first": first, "cells": cells, "weight": weight, "colour": colour})
    rows.sort(key=lambda row: row["weight"])
    columns = ["precision", "recall", "F1", *further, *(["there from"] if cutoffs else [])]
    return {
        "charts": [charts.confusion(matrix, names, pixels)] if matrix is not None else [],
        "pairs": _pairs(matrix, names, pixels) if matrix is not None else [],
        "columns": ["pixels", "IoU", "precision", "recall"] if pixels else ["images", *columns],
        "rows": rows[:_ROWS],
        "intervals": not pixels,
    }


def _pairs(matrix: Sequence[Sequence[int]], names: list[str], pixels: bool) -> list[dict[str, str]]:
    """What is most often taken for what."""
    wrong = [
        (count, actual, predicted)
        for actual, row in enumerate(matrix)
        for predicted, count in enumerate(row)
        if count and actual != predicted
    ]
    times, of = ("pixels", "of its pixels") if pixels else ("times", "of its images")
    return [
        {"actual": names[a], "predicted": names[p], "often": f"{n:,} {times}, {n / sum(matrix[a]):.0%} {of}"}
        for n, a, p in sorted(wrong, reverse=True)[:_PAIRS]
    ]


def _numbers(evaluation: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Errors of each number, and charts of predicted over actual for the first few."""
    errors = {name: value if isinstance(value, list) else [value] for name, value in evaluation["counts"].items()}
    drawn = []
    for i, name in enumerate(names[:_CHARTED]):
        points = [(actual[i], predicted[i]) for actual, predicted in evaluation["points"]]
        if points:
            drawn += [charts.predicted_over_actual(name, points), charts.residuals(name, points)]
    return {
        "charts": drawn,
        "columns": [name.replace("_", " ") for name in errors],
        "rows": [
            {
                "name": name,
                "colour": "",
                "first": None,
                "cells": [{"text": f"{e[i]:.4g}", "percent": None, "range": ""} for e in errors.values()],
            }
            for i, name in enumerate(names[:_ROWS])
        ],
    }


def _boxes(evaluation: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Average precision of each class, the weakest first."""
    counts = evaluation["counts"]
    rows = [
        {
            "name": name,
            "first": f"{int(counts['boxes'][i]):,}",
            "cells": [_cell(counts["ap"][i]), _cell(counts["ap_50"][i])],
            "weight": counts["ap"][i] if counts["boxes"][i] else 2.0,
            "colour": "#" + bytes(bright_colour(i)).hex(),
        }
        for i, name in enumerate(names)
    ]
    rows.sort(key=lambda row: row["weight"])
    return {"columns": ["boxes", "AP", "AP at overlap 0.5"], "rows": rows[:_ROWS]}


def _groups(evaluation: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """The images of each kind, with captions."""
    captions = {
        "single_label": _of_class, "multi_label": _of_labels, "regression": _of_numbers, "segmentation": _of_mask,
        "detection": _of_boxes,
    }  # fmt: skip
    caption = captions[evaluation["task"]]
    groups = []
    for kind, headings in _GROUPS.items():
        images = [
            {"url": example["image"], "place": f"{example['shard']}, sample {example['number']}"}
            | dict(zip(("said", "actual"), caption(example, names), strict=True))
            for example in evaluation["examples"].get(kind, [])[:_SHOWN]
            if str(example["image"]).startswith("data:image/")
        ]
        if images:
            heading = headings[_HEADINGS.get(evaluation["task"], 0)]
            groups.append({"kind": f"{kind} {evaluation['task']}", "heading": heading, "images": images})
    return groups


def _of_class(example: dict[str, Any], names: list[str]) -> tuple[str, str]:
    """What the model says and how sure it is; what the image is, where that is something else."""
    (said, score), actual = example["predicted"][0], example["actual"][0]
    return f"{names[said]} {score:.0%}", "" if said == actual else f"is {names[actual]}"


def _of_labels(example: dict[str, Any], names: list[str]) -> tuple[str, str]:
    """Where the model is right, its labels; else only the labels in which it is not."""
    said, actual = dict(example["predicted"]), set(example["actual"])
    wrongly = [f"{names[number]} {score:.0%}" for number, score in said.items() if number not in actual]
    missed = [names[number] for number in sorted(actual - set(said))]
    if not wrongly and not missed:
        return ", ".join(names[number] for number in sorted(actual)) or "no label", ""
    return f"says {', '.join(wrongly)}" if wrongly else "", f"misses {', '.join(missed)}" if missed else ""


def _of_numbers(example: dict[str, Any], names: list[str]) -> tuple[str, str]:
    return _values(example["predicted"], names), f"is {_values(example['actual'], names)}"


def _of_mask(example: dict[str, Any], names: list[str]) -> tuple[str, str]:
    """The mean intersection over union, and that of each class in the image, the largest first."""
    shares = [(names[number], share) for number, share in example["predicted"]]
    mean = sum(share for _, share in shares) / max(1, len(shares))
    return f"mean IoU {mean:.0%}", ", ".join(f"{name} {share:.0%}" for name, share in shares[:_IN_CAPTION])


def _of_boxes(example: dict[str, Any], names: list[str]) -> tuple[str, str]:
    """How many boxes were found, and how many more were said; what was said, the surest first."""
    found, said, actual = example["found"], example["predicted"], example["actual"]
    more = f", {len(said) - found} too many" if len(said) > found else ""
    classes = ", ".join(f"{names[number]} {score:.0%}" for number, score in said[:_IN_CAPTION])
    return f"{found} of {len(actual)} found{more}", classes


def _values(values: list[float], names: list[str]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return ", ".join(f"{name} {value:.3g}" for name, value in zip(names, values, strict=True))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _cell(value: float | None, images: int = 0) -> dict[str, Any]:
    """A share in a table: its text, the length of its bar in percent, and its 95% interval where it was counted."""
    if value is None or value != value:
        return {"text": "-", "percent": 0, "range": ""}
    low, high = numbers.interval(value, images) if images else (0.0, 0.0)
    between = f"{100 * low:.0f}-{100 * high:.0f}" if images else ""
    return {"text": f"{value:.1%}", "percent": round(100 * value), "range": between}
