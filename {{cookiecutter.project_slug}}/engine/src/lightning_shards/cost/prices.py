"""`prices.yaml`: what a kilowatt-hour and an hour cost, and other GPUs to compare with. The user edits it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..yaml_text import read_yaml
from .usage import JOULES_PER_KWH

_KEYS = ("currency", "electricity", "rent", "watts", "power_supply", "gpus")
_GPU_KEYS = ("speed", "watts", "rent", "kind", "source", "date")


@dataclass(frozen=True)
class Gpu:
    """A GPU to compare with.

    Attributes:
        speed: images/s of a ResNet-50 in training, 224 pixels, mixed precision.
        watts: power of the board under load.
        rent: price of an hour, with its machine; None where it cannot be rented.
        kind: whether `speed` is `measured` or `estimated`; source, date: by whom or from what, and when.
    """

    name: str
    speed: float
    watts: float
    rent: float | None
    kind: str
    source: str
    date: str


@dataclass(frozen=True)
class Prices:
    """What the file says.

    Attributes:
        electricity: price of a kWh.
        rent: price of an hour of this machine; None where it is one's own.
        cpu_watts, rest_watts: of this machine under load, without its GPUs.
        power_supply: share of the power from the wall that arrives, in (0, 1].
    """

    currency: str
    electricity: float
    rent: float | None
    cpu_watts: float
    rest_watts: float
    power_supply: float
    gpus: tuple[Gpu, ...] = ()

    @classmethod
    def read(cls, path: str | Path) -> Prices:
        """Raises InputError, in one sentence, for a file that is missing or says something else than prices."""
        try:
            content = read_yaml(Path(path))
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}): it states what a kWh costs; run this in the project's"
                " folder, or name another with --prices FILE"
            ) from None
        except ValueError as error:
            raise InputError(f"{path} is no YAML ({' '.join(str(error).split())})") from None
        try:
            return cls._parse(content)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def _parse(cls, content: Any) -> Prices:
        _check_keys("", content, _KEYS, optional=("rent", "gpus"))
        _check_keys("watts.", content["watts"], ("cpu", "rest"))
        if not isinstance(content["currency"], str) or not content["currency"].strip():
            raise ValueError(f"currency is {content['currency']!r}, it must be a name such as EUR or USD")
        share = _number("power_supply", content["power_supply"])
        if not 0 < share <= 1:
            raise ValueError(f"power_supply is {share:g}, it must be above 0 and at most 1")
        gpus = content.get("gpus") or {}
        if not isinstance(gpus, Mapping):
            raise ValueError("gpus must be a list of names with speed, watts, rent, kind, source and date")
        return cls(
            currency=content["currency"].strip(),
            electricity=_number("electricity", content["electricity"]),
            rent=_price("rent", content.get("rent")),
            cpu_watts=_number("watts.cpu", content["watts"]["cpu"]),
            rest_watts=_number("watts.rest", content["watts"]["rest"]),
            power_supply=share,
            gpus=tuple(_gpu(str(name), about) for name, about in gpus.items()),
        )

    def gpu(self, device: str) -> Gpu | None:
        """The listed GPU of which `device` is one, such as RTX 3090 for `NVIDIA GeForce RTX 3090`."""
        if "laptop" in device.lower():
            return None  # the name of a card, the speed of another one
        fits = [gpu for gpu in self.gpus if re.search(rf"\b{re.escape(gpu.name)}\b", device, re.IGNORECASE)]
        return max(fits, key=lambda gpu: len(gpu.name), default=None)

    def cost(self, seconds: float, joules: float | None, machines: int = 1) -> float | None:
        """Money for so much time and energy; rent includes electricity. None where the energy is unknown."""
        if self.rent is not None:
            return self.rent * machines * seconds / 3600
        return None if joules is None else self.electricity * joules / JOULES_PER_KWH


def _gpu(name: str, about: Any) -> Gpu:
    where = f"gpus.{name}."
    _check_keys(where, about, _GPU_KEYS, optional=("rent",))
    if about["kind"] not in ("measured", "estimated"):
        raise ValueError(f"{where}kind is {about['kind']!r}, it must be measured or estimated")
    speed, watts = (_number(where + key, about[key]) for key in ("speed", "watts"))
    if not speed:
        raise ValueError(f"{where}speed is 0, it must be above")
    return Gpu(
        name, speed, watts, _price(where + "rent", about.get("rent")), about["kind"], str(about["source"]),
        str(about["date"]),
    )  # fmt: skip


def _check_keys(where: str, given: Any, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where.rstrip('.') or 'the file'} must hold {', '.join(keys)}")
    for key in given:
        if key not in keys:
            raise ValueError(f"{where}{key} is no setting; there are {', '.join(keys)}")
    for key in keys:
        if key not in given and key not in optional:
            raise ValueError(f"{where}{key} is missing")


def _number(where: str, value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise ValueError(f"{where} is {value!r}, it must be a number of at least 0")
    return float(value)


def _price(where: str, value: Any) -> float | None:
    return None if value is None else _number(where, value)
