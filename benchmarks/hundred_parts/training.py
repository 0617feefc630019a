"""One rank of a training without a model: it takes the loader's batches, looks at each, and writes down their ids."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from lightning_shards.data import Crop, ShardLoader

from .ledger import ID, TARGETS, Ledger, name_of


def train(task: dict[str, Any]) -> None:
    """Go on where the state in the ledger's folder says, to the end of the epoch.

    Raises AssertionError for a batch that is not what the dataset holds.
    """
    data, ledger, rank, world = Path(task["data"]), Ledger(Path(task["ledger"])), task["rank"], task["world"]
    if world > 1:
        meeting = f"file://{ledger.folder.absolute()}/meeting-{task['attempt']}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    targets, each = np.load(data / TARGETS), task["each"]
    batch_size, kept = task["batch"], task["decoded_bytes"]
    loader = ShardLoader(data, batch_size, crop=Crop(task["crop"]), workers=task["workers"], decoded_bytes=kept)
    state, counted = ledger.saved()
    if state:
        loader.load_state_dict(state)
    every = max(1, task["save_every"] // (batch_size * world))
    handed = 0

    def save() -> None:
        if world > 1:
            dist.barrier()  # as an optimizer's step is one: every rank has written as many batches
        if rank == 0:
            mine = {name_of(task["attempt"], one): handed for one in range(world)}
            ledger.save(loader.state_dict(), {**counted, **mine})

    file = os.open(ledger.folder / name_of(task["attempt"], rank), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for number, batch in enumerate(loader, 1):
        ids = batch.ids.numpy()
        shards, rows = np.divmod(ids, each)
        right = batch["target"].numpy() == targets[shards % len(targets), rows]
        assert batch.valid.all() and right.all() and len(ids) == batch_size, "a batch is not what the tars hold"
        os.write(file, ids.astype(ID).tobytes())
        handed += len(ids)
        if number % every == 0:
            save()
    save()
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
