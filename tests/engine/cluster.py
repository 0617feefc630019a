"""A real Slurm for the tests: its daemons on this host, for five nodes, and no trace of it at the end.

The nodes have graphics cards by name only: files that stand for the devices. Everything lies in a temporary folder, by
which every process of it is known: it is in their environment.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from . import PATIENCE
from .servers import HeldPort

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")
NODES = ("n1", "n2", "n3", "n4", "n5")
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=64 RealMemory=100000 Gres=gpu:8\n"
PARTITIONS = """
PartitionName=main Nodes=n1,n2 Default=YES
PartitionName=preemptible Nodes=n3 PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=n3 PriorityTier=2
PartitionName=frail Nodes=n4,n5
"""


def missing() -> str:
    """Why Slurm cannot run here; empty if it can."""
    if os.geteuid():
        return "Slurm's daemons need root"
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    return f"not installed: {', '.join(absent)} (Debian: slurm-wlm munge)" if absent else ""


def until(true: Callable[[], bool], what: str) -> None:
    """Wait until it is; an AssertionError with `what` when it is not after PATIENCE."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"waited {PATIENCE:.0f} s for {what}"
        time.sleep(0.3)


class Cluster:
    """The daemons of two nodes that any job gets, one where urgent jobs preempt others, and two to break.

    Args:
        variables: what the jobs have in their environment besides this process's.
    """

    def __init__(self, **variables: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.environment = {**os.environ, **variables, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._configure()
            self._start(
                "munged", "--force", "--foreground", f"--key-file={self.folder}/munge.key", *self._munge_files()
            )
            until((self.folder / "munge.socket").exists, "munged")
            self._start("slurmctld", "-D", "-c")
            for node in NODES:
                self.start_node(node)
            until(lambda: all(state == "idle" for state in self._states().values()), "the nodes")
        except BaseException:
            self.stop()
            raise

    def _configure(self) -> None:
        host = socket.gethostname().partition(".")[0]
        self._ports = [HeldPort() for _ in range(len(NODES) + 1)]
        *ports, port = self._ports
        nodes = [NODE.format(name=name, host=host, port=port) for name, port in zip(NODES, ports, strict=True)]
        config = CONFIG.format(folder=self.folder, host=host, port=port)
        (self.folder / "slurm.conf").write_text("".join([config, *nodes, PARTITIONS]))
        (self.folder / "gres.conf").write_text(f"NodeName=n[1-5] Name=gpu File={self.folder}/gpu[0-7]\n")
        for name in ("cgroup.conf", *(f"gpu{number}" for number in range(8))):
            (self.folder / name).touch()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        (self.folder / "state").mkdir()

    def _munge_files(self) -> list[str]:
        names = ("socket", "pid-file", "log-file", "seed-file")
        return [f"--{name}={self.folder}/munge.{name.partition('-')[0]}" for name in names]

    def _start(self, *command: str) -> None:
        name = command[-1] if command[0] == "slurmd" else command[0]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    # -- nodes
    def start_node(self, node: str) -> None:
        self._start("slurmd", "-D", "-N", node)

    def lose_node(self, node: str) -> None:
        """Its power goes: the daemon, what it looks after and its helpers end at once."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        tasks = self.processes(f"SLURMD_NODENAME={node}")
        shepherds = {_parent(task) for task in tasks} & set(self.processes())  # Slurm's, one a step
        for process in [*shepherds, *tasks]:
            _kill(process)
        self.call("scontrol", "update", f"nodename={node}", "state=down", "reason=power")

    def repair_node(self, node: str) -> None:
        self.start_node(node)
        until(lambda: self._states()[node] in ("idle", "mixed", "allocated"), f"{node} to come back")

    def _states(self) -> dict[str, str]:
        lines = self.call("sinfo", "-h", "-N", "-o", "%N %T", check=False).splitlines()
        return dict.fromkeys(NODES, "") | dict(line.split() for line in lines)  # type: ignore[misc]

    # -- jobs
    def call(self, *command: str, where: Path | None = None, check: bool = True) -> str:
        """What one of Slurm's commands says."""
        done = subprocess.run(
            command, cwd=where, env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, job: str) -> dict[str, str]:
        """What Slurm knows of it, such as JobState, Restarts and ExitCode."""
        words = self.call("scontrol", "-o", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def processes(self, *variables: str) -> list[int]:
        """Ids of this cluster's processes that have all of these in their environment, as `NAME=value`."""
        wanted = {f"SLURM_CONF={self.folder}/slurm.conf", *variables}
        numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [number for number in numbers if wanted <= set(_read(number, "environ").split("\0"))]

    def stop(self) -> None:
        """End every process of the cluster, jobs and all, and remove its folder."""
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()
        while left := self.processes():
            for process in left:
                _kill(process)
            time.sleep(0.1)
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(process: int, name: str) -> str:
    try:
        return Path(f"/proc/{process}/{name}").read_text(errors="replace")
    except OSError:
        return ""  # it has ended


def _parent(process: int) -> int:
    fields = _read(process, "stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def blocks(process: int, number: int) -> bool:
    """Whether the process keeps this signal waiting."""
    mask = [line.split()[1] for line in _read(process, "status").splitlines() if line.startswith("SigBlk:")]
    return bool(mask) and bool(int(mask[0], 16) >> (number - 1) & 1)


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
