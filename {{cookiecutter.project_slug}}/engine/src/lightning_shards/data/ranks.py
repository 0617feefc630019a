"""Which of how many processes of a training this one is, where nobody says so."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `world` that train together, `here` of them on this host."""

    rank: int
    world: int
    here: int


def find_ranks(rank: int | None = None, world: int | None = None) -> Ranks:
    """What was given; else torch.distributed's, where a process group was made; else torchrun's variables; else one.

    Raises InputError for one number without the other, or a rank that is not below the other.
    """
    if (rank is None) != (world is None):
        raise InputError("rank and world_size go together: give both, or neither")
    torch_distributed = sys.modules.get("torch.distributed")  # not imported: no process group was made
    if rank is None or world is None:
        if torch_distributed and torch_distributed.is_available() and torch_distributed.is_initialized():
            rank, world = torch_distributed.get_rank(), torch_distributed.get_world_size()
        else:
            rank, world = _variable("RANK", 0), _variable("WORLD_SIZE", 1)
    if not 0 <= rank < world:
        raise InputError(f"rank {rank} of world_size {world}: a rank is at least 0 and below world_size")
    return Ranks(rank, world, max(1, min(world, _variable("LOCAL_WORLD_SIZE", world))))


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, "") if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else ""
    try:
        return int(text or default)
    except ValueError:
        raise InputError(f"the environment's {name} is {text!r}, no number") from None
