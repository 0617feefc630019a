"""What `summary.json` and a run's first lines say of a training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_only

from ..runs.checkpoints import state
from ..terminal import say, several
from . import contract, hardware
from .module import ShardModule

if TYPE_CHECKING:
    from .cli import TrainingCLI


@rank_zero_only
def announce(cli: TrainingCLI) -> None:
    """What will happen, in two lines or three."""
    r, data = cli.resolved, cli.data
    parameters = sum(p.numel() for p in cli.model.parameters())
    lines = (
        f"{cli.run.folder}: {contract.title(cli.model)} ({parameters / 1e6:.2g} million parameters),"
        f" {several(len(data.order), 'image')} of {data.inputs}, {several(cli.trainer.max_epochs or 0, 'epoch')},"
        f" global batch {data.global_batch_size}"
        f"\n{cli.trainer.world_size} x {hardware.device_name(cli.device)}: {r['precision']},"
        f" micro-batch {r['micro_batch_size']} x {r['accumulation']}, {r['workers']} decoding threads,"
        f" compile {'on' if r['compile'] else 'off'}",
        *filter(None, (_goes_on(cli), _of_the_model(cli), data.note, cli.spending.note)),
    )
    say("\n".join(lines))


def _of_the_model(cli: TrainingCLI) -> str:
    """What the model has to say when a run begins."""
    return cli.model.note if isinstance(cli.model, ShardModule) and not cli.run.last_checkpoint else ""


def _goes_on(cli: TrainingCLI) -> str:
    """Where a resume does; empty for a run that begins."""
    if not (checkpoint := cli.run.last_checkpoint):
        return ""
    place, images = state(checkpoint), len(cli.data.order)
    where = f"goes on in epoch {place['epoch'] + 1} at image {place['position']:,} of {images:,}"
    if place["epoch"] >= (cli.trainer.max_epochs or 0):
        where = f"all {several(place['epoch'], 'epoch')} are done"
    partly = "; means over this epoch's training count from there" if place["position"] else ""
    return f"{where}, from {checkpoint.name} ({several(place['images_seen'], 'image')} seen){partly}"


def to_dict(cli: TrainingCLI, metrics: dict[str, float]) -> dict[str, Any]:
    """What `summary.json` says of the run so far, whose last values are `metrics`."""
    spent, expected = cli.spending.total, cli.spending.expected
    monitor, mode = contract.goal(cli.model)
    return {
        "images_seen": cli.data.images_seen,
        "steps": cli.trainer.fit_loop.epoch_loop._batches_that_stepped,
        "epochs": cli.data.epoch,
        "metrics": metrics,
        "images_per_second": cli.meter.images_per_second,
        "data_wait_fraction": cli.meter.data_wait_fraction,
        "seconds": round(spent.seconds, 3),
        "kwh": spent.kwh,
        "cost": spent.cost,
        "currency": spent.currency,
        "energy_source": cli.spending.source,
        "expected": expected.to_dict() if expected else None,
        "skipped": cli.run.skipped,
        "model": contract.title(cli.model),
        "monitor": monitor.removeprefix("val/"),
        "mode": mode,
        "dataset": {"path": str(cli.data.dataset.root), "fingerprint": cli.data.dataset.fingerprint},
        "devices": cli.trainer.world_size,
        "precision": str(cli.trainer.precision),
        "hardware": hardware.device_name(cli.device),
        "resolved": cli.resolved,
        "versions": hardware.versions(),
        "git": hardware.git_state(Path.cwd()),
    }
