"""Starts of a training that can be struck at any moment: for the soak and for the tests of resuming.

Importing torch and Lightning takes seconds, so most starts are forks of one process that has imported everything and
has a single thread (multiprocessing's fork server). Ranks are forked with the variables that a launcher sets.
"""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import train
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning_shards import reporting
from lightning_shards import train as training
from lightning_shards.data.worker import DecodeWorker
from lightning_shards.train import run
from lightning_shards.train.checkpoints import Checkpoints
from lightning_shards.train.eval_metrics import EvalPass
from lightning_shards.train.metrics_file import MetricsFile
from team.model import ImageModel

from . import WARM_DECODING
from .in_place import PROJECT
from .plain import Training
from .servers import HeldPort

DecodeWorker.python = os.environ.get(WARM_DECODING, DecodeWorker.python)
MOMENTS: dict[str, tuple[Any, str]] = {  # when a strike on train.py can fall: at the begin of this call
    "setup": (ImageModel, "configure_optimizers"),
    "train": (Checkpoints, "on_train_start"),
    "batch": (ImageModel, "training_step"),
    "step": (Checkpoints, "on_train_batch_end"),
    "validation": (Checkpoints, "on_validation_batch_end"),
    "validated": (Checkpoints, "on_validation_end"),
    "epoch": (Checkpoints, "on_train_epoch_end"),
    "save": (Checkpoints, "save"),
    "fsync": (os, "fsync"),
    "rename": (Path, "replace"),
    "best": (os, "link"),
    "metrics": (MetricsFile, "save"),
    "test": (EvalPass, "on_test_epoch_end"),
}
PLAIN_MOMENTS: dict[str, tuple[Any, str]] = {  # the same in a loop of plain PyTorch
    "forward": (Training, "forward"),
    "step": (Training, "step"),
    "save": (Training, "save"),
    "fsync": (os, "fsync"),
    "rename": (Path, "replace"),
}
Program = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class Strike:
    """A signal at the `count`-th time that rank `rank` comes to `moment`."""

    moment: str
    count: int
    number: int = signal.SIGKILL
    rank: int = 0


