"""The top of a report: the one number that a run is judged by, how far chance may move it, and all metrics."""

from __future__ import annotations

from ..runs.files import RunFiles
from ..runs.values import is_count
from . import numbers, seeds


def headline(run: RunFiles) -> dict[str, str] | None:
    """The one number, and how far chance may have moved it."""
    if run.headline is None:
        return None
    name, value = run.headline
    split, _, metric = name.partition("/")
    images = run.evaluation.get("images") if run.evaluation.get("split") == split else None
    note = f"best weights, {split} split" if split == "test" else "best validation so far"
    if is_count(images) and images:
        note += f" of {images:,} images"
        if metric == "accuracy" and 0 <= value <= 1:
            low, high = numbers.interval(value, images)
            note += f"; 95% interval {low:.1%} to {high:.1%}"
    group = seeds.of(run)
    return {
        "name": numbers.title(metric),
        "value": numbers.metric(name, value),
        "note": note,
        "seeds": seeds.text(group) if group else "",
    }


def metrics(run: RunFiles) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The splits of which the summary has something; and of each metric its name and a value of each split."""
    found = run.summary.get("metrics", {})
    splits = [split for split in ("train", "val", "test") if any(name.startswith(f"{split}/") for name in found)]
    hidden = {"skipped", "learning_rate"}
    if all(found.get(f"{split}/temperature", 1.0) == 1.0 for split in splits):  # none was fitted
        hidden |= {"temperature", "calibration_error_unscaled"}
    names = dict.fromkeys(name.partition("/")[2] for name in found if name.startswith(("val/", "test/", "train/")))
    rows = []
    for name in names:
        if name not in hidden and not name.startswith("iou/"):  # the classes have a table
            values = [found.get(f"{split}/{name}") for split in splits]
            rows.append((numbers.title(name), ["" if v is None else numbers.metric(name, v) for v in values]))
    return splits, rows


def neighbours(run: RunFiles) -> str:
    """What the k-NN accuracy of a training on features was reckoned from."""
    samples, drawn = (run.summary.get("resolved", {}).get(name) for name in ("knn_samples", "knn_drawn"))
    if not is_count(samples):
        return ""
    of = f"{samples:,} training samples, drawn by the seed" if drawn else f"all {samples:,} training samples"
    return f"knn: the 20 nearest of {of}, by cosine"
