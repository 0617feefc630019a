"""Joules: counted by the hardware where it has counters that may be read, else power times time.

    wall = (GPUs + CPU + rest of the machine) / power supply

GPUs: NVML's energy counter (Volta and newer), else NVML's power, integrated. CPU: RAPL where it may be read (root only
on most systems), else the watts of `prices.yaml`. The rest of the machine has no meter: its watts are stated.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pynvml

from .prices import Prices

RAPL = Path("/sys/class/powercap")


class Sensor(Protocol):
    """Joules since some moment, never fewer than before. `source` is what they come from."""

    source: str

    def joules(self) -> float: ...


class EnergyMeter:
    """Joules at the wall since it was made.

    Args:
        prices: the watts of what has no counter.
        gpus: UUIDs (`GPU-...`) of the GPUs in use on this machine; none where the CPU computes.
        gpu_name: finds the GPU's watts in `prices` where NVML cannot be read.
        share: GPUs of the whole training for each of `gpus`, and `machines` of them: taken to be alike.

    Attributes:
        source: of the energy of what computes: `nvml counter`, `nvml power`, `rapl` or `stated watts`; None where
            it is not known.
        note: what is to be said about that; empty where all is well.
    """

    def __init__(
        self,
        prices: Prices,
        gpus: Sequence[str] = (),
        gpu_name: str = "",
        share: float = 1.0,
        machines: int = 1,
        nvml: Any = pynvml,
    ) -> None:
        self._prices, self._share, self._machines = prices, share, machines
        self.note = ""
        cpu: Sensor = Rapl() if Rapl.readable() else Stated(prices.cpu_watts)
        self._host: list[Sensor] = [cpu, Stated(prices.rest_watts)]
        self._gpus: Sensor | None = None
        self.source: str | None = cpu.source
        if gpus:
            self._gpus = self._gpu_sensor(gpus, gpu_name, nvml)
            self.source = self._gpus.source if self._gpus else None
        self._known = self.source is not None
        self._start = self._read() if self._known else 0.0

    def joules(self) -> float | None:
        """None where the energy of what computes is not known: it is never 0 for want of a meter."""
        if self._known:
            try:
                return self._read() - self._start
            except (pynvml.NVMLError, OSError) as error:
                self._known, self.source = False, None
                self.note = f"the energy counter failed ({error}): energy is not known"
        return None

    def _read(self) -> float:
        host = sum(sensor.joules() for sensor in self._host) * self._machines
        gpus = self._gpus.joules() * self._share if self._gpus else 0.0
        return (host + gpus) / self._prices.power_supply

    def _gpu_sensor(self, gpus: Sequence[str], name: str, nvml: Any) -> Sensor | None:
        try:
            nvml.nvmlInit()
            handles = [nvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in gpus]
            try:
                return NvmlCounter(handles, nvml)
            except pynvml.NVMLError:
                return NvmlPower(handles, nvml)
        except pynvml.NVMLError as error:
            listed = self._prices.gpu(name)
            self.note = f"NVML cannot be read ({error}): energy is not known"
            if not listed:
                return None
            self.note = f"NVML cannot be read ({error}): the {listed.name} is taken to draw {listed.watts:g} W"
            return Stated(listed.watts * len(gpus))


class NvmlCounter:
    """The GPUs' own energy counters, in millijoules since the driver was loaded."""

    source = "nvml counter"

    def __init__(self, handles: Sequence[Any], nvml: Any) -> None:
        self._handles, self._nvml = handles, nvml
        self.joules()  # raises NVMLError where a GPU has none

    def joules(self) -> float:
        return sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles) / 1000


class NvmlPower:
    """The GPUs' power, read twice a second by a thread and integrated by the trapezoid rule."""

    source = "nvml power"
    PERIOD = 0.5  # seconds

    def __init__(self, handles: Sequence[Any], nvml: Any) -> None:
        self._handles, self._nvml = handles, nvml
        self._lock, self._total = threading.Lock(), 0.0
        self._last = time.monotonic(), self._watts()
        threading.Thread(target=_watch, args=(weakref.ref(self),), name="gpu-power", daemon=True).start()

    def joules(self) -> float:
        with self._lock:
            (before, power), self._last = self._last, (time.monotonic(), self._watts())
            self._total += (self._last[0] - before) * (power + self._last[1]) / 2
            return self._total

    def _watts(self) -> float:
        return sum(self._nvml.nvmlDeviceGetPowerUsage(handle) for handle in self._handles) / 1000


def _watch(sensor: weakref.ref[NvmlPower]) -> None:
    """Read the power now and then, as long as somebody has the sensor."""
    pause = threading.Event()
    while here := sensor():
        try:
            here.joules()
        except pynvml.NVMLError:
            return  # whoever reads the meter gets the same error
        period = here.PERIOD
        del here
        pause.wait(period)


class Rapl:
    """Energy of all CPU packages: Linux' powercap counters, which begin anew at a highest value every hour or so."""

    source = "rapl"

    def __init__(self, folder: Path | None = None) -> None:
        self._packages = _packages(folder or RAPL)
        self._ranges = [int((package / "max_energy_range_uj").read_text()) for package in self._packages]
        self._last = [int((package / "energy_uj").read_text()) for package in self._packages]
        self._total = 0

    @staticmethod
    def readable(folder: Path | None = None) -> bool:
        try:
            return bool(Rapl(folder)._packages)
        except (OSError, ValueError):
            return False

    def joules(self) -> float:
        now = [int((package / "energy_uj").read_text()) for package in self._packages]
        for value, last, most in zip(now, self._last, self._ranges, strict=True):
            self._total += value - last if value >= last else value + most - last
        self._last = now
        return self._total / 1e6


def _packages(folder: Path) -> list[Path]:
    """One folder a CPU package; those below it (cores, memory) are parts of it."""
    return sorted(path for path in folder.glob("intel-rapl:*") if path.name.count(":") == 1)


class Stated:
    """So many watts, always."""

    source = "stated watts"

    def __init__(self, watts: float) -> None:
        self.watts, self._began = watts, time.monotonic()

    def joules(self) -> float:
        return self.watts * (time.monotonic() - self._began)
