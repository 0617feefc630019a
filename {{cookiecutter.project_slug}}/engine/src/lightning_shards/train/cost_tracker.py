"""Time, energy and money of a run over all its attempts: what it took, what it was expected to take, what it may take.

Rank zero measures; the other machines of a training on several are taken to be like its own.
"""

from __future__ import annotations

import time
from dataclasses import asdict, astuple, dataclass
from typing import Any

import lightning as L

from ..cost.energy import EnergyMeter
from ..cost.prices import Prices
from ..cost.usage import JOULES_PER_KWH, Usage
from ..errors import InputError
from ..runs.values import is_number
from . import hardware

CHECK_EVERY = 1.0  # seconds between looks at the budget: some counters take a millisecond to read


@dataclass(frozen=True)
class Budget:
    """What a run may take over all its attempts; None: as much as it needs."""

    max_hours: float | None = None
    max_kwh: float | None = None
    max_cost: float | None = None

    def check(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value:g}, it must be above 0")

    def spent(self, amount: Usage) -> str:
        """The setting that is used up, such as `max_hours 2`; empty where all are left."""
        used = {"max_hours": amount.seconds / 3600, "max_kwh": amount.kwh, "max_cost": amount.cost}
        for name, value in asdict(self).items():
            taken = used[name]
            if value is not None and taken is not None and taken >= value:
                return f"{name} {value:g}"
        return ""


class CostTracker:
    """Counts while a training runs.

    Args:
        prices: None counts the time only.
        budget: what the run may take.
    """

    def __init__(self, prices: Prices | None = None, budget: Budget | None = None) -> None:
        self.prices, self.budget = prices, budget or Budget()
        self.budget.check()
        self.expected: Usage | None = None  # for the whole run, by its first attempt that could tell
        self.meter: EnergyMeter | None = None
        self._earlier: tuple[float, float | None, float | None] = (0.0, 0.0, 0.0)  # seconds, joules, money
        self._began: float | None = None
        self._machines, self._checked_at, self._measures = 1, 0.0, False

    def attach(self, trainer: L.Trainer, device: str) -> None:
        """Find the meters of the devices that `trainer` uses. Raises InputError for a budget that cannot be kept."""
        limits = self.budget
        if self.prices is None and (limits.max_kwh or limits.max_cost):
            raise InputError("max_kwh and max_cost need the file of prices: give it with --prices FILE")
        self._machines, self._measures = trainer.num_nodes, trainer.is_global_zero
        if self.prices and trainer.is_global_zero:
            self.meter = energy_meter(self.prices, trainer, device)
            needs_energy = limits.max_kwh or (limits.max_cost and self.prices.rent is None)
            if needs_energy and self.meter.source is None:
                raise InputError(f"a budget of energy cannot be kept: {self.meter.note}; give --max_hours")

    @property
    def source(self) -> str | None:
        """What the energy is counted by; None where it is not known."""
        return self.meter.source if self.meter else None

    @property
    def note(self) -> str:
        """Why the energy is not known, or not measured."""
        return self.meter.note if self.meter else "there is no file of prices: energy and money are not counted"

    @property
    def total(self) -> Usage:
        """Of all attempts until now."""
        seconds, joules, cost = self._sum()
        return self._amount(seconds, joules, cost)

    def start(self) -> None:
        """A training begins, or goes on after a pause."""
        self._joules_before = self.meter.joules() if self.meter else None
        self._began = time.monotonic()

    def stop(self) -> None:
        """It ends; what follows is not counted."""
        self._earlier, self._began = self._sum(), None

    def spent(self) -> str:
        """The budget that is used up; empty on ranks that do not measure. Reads the meters once a second at most."""
        if not any(astuple(self.budget)) or not self._measures or time.monotonic() - self._checked_at < CHECK_EVERY:
            return ""
        self._checked_at = time.monotonic()
        return self.budget.spent(self.total)

    def expect(self, seconds: float) -> Usage:
        """What the whole run will have taken after `seconds` more like those of this attempt."""
        spent_seconds, spent_joules, spent_cost = self._sum()
        now_seconds, now_joules, now_cost = self._now()
        share = seconds / now_seconds if now_seconds else 0.0
        ahead = self._amount(
            spent_seconds + seconds, _plus(spent_joules, now_joules, share), _plus(spent_cost, now_cost, share)
        )
        self.expected = self.expected or ahead
        return ahead

    def state_dict(self) -> dict[str, Any]:
        seconds, joules, cost = self._sum()
        expected = asdict(self.expected) if self.expected else None
        return {"seconds": seconds, "joules": joules, "cost": cost, "expected": expected}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        counted, expected = (state["seconds"], state.get("joules"), state.get("cost")), state.get("expected")
        of_both = [*counted, *(expected[name] for name in ("seconds", "kwh", "cost") if expected)]
        if not all(value is None or is_number(value) for value in of_both) or counted[0] is None:
            raise ValueError(f"spending is {state}")
        self._earlier, self.expected = counted, Usage(**expected) if expected else None

    def _amount(self, seconds: float, joules: float | None, cost: float | None) -> Usage:
        kwh = None if joules is None else joules / JOULES_PER_KWH
        return Usage(seconds, kwh, cost, self.prices.currency if self.prices else None)

    def _now(self) -> tuple[float, float | None, float | None]:
        """Seconds, joules and money of this attempt."""
        if self._began is None:
            return 0.0, 0.0, 0.0
        seconds, joules = time.monotonic() - self._began, self.meter.joules() if self.meter else None
        joules = None if joules is None or self._joules_before is None else joules - self._joules_before
        return seconds, joules, self.prices.cost(seconds, joules, self._machines) if self.prices else None

    def _sum(self) -> tuple[float, float | None, float | None]:
        (a, b, c), (x, y, z) = self._earlier, self._now()
        return a + x, _plus(b, y), _plus(c, z)


def _plus(a: float | None, b: float | None, factor: float = 1.0) -> float | None:
    return None if a is None or b is None else a + factor * b


def energy_meter(prices: Prices, trainer: L.Trainer, device: str) -> EnergyMeter:
    """Of this machine's GPUs that `trainer` uses, standing for those of all machines; of the CPU where it computes."""
    gpus = hardware.gpu_uuids(trainer.device_ids) if device == "cuda" else []
    share = trainer.world_size / len(gpus) if gpus else 1.0
    return EnergyMeter(prices, gpus, hardware.device_name(device), share, trainer.num_nodes)
