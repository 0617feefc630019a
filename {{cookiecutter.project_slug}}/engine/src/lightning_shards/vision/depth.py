"""Deep networks made cheaper or more robust, block by block: stochastic depth, and activations that are computed twice.

Both go by the blocks that a network has, and are refused where it has none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from ..errors import InputError
from .blocks import blocks, modules


def drop_paths(network: nn.Module, name: str, rate: float) -> None:
    """In training, leave blocks out at random, row by row: the first never, the last with probability `rate`, those
    between with what lies between (Huang et al., Deep Networks with Stochastic Depth, 2016).

    timm's networks are made with the rate; here it is seen that they have taken it.

    Raises InputError for a rate that cannot be, and for a network that has no stochastic depth.
    """
    if not 0 <= rate < 1:
        raise InputError(f"model.drop_path is {rate}, it must be at least 0 and below 1")
    found = [module for module in network.modules() if isinstance(module, StochasticDepth)]
    for place, module in enumerate(found):
        module.p = rate * place / max(1, len(found) - 1)
    if rate and not found and not any(getattr(module, "drop_prob", None) for module in network.modules()):
        raise InputError(
            f"model.drop_path: {name} has no stochastic depth, leave it null; convnext_*, efficientnet_*, swin_*,"
            " maxvit_t and most of timm/* have it"
        )


def compute_twice(network: nn.Module, name: str) -> None:
    """Let each block keep its inputs alone in training; what is within is computed again for the gradients.

    Takes a third more computation and much less memory (Chen et al., Training Deep Nets with Sublinear Memory Cost,
    2016). Gradients, dropout and the statistics of batch norms are the same as without.

    Raises InputError for a network without blocks of several layers.
    """
    parts = blocks(network)[:-1]
    chosen = [module for part in parts for module in modules(network, part) if any(True for _ in module.children())]
    if not chosen:
        raise InputError(f"model.gradient_checkpointing goes by blocks, and {name} has none: leave it out")
    for module in chosen:
        forward = functools.partial(_again, module, module.forward)
        module.forward = forward


def _again(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    norms = [m for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    if not norms:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    contexts = functools.partial(_contexts, norms)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(norms: list[_NormBase]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first time, and of the second, in which no statistics are taken."""
    return nullcontext(), _counted(norms)


@contextmanager
def _counted(norms: list[_NormBase]) -> Iterator[None]:
    """Batch norms leave their running statistics as they are, and normalise by the batch's as before."""
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, _ in kept:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
