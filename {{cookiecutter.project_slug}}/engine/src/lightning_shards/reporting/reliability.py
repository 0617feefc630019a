"""How far the probabilities of a run may be believed, made ready for the page."""

from __future__ import annotations

from typing import Any

from ..runs.files import RunFiles
from . import charts

_MOST_BINS = 100
Bins = list[tuple[int, int, float]]  # decisions, how many were right, sum of the confidences


def of(run: RunFiles) -> dict[str, str]:
    """A sentence or two and a chart of what `evaluation/` has of calibration; empty where it has nothing."""
    found = run.evaluation.get("calibration")
    if not found:
        return {}
    try:
        labels, scaled = found["link"] == "sigmoid", found.get("scaled")
        if found.get("temperature") == 1.0:  # no validation has fitted one
            scaled = None
        before, after = _checked(found["unscaled"]), _checked(scaled) if scaled else None
        return {"text": _text(found, before, after, labels), "chart": charts.reliability(before, after, labels)}
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        run.missing.append(f"evaluation/ is damaged ({type(error).__name__}: {error}): the calibration is not shown")
        return {}


def _checked(rows: Any) -> Bins:
    """Raises ValueError for what cannot be counts."""
    bins = [(int(decisions), int(right), float(confidence)) for decisions, right, confidence in rows]
    if not 0 < len(bins) <= _MOST_BINS or not all(
        0 <= right <= decisions and 0 <= sure <= 2 * decisions for decisions, right, sure in bins
    ):
        raise ValueError("the bins of the calibration are no counts")
    return bins


def error(bins: Bins) -> float:
    """The expected calibration error, 0..1."""
    return sum(abs(right - sure) for _, right, sure in bins) / max(1, sum(decisions for decisions, _, _ in bins))


def _text(found: dict[str, Any], before: Bins, after: Bins | None, labels: bool) -> str:
    meant = (
        "A label given 90% should be there in 9 images of 10"
        if labels
        else "A guess of 90% should be right 9 times in 10"
    )
    text = (
        f"{meant}. Over {sum(row[0] for row in before):,} {'labels' if labels else 'images'}, the probabilities are off"
    )
    if after is None:
        return f"{text} by {error(before):.1%} on average (expected calibration error, 15 bins)."
    temperature = float(found["temperature"])
    text += (
        f" by {error(after):.1%} on average (expected calibration error, 15 bins). Without the temperature of"
        f" {temperature:.3g} they would be off by {error(before):.1%}. The checkpoint has it: predict, evaluate"
        " and export use it."
    )
    return f"{text} It was fitted on these very images: expect more on others." if found["fitted_here"] else text