def prepare() -> None:
    """The environment of all processes that are started from here."""
    os.environ.update(WANDB_MODE="disabled", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", PYTHONUNBUFFERED="1")


def server() -> Any:
    """The fork server, with all imports done in it, also those that wait until they are needed."""
    prepare()
    context = multiprocessing.get_context("forkserver")
    rooms = ((room, f"{room.__name__}.") for room in (training, reporting))
    late = [module.name for room, prefix in rooms for module in pkgutil.iter_modules(room.__path__, prefix)]
    context.set_forkserver_preload([__name__, "wandb", *late])
    return context


def train_py(arguments: Sequence[str]) -> None:
    """train.py, as if it had been started with these arguments, on as many devices as there are ranks."""
    sys.argv = ["train.py", "--trainer.devices", os.environ.get("WORLD_SIZE", "1"), *arguments]
    train.main()


def _rank(
    program: Program,
    folder: Path,
    log: Path,
    arguments: Sequence[str],
    environment: dict[str, str],
    strikes: Sequence[Strike],
) -> None:
    """What a forked process does: the program, as if it had been started with these arguments and variables."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    run._LAUNCHED = "LOCAL_RANK" in environment  # what modules have read from the environment on import
    rank = int(environment.get("LOCAL_RANK", 0))
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    for strike in strikes:
        if strike.rank == rank:
            _arm(strike, MOMENTS if program is train_py else PLAIN_MOMENTS)
    status = 0
    try:
        program(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)


def _arm(strike: Strike, moments: dict[str, tuple[Any, str]]) -> None:
    owner, name = moments[strike.moment]
    original, left = getattr(owner, name), strike.count

    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), strike.number)
        return original(*args, **kwargs)

    setattr(owner, name, struck)


class Forked:
    """One start of a program, train.py or another, on `devices` forked ranks."""

    def __init__(
        self,
        context: Any,
        folder: Path,
        arguments: Sequence[str],
        devices: int = 1,
        strikes: Sequence[Strike] = (),
        program: Program = train_py,
    ) -> None:
        self._port = HeldPort()
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._port), "WORLD_SIZE": str(devices)}
        self._processes = []
        for rank in range(devices):
            environment = {**shared, "LOCAL_RANK": str(rank), "NODE_RANK": "0"} if devices > 1 else {}
            log = folder / f"output-{rank}.log"
            process = context.Process(target=_rank, args=(program, folder, log, arguments, environment, strikes))
            process.start()
            self._processes.append(process)

    def statuses(self) -> list[int | None]:
        return [process.exitcode for process in self._processes]

    def send(self, number: int) -> None:
        for process in self._processes:
            if process.exitcode is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def left_behind(self) -> list[int]:
        return [process.pid for process in self._processes if process.exitcode is None]


class Launched:
    """One start of train.py as a user starts it: the ranks come from Lightning's launcher or from torchrun."""

    def __init__(self, folder: Path, arguments: Sequence[str], devices: int = 1, torchrun: bool = False) -> None:
        command = [str(PROJECT / "train.py"), *arguments, "--trainer.devices", str(devices)]
        if torchrun:
            agent = ["-m", "torch.distributed.run", "--nproc-per-node", str(devices), "--master-port"]
            self._port = HeldPort()
            command = [*agent, str(self._port), "--", *command]  # without it, torchrun takes --run for its own
        with (folder / "output-0.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command], cwd=folder, stdout=log, stderr=log, start_new_session=True
            )
        self._family = {self._process.pid}

    def statuses(self) -> list[int | None]:
        self._family |= _descendants(self._family)
        return [self._process.poll()]

    def send(self, number: int) -> None:
        """To the whole family: torchrun puts each of its ranks into a session of its own."""
        self._family |= _descendants(self._family)
        for process in self._family:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def left_behind(self) -> list[int]:
        return [p for p in self._family if p != self._process.pid and _parent(p) is not None]


class Host(Launched):
    """One start of train.py on a host: its torchrun, on an address of its own, with one rank."""

    def __init__(
        self, folder: Path, address: str, port: HeldPort, nodes: str, restarts: int, arguments: Sequence[str]
    ) -> None:
        agent = {
            "nnodes": nodes,
            "nproc-per-node": 1,
            "max-restarts": restarts,
            "rdzv-id": "two",
            "rdzv-backend": "c10d",
            "rdzv-endpoint": f"127.0.0.1:{port}",
            # both addresses are this host's: say which of them keeps the list of hosts
            "rdzv-conf": f"last_call_timeout=2,keep_alive_interval=1,is_host={str(address.endswith('2')).lower()}",
            "local-addr": address,
        }
        options = [text for name, value in agent.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "torch.distributed.run", *options, "--", str(PROJECT / "train.py"), *arguments]
        environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with (folder / f"{address}.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self._family = {self._process.pid}

    def signal_agent(self, number: int) -> None:
        """To torchrun alone."""
        self.statuses()
        self._process.send_signal(number)


Start = Forked | Launched


def wait(start: Start, timeout: float, until: Callable[[], bool] = lambda: False) -> list[int | None]:
    """The exit statuses; once a rank was killed, the others are too. What still runs at the end is None."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        statuses = start.statuses()
        if None not in statuses or until():
            return statuses
        if any(status is not None and status < 0 for status in statuses):
            start.send(signal.SIGKILL)
        time.sleep(0.005)
    return start.statuses()


def _parent(process: int) -> int | None:
    """Its parent's id; None where it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[1])


def _descendants(family: set[int]) -> set[int]:
    parents = {int(p.name): _parent(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit()}
    found: set[int] = set()
    while new := {p for p, parent in parents.items() if parent in family | found} - family - found:
        found |= new
    return found
