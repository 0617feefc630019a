"""The report's charts: SVG by matplotlib, to be set into a page whose colours and font they take over.

matplotlib draws with placeholder colours, which are then exchanged for the page's CSS variables, so that one drawing
serves light, dark and paper.
"""

from __future__ import annotations

import html
import io
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

Points = Sequence[tuple[float, float]]
Bins = Sequence[tuple[int, int, float]]
INK, MUTED, RULE, FIRST, SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", FIRST: "--first", SECOND: "--second"}
_RIGHT, _WRONG = (0.11, 0.55, 0.53), (0.88, 0.35, 0.24)  # hues that can be seen on white and on black
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "report",  # the same drawing gives the same file
    "text.parse_math": False,  # names of classes may hold dollar signs
    "font.size": 10,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.5,
    "axes.titlepad": 9,
    "axes.titlecolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": MUTED,
}
_MOST_POINTS = 300  # of a line; more are not seen


def lines(
    title: str, curves: Mapping[str, Points], share: bool = False, marked: tuple[str, float, float] | None = None
) -> str:
    """One or two curves over optimizer steps.

    Args:
        title: what is drawn.
        curves: (step, value) by the name in the legend.
        share: write the values as percent.
        marked: (text, step, value) of one more point, such as the test's.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(2.5, title)
        for (name, points), colour in zip(curves.items(), (FIRST, SECOND), strict=False):
            x, y = _thinned(points)
            many = len(x) > 30
            width, marker = (1.0, "") if many and len(curves) > 1 else (1.6, "" if many else "o")
            axes.plot(x, y, color=colour, label=name, linewidth=width, marker=marker, markersize=3)
        if marked:
            axes.plot(*marked[1:], color=INK, marker="D", markersize=4.5, linestyle="", label=marked[0])
        if len(curves) > 1 or marked:
            axes.legend(loc="best", fontsize=9, handlelength=1.2)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if share:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        axes.set_xlabel("optimizer step")
        return _svg(figure, title)


def confusion(counts: Sequence[Sequence[int]], names: Sequence[str], percent: bool = False) -> str:
    """Counts (actual, predicted), or with `percent` shares of the actual class, which is what the shade is."""
    matrix = np.asarray(counts, float)
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    image = np.empty((*matrix.shape, 4))
    image[..., :3] = np.where(np.eye(len(matrix), dtype=bool)[..., None], _RIGHT, _WRONG)
    image[..., 3] = np.sqrt(shares)  # so that one image in a hundred is seen
    few = len(names) <= 20
    with mpl.rc_context(_STYLE | {"axes.grid": False, "font.size": 9}):
        figure, axes = _figure(4.5, "")
        axes.imshow(image, interpolation="none")
        if few:
            ticks = [name if len(name) <= 14 else name[:13] + "…" for name in names]
            axes.set_xticks(range(len(names)), ticks, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(len(names)), ticks)
            size = 7 if len(names) > 12 else 9
            for row, column in np.argwhere(matrix):
                text = f"{100 * shares[row, column]:.0f}" if percent else f"{matrix[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=size)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted" if few else "predicted (class number)")
        unit = ", percent of its pixels" if percent and few else ""
        axes.set_ylabel(f"actual{unit}" if few else "actual (class number)")
        return _svg(figure, "Confusion matrix")


def reliability(before: Bins, after: Bins | None, labels: bool) -> str:
    """How often the model is right over how sure it is; below, the share of the images at each confidence.

    Args:
        before, after: (decisions, how many were right, sum of the confidences) of each bin, as the network says and
            with the temperature; None: there is none.
        labels: a decision is a label of an image, not an image.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 4.2), dpi=72, layout="constrained")
        axes, shares = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        axes.set_title("Reliability")
        axes.plot((0, 1), (0, 1), color=MUTED, linewidth=0.8)
        drawn = [("network alone", before, SECOND, "o"), ("with temperature", after, FIRST, "D")]
        for place, (name, bins, colour, marker) in enumerate(row for row in drawn if row[1]):
            assert bins is not None
            total = max(1, sum(row[0] for row in bins))
            points = [(sure / count, right / count) for count, right, sure in bins if count]
            axes.plot(*zip(*points, strict=True), color=colour, label=name, marker=marker, markersize=4, linewidth=1.4)
            width = 0.4 if after else 0.8
            lefts = [(number + 0.1 + place * width) / len(bins) for number in range(len(bins))]
            shares.bar(lefts, [row[0] / total for row in bins], width / len(bins), align="edge", color=colour)
        axes.legend(loc="upper left", fontsize=9)
        for one in (axes, shares):
            one.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        shares.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        axes.set_ylabel("there" if labels else "right")
        shares.set_ylabel("labels" if labels else "images")
        shares.set_xlabel("probability of the label" if labels else "probability of the guess")
        return _svg(figure, "Reliability")


def predicted_over_actual(name: str, points: Points) -> str:
    """One point an image: what it is, what the model says; on the line both are the same."""
    actual, predicted = np.asarray(points, float).T
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(3.4, f"{name}: predicted over actual")
        ends = [min(actual.min(), predicted.min()), max(actual.max(), predicted.max())]
        axes.plot(ends, ends, color=MUTED, linewidth=0.8)
        axes.scatter(actual, predicted, s=7, color=FIRST, alpha=0.45, linewidths=0)
        axes.set_xlabel("actual")
        axes.set_ylabel("predicted")
        return _svg(figure, f"{name}: predicted over actual")


def residuals(name: str, points: Points) -> str:
    """How often the model is off by how much."""
    actual, predicted = np.asarray(points, float).T
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(3.4, f"{name}: how far off")
        axes.hist(predicted - actual, bins=31, color=FIRST, alpha=0.8)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_xlabel("residual: predicted - actual")
        axes.set_ylabel("images")
        return _svg(figure, f"{name}: residuals")


def _figure(height: float, title: str) -> tuple[Figure, Axes]:
    """As wide as a phone, in units of its pixels: larger screens set several side by side."""
    figure = Figure(figsize=(4.6, height), dpi=72, layout="constrained")
    axes = figure.add_subplot()
    if title:
        axes.set_title(title)
    return figure, axes


def _thinned(points: Points) -> tuple[Any, Any]:
    """The curve in at most `_MOST_POINTS` points, each the mean of its neighbours."""
    x, y = np.asarray(points, float).T
    if len(x) > _MOST_POINTS:
        parts = np.array_split(np.arange(len(x)), _MOST_POINTS)
        x, y = (np.array([values[part].mean() for part in parts]) for values in (x, y))
    return x, y


def _svg(figure: Figure, description: str) -> str:
    """The drawing as an `<svg>` for a page of HTML."""
    file = io.StringIO()
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)  # a font without some letters does not matter: the page's font is used
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    finally:
        log.setLevel(level)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'font: ([\d.]+)px [^;"]*', r"font-size: \1px", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    label = html.escape(description, quote=True)
    said = f'role="img" aria-label="{label}">'  # which may have a backslash in it
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda size: f"<svg {size[1]} {said}", text, count=1)
