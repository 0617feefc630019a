"""A callback that writes down what each rank did in each step, and a network without batch statistics; both by name."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from team import backbones
from torch import Tensor, nn

PLAIN = "layer_norm_net"
COLLECTIVES = ("all_reduce", "broadcast", "barrier", "all_gather", "all_gather_object", "broadcast_object_list")
_build = backbones.build


class LayerNormNet(nn.Module):
    """For images of 8 or 16 pixels. Batch statistics would be those of a rank's own rows."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.GELU(), nn.AdaptiveAvgPool2d(3), nn.Flatten())
        self.head = nn.Sequential(nn.LayerNorm(72), nn.Linear(72, outputs))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stem(images))


def build(name: str, outputs: int, *others: Any) -> nn.Module:
    """`backbones.build`, which knows one more name in every process that imports this module."""
    return LayerNormNet(outputs) if name == PLAIN else _build(name, outputs, *others)


backbones.build = build  # type: ignore[assignment]


class Recorder(L.Callback):
    """`steps-<rank>.jsonl`: place, loss, rows and learning rate of each micro-batch, and the collectives in it.

    Args:
        digests: write down a hash of the parameters, too.
    """

    def __init__(self, digests: bool = False) -> None:
        self.digests = digests

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.called: list[str] = []
        for name in COLLECTIVES:
            setattr(dist, name, self._noted(name, getattr(dist, name)))

    def _noted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.called.append(name + (" ahead" if kwargs.get("async_op") else ""))
            return function(*args, **kwargs)

        return noted

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.called = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        row = {
            "place": data.place,
            "loss": float(outputs["loss"]) * trainer.accumulate_grad_batches,
            "rows": len(batch.ids),
            "rate": trainer.optimizers[0].param_groups[0]["lr"],
            "called": self.called,
            "trained": sum(p.grad is not None for p in pl_module.parameters()),
            "digest": weights_hash(pl_module) if self.digests else None,
        }
        with (Path(trainer.default_root_dir) / f"steps-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.called = []


def weights_hash(model: nn.Module) -> str:
    """Of the parameters alone: each rank has its own running statistics."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def rows(run: Path) -> list[dict[str, Any]]:
    """What all ranks wrote down."""
    return [json.loads(line) for path in sorted(run.glob("steps-*.jsonl")) for line in path.read_text().splitlines()]


def losses(run: Path) -> dict[tuple[int, int], float]:
    """Place -> loss of the global batch there."""
    sums: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0.0, 0])
    for row in rows(run):
        total = sums[tuple(row["place"])]
        total[0], total[1] = total[0] + row["loss"] * row["rows"], total[1] + row["rows"]
    return {place: total / count for place, (total, count) in sums.items()}


def rates(run: Path) -> dict[tuple[int, int], float]:
    """Place -> learning rate of the step there."""
    return {tuple(row["place"]): row["rate"] for row in rows(run)}


def weights(run: Path, name: str = "last", key: str = "state_dict") -> dict[str, Tensor]:
    """Of a checkpoint; `current_model_state` are those that are trained, where `state_dict` is their average."""
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)[key]
