"""Who started this process, and where it stands among the others: read from the variables of Slurm, torchrun and
Lightning's launcher.

The functions are pure: they take the environment. Slurm's variables are those of `srun`, one process for each device;
in a batch script without it, or in an interactive shell of an allocation, a process is alone as on a desktop.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment

from ..errors import InputError

Environment = Mapping[str, str]
_FIRST_SPECIAL_STEP = 0xFFFFFFF0  # above are Slurm's names for an interactive shell, a batch script and the like


def _step(environment: Environment) -> int | None:
    """The number of the step as which srun started this process."""
    step = int(environment.get("SLURM_STEP_ID", _FIRST_SPECIAL_STEP))
    return step if step < _FIRST_SPECIAL_STEP else None


def layout(environment: Environment = os.environ) -> tuple[int, int] | None:
    """(nodes, devices of each), where torchrun or srun has started a process for each device; else None.

    Raises InputError where Lightning could not tell the ranks' places.
    """
    if "LOCAL_WORLD_SIZE" in environment:
        devices = int(environment["LOCAL_WORLD_SIZE"])
        return int(environment["WORLD_SIZE"]) // devices, devices
    if _step(environment) is None:
        return None
    nodes, tasks = int(environment["SLURM_STEP_NUM_NODES"]), int(environment["SLURM_STEP_NUM_TASKS"])
    if "," in environment["SLURM_STEP_TASKS_PER_NODE"]:
        raise InputError(
            f"srun started {environment['SLURM_STEP_TASKS_PER_NODE']} tasks on its nodes: give it --ntasks-per-node,"
            " the number of GPUs of a node"
        )
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in environment:
        raise InputError(f"give --ntasks-per-node {tasks // nodes} to srun in place of the number of all tasks")
    return nodes, tasks // nodes


def check_flags(found: tuple[int, int], devices: str | None, num_nodes: str | None, prefix: str = "--trainer.") -> None:
    """Raise InputError for a flag that contradicts what was launched."""
    for flag, given, launched in (("devices", devices, found[1]), ("num_nodes", num_nodes, found[0])):
        if given not in (None, "auto", "-1", str(launched)):
            raise InputError(
                f"{prefix}{flag} is {given}, but {launched} was launched: leave the flag out, it is known from"
                " the launcher"
            )


def check_nodes(num_nodes: int, environment: Environment = os.environ) -> None:
    """Raise InputError for several machines that nobody says the way to: Lightning would wait for them."""
    if num_nodes > 1 and layout(environment) is None and not {"MASTER_ADDR", "NODE_RANK"} <= environment.keys():
        raise InputError(
            f"trainer.num_nodes is {num_nodes}, but this start knows of no other machine: start train.py by torchrun or"
            " srun on each of them"
        )


def cluster(environment: Environment = os.environ) -> list[ClusterEnvironment]:
    """What Lightning is to take for the cluster in a Slurm allocation; empty elsewhere, it finds that out itself.

    It would take any allocation of tasks for srun, and none that is called `interactive`.
    """
    if "SLURM_JOB_ID" not in environment or "LOCAL_WORLD_SIZE" in environment:
        return []
    return [LightningEnvironment() if _step(environment) is None else SLURMEnvironment(auto_requeue=False)]


def name(environment: Environment = os.environ) -> str | None:
    """What all ranks, and a start after a requeue, call the run by themselves; None: nobody has named it.

    A Slurm job's id; `<array's job>_<task>` in a job array; `<job>.<step>` from the job's second srun on. Else the id
    that was given to torchrun.
    """
    batch = "SLURM_STEP_ID" not in environment and "SLURM_PROCID" in environment
    step = _step(environment)
    if "SLURM_JOB_ID" in environment and (batch or step is not None):
        job = environment["SLURM_JOB_ID"]
        if "SLURM_ARRAY_TASK_ID" in environment:
            job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
        return f"{job}.{step}" if step else job
    given = environment.get("TORCHELASTIC_RUN_ID")
    if given != "none":
        return given
    return f"torchrun-{environment.get('MASTER_PORT', '')}-{os.getppid()}" if _hosts(environment) == 1 else None


def nameless(environment: Environment = os.environ) -> bool:
    """Whether ranks of several hosts have nothing from which to take the run's name."""
    return name(environment) is None and _hosts(environment) > 1


def requeued(environment: Environment = os.environ) -> bool:
    """Whether Slurm has started this job before."""
    return int(environment.get("SLURM_RESTART_COUNT", 0)) > 0


def goes_on(environment: Environment = os.environ) -> bool:
    """Whether a run that is there already is this one: a job that was requeued, ranks that torchrun started again, or
    a host that came late to a torchrun with a name."""
    again = int(environment.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    return again or requeued(environment) or environment.get("TORCHELASTIC_RUN_ID", "none") != "none"


def _hosts(environment: Environment) -> int:
    return int(environment.get("GROUP_WORLD_SIZE", 1))
