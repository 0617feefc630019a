"""How far a model's probabilities may be believed, and the one temperature that mends them.

A model that says 90% should be right in 90% of such cases. Networks are mostly too sure of themselves. Dividing all
logits by one temperature, fitted on validation, brings the two together and changes no decision (Guo et al., 2017, "On
Calibration of Modern Neural Networks").

No logits are stored: a pass adds up the negative log likelihood at a fixed grid of temperatures, and how often the
model is right at each confidence, in 15 bins.

Shapes: B rows, T classes or labels, G temperatures, N decisions (rows, or each label of each row), 15 bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from .ranking import Link
from .thresholds import Thresholds

BINS = 15  # of equal width, as in Guo et al.
LOWEST, HIGHEST, STEPS = 0.1, 10.0, 65  # temperatures of the grid, log-spaced; the one in the middle is 1
_AT_A_TIME = 1 << 22  # logits that are divided at once


def grid() -> Tensor:
    """The temperatures at which the likelihood is added up, float32 (STEPS,)."""
    return torch.logspace(math.log10(LOWEST), math.log10(HIGHEST), STEPS)


def fitted(nll: Tensor) -> float:
    """The temperature of the smallest negative log likelihood, given its sums at `grid()`, (STEPS,).

    A prior on the temperature's logarithm, normal with a deviation of 1, weighs less than one row. It decides only
    what the rows leave open: where all of them are right, the likelihood alone would ask for certainty. A parabola
    through the best point and its neighbours gives the place between them. 1 where a sum is not finite.
    """
    if not bool(nll.isfinite().all()):
        return 1.0
    places = grid().double().log()
    costs = nll.cpu().double() + places.square() / 2
    best = int(costs.argmin())
    if not 0 < best < STEPS - 1:
        return float(places[best].exp())
    before, here, after = costs[best - 1 : best + 2].tolist()
    bend = before - 2 * here + after
    shift = (before - after) / (2 * bend) if bend > 0 else 0.0
    return float((places[best] + shift * (places[1] - places[0])).exp())


def fitted_values(model: nn.Module) -> list[str]:
    """The names in a model's `state_dict` of what validations fit, and older checkpoints lack."""
    return [
        f"{name}.{value}"
        for name, one in model.named_modules()
        if isinstance(one, Calibration)
        for value in one.state_dict()
    ]


def error(bins: Tensor) -> float:
    """The expected calibration error, 0..1, of `bins`, float64 (15, 3): decisions, how many were right, and the sum
    of the confidences."""
    decisions, right, confidence = bins.unbind(1)
    return float((right - confidence).abs().sum() / decisions.sum().clamp(min=1))


