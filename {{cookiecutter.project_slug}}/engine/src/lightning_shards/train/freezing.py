"""Parts of a model that are not trained, or not yet: without gradients, and as in evaluation.

What a frozen part would cost in training, gradients, an optimizer's state and their sending to other ranks, is not
spent on it. The optimizer has all parameters from the begin and passes over those without a gradient, so what is
frozen may change at any step, and on a resume.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

from ..errors import InputError
from ..vision.blocks import modules
from .module import ShardModule

_LAST = math.nextafter(1.0, 0.0)  # progress of a last step


class Freezing(L.Callback):
    """Keeps to what `ShardModule.frozen` says at each step."""

    def __init__(self) -> None:
        self._frozen: dict[int, nn.Parameter] = {}
        self._begun = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Before ranks agree on what they send. Where a resume begins is not known yet, so as at the begin."""
        if stage == "fit" and isinstance(pl_module, ShardModule):
            first, last = ({id(one) for one in pl_module.frozen(progress)} for progress in (0.0, _LAST))
            if first != last and pl_module.hparams.get("optimizer") == "lamb":
                raise InputError(
                    "model.optimizer lamb corrects its first steps by one count for all parameters, so those that"
                    " model.thaw_after adds would begin with steps too large: take adamw, or leave model.thaw_after out"
                )
            self._freeze(pl_module, pl_module.frozen(0.0))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not isinstance(pl_module, ShardModule):
            return
        changed = self._freeze(pl_module, pl_module.frozen(pl_module.progress))
        if changed:
            send_what_is_trained(trainer)
        if changed or not self._begun:
            for optimizer in trainer.optimizers:
                begin_momentum(optimizer)
        self._begun = True

    def _freeze(self, model: ShardModule, parameters: Iterable[nn.Parameter]) -> bool:
        """Let `parameters` be frozen, and no others; whether that is something else than before."""
        frozen = {id(parameter): parameter for parameter in parameters}
        if frozen.keys() == self._frozen.keys():
            return False
        for key, parameter in self._frozen.items():
            if key not in frozen:
                parameter.requires_grad_(True)
        for parameter in frozen.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        if frozen:
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # on purpose
        names = [name for name, parameter in model.named_parameters() if id(parameter) in frozen]
        model.hold(modules(model, names))
        self._frozen = frozen
        return True


def check_thaw(settings: Mapping[str, Any]) -> None:
    """Raise InputError where a training would begin in which `thaw_after` ends what `trained_blocks` never began."""
    if settings.get("trained_blocks", 0) is None and settings.get("thaw_after") not in (None, 1):
        raise InputError("model.thaw_after ends what model.trained_blocks begins: give both, or neither")


def send_what_is_trained(trainer: L.Trainer) -> None:
    """Let ranks agree anew on which gradients they send to each other: DDP looks at that once, when it is made.

    Nothing is sent for it: weights are the same everywhere, and each rank keeps its own running statistics.
    """
    strategy = trainer.strategy
    if not (isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel)):
        return
    wrapped = strategy.model
    wrapped.reducer._remove_autograd_hooks()
    for parameter in wrapped.module.parameters():
        parameter.grad = None  # a view of what was sent
    given = strategy._ddp_kwargs
    strategy._ddp_kwargs = given | {"init_sync": False}
    try:
        strategy.model = strategy._setup_model(wrapped.module)
    finally:
        strategy._ddp_kwargs = given
    strategy._register_ddp_hooks()


def begin_momentum(optimizer: Optimizer) -> None:
    """Give parameters of torch's SGD that are trained from now on the momentum of a first step, 0: a fused step takes
    it from all parameters of a group or from none."""
    one = getattr(optimizer, "_optimizer", optimizer)
    if type(one) is not SGD:
        return
    for group in one.param_groups:
        trained = [p for p in group["params"] if p.requires_grad]
        new = [p for p in trained if one.state.get(p, {}).get("momentum_buffer") is None]
        if group["momentum"] and 0 < len(new) < len(trained):
            for parameter in new:
                one.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