class Reliability(Metric):
    """The likelihood at each temperature of the grid, and at which confidence the model is how often right.

    For one class a row, the confidence is the largest probability. For labels, each label of each row is a decision,
    and its probability the confidence.

    Args:
        link: what makes probabilities of logits.
        searching: look at the whole grid; else as the logits are, and at one temperature.
    """

    nll: Tensor
    decisions: Tensor
    right: Tensor
    confidence: Tensor

    def __init__(self, link: Link, searching: bool) -> None:
        super().__init__()
        self.link, self.searching = link, searching
        places = STEPS if searching else 2
        for name, default in {
            "nll": torch.zeros(places),
            "decisions": torch.zeros(places, BINS, dtype=torch.int64),
            "right": torch.zeros(places, BINS, dtype=torch.int64),
            "confidence": torch.zeros(places, BINS),
        }.items():
            self.add_state(name, default, dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor, temperature: Tensor) -> None:
        """Add B rows: float (B, T), targets int64 (B,) or float (B, T), and the one temperature, float ()."""
        if self.searching:
            divisors = grid().to(logits.device)
        else:
            divisors = torch.stack([torch.ones_like(temperature), temperature])
        step = max(1, _AT_A_TIME // max(1, logits.numel()))
        for first in range(0, len(divisors), step):
            some = slice(first, first + step)
            nll, confidence, right = _outcomes(self.link, logits, targets, divisors[some])
            self.nll[some] += nll
            bins = ((confidence * BINS).ceil() - 1).clamp(0, BINS - 1)
            for number in range(BINS):
                inside = bins == number
                self.decisions[some, number] += inside.sum(1)
                self.right[some, number] += (inside & right).sum(1)
                self.confidence[some, number] += (confidence * inside).sum(1)

    def compute(self) -> tuple[Tensor, Tensor]:
        """The sums of the negative log likelihood, (G,), and the bins, float64 (G, 15, 3), on the CPU."""
        parts = (self.decisions, self.right, self.confidence)
        return self.nll.cpu(), torch.stack([part.cpu().double() for part in parts], 2)


def _outcomes(link: Link, logits: Tensor, targets: Tensor, divisors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """At each of G temperatures: the negative log likelihood, (G,), and the confidences, (G, N); and which of the
    decisions were right, bool (N,)."""
    scaled = logits / divisors.view(-1, 1, 1)
    if link == "softmax":
        whole = scaled.logsumexp(2)
        own = scaled.gather(2, targets.view(1, -1, 1).expand(len(divisors), -1, 1))[..., 0]
        return (whole - own).sum(1), (scaled.amax(2) - whole).exp().nan_to_num(0.0), logits.argmax(1) == targets
    wanted = targets.to(scaled.dtype).expand_as(scaled)
    nll = F.binary_cross_entropy_with_logits(scaled, wanted, reduction="none").sum((1, 2))
    return nll, scaled.sigmoid().flatten(1).nan_to_num(0.0), targets.flatten() > 0.5


class Calibration(nn.Module):
    """The temperature of a model, kept with its weights, and what the passes over validation and test add up of it.

    A model has it as its attribute `calibration`. Each validation of a training fits the temperature; all else uses
    it. A checkpoint that has none stands for 1.

    Args:
        link: what makes probabilities of the model's outputs; None: they are none, and all of this is left out.
        calibrate: fit a temperature and use it; else it stays 1, and the error is measured only.
        labels: T, where each has a threshold of its own (`Thresholds`); 0: there are none.
        thresholds: fit them; else they stay at a probability of 0.5.

    Attributes:
        found: what the last pass has found, plain values for the report; None: there were no rows.
    """

    temperature: Tensor  # float32 ()

    def __init__(self, link: Link | None, calibrate: bool = True, labels: int = 0, thresholds: bool = True) -> None:
        super().__init__()
        self.thresholds = Thresholds(labels, thresholds) if link == "sigmoid" and labels else None
        self.link, self.calibrate = link, calibrate
        self.register_buffer("temperature", torch.ones(()))
        self.found: dict[str, Any] | None = None
        self._passes = nn.ModuleList([Reliability(link, searching) for searching in (False, True)] if link else [])
        self._searching, self._choosing, self._before = False, False, 1.0

    def forward(self, logits: Tensor) -> Tensor:
        """The logits over the temperature, (B, T)."""
        return logits / self.temperature if self.link else logits

    @property
    def cutoffs(self) -> Tensor | None:
        """From which probability on each label counts as there, float (T,); None where there are no labels."""
        return None if self.thresholds is None else (self.thresholds.logits / self.temperature).sigmoid()

    def centred(self, scores: Tensor) -> Tensor:
        """Probabilities, moved so that a label counts as there from 0.5 on, float (B, T)."""
        if self.thresholds is None:
            return scores
        return (scores.logit(eps=1e-7) - self.thresholds.logits / self.temperature).sigmoid()

    def pooled(self, views: Sequence[Tensor]) -> Tensor:
        """Outputs whose probabilities are the mean of those of several views' outputs, float (B, T) each.

        Without probabilities, the mean of the outputs.
        """
        if not self.link:
            return torch.stack(list(views)).mean(0)
        scaled = self(torch.stack(list(views)))
        if self.link == "softmax":
            return (scaled.log_softmax(2).logsumexp(0) - math.log(len(views))) * self.temperature
        return (F.logsigmoid(scaled).logsumexp(0) - F.logsigmoid(-scaled).logsumexp(0)) * self.temperature

    def begin(self, fit: bool) -> None:
        """A pass begins; with `fit`, its end fits the temperature."""
        self.found, self._searching, self._before = None, fit and self.calibrate, float(self.temperature)
        self._choosing = fit
        for one in self._passes:
            one.reset()  # type: ignore[operator]
        if self.thresholds is not None:
            self.thresholds.begin()

    def update(self, logits: Tensor, targets: Tensor, valid: Tensor) -> None:
        """Add B rows, of which those count that are `valid`, bool (B,)."""
        if self.link and bool(valid.any()):
            self._passes[self._searching].update(logits[valid], targets[valid], self.temperature)  # type: ignore[operator]
            if self.thresholds is not None:
                self.thresholds.update(logits[valid], targets[valid])

    def end(self) -> dict[str, float]:
        """What the pass has found over all ranks, by name; empty where there was nothing to find."""
        if not self.link:
            return {}
        nll, bins = self._passes[self._searching].compute()  # type: ignore[operator]
        before, after = bins[0], bins[1]
        if not before.sum():
            return {}
        if self._searching:
            self.temperature.fill_(fitted(nll))
            nearest = int((grid().log() - self.temperature.cpu().log()).abs().argmin())
            before, after = bins[STEPS // 2], bins[nearest]
        self.found = {"unscaled": before.tolist(), "fitted_here": self._searching, "link": self.link}
        decided = self._decided()
        if not self.calibrate:
            return {"calibration_error": error(before), **decided}
        self.found |= {"scaled": after.tolist(), "temperature": float(self.temperature)}
        found = {"calibration_error": error(after), "calibration_error_unscaled": error(before)}
        return {**found, **decided, "temperature": float(self.temperature)}

    def _decided(self) -> dict[str, float]:
        """The mean F1 score of the labels that occur, at their thresholds."""
        if self.thresholds is None:
            return {}
        table = self.thresholds.end(self._choosing)
        assert self.found is not None and self.cutoffs is not None
        self.found |= {"labels": table.tolist(), "cutoffs": self.cutoffs.tolist()}
        right, wrong, _, missed, there = table.double().unbind(1)
        f1 = (2 * right / (2 * right + wrong + missed).clamp(min=1))[there > 0]
        return {"f1": float(f1.mean())} if len(f1) else {}

    def restated(self, scores: Tensor) -> Tensor:
        """Probabilities that the pass has given, (T,), at the temperature that its end has fitted."""
        ratio = self._before / float(self.temperature)
        if not self.link or ratio == 1:
            return scores
        logits = scores.log() if self.link == "softmax" else scores.logit()
        return (logits * ratio).softmax(0) if self.link == "softmax" else (logits * ratio).sigmoid()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        name = f"{prefix}temperature"
        if name not in state_dict or not self.calibrate:  # of an older version, or no longer wanted
            state_dict[name] = torch.ones(())
        super()._load_from_state_dict(state_dict, prefix, *rest)
