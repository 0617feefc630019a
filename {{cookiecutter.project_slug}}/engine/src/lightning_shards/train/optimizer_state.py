"""The state of optimizers as a checkpoint has it: it fits the parameters, or it is refused before the first step.

A fused optimizer trusts its state: with one of another shape it reads and writes outside of it, with one in another
memory layout (a changed `channels_last`) it takes the numbers of other weights.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .alike import unlike


def check(optimizer: Optimizer, options: list[dict[str, Any]]) -> None:
    """Raise ValueError where the state that `optimizer` has loaded is none that it could have made.

    Args:
        options: of its groups, before it loaded them.
    """
    for place, (group, given) in enumerate(zip(optimizer.param_groups, options, strict=True)):
        if wrong := unlike(given, group, f"group {place}"):
            raise ValueError(f"{wrong} is no such value")
    known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if any(not isinstance(key, str) and key not in known for key in optimizer.state):
        raise ValueError("it has entries of more parameters than there are")
    made = _made_by_a_step(optimizer)
    for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        state = optimizer.state.get(parameter, {})
        if not isinstance(state, Mapping):
            raise ValueError(f"the entry of parameter {number} is no state")
        present = {name: value for name, value in state.items() if value is not None}
        if wrong := unlike(made.get(parameter, {}), present, f"parameter {number}") if present else "":
            raise ValueError(f"{wrong} is missing or of another shape")


def lay_out(optimizer: Optimizer) -> None:
    """Give what is kept of each weight the weight's own memory layout."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items() if isinstance(parameter, Tensor) else ():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _made_by_a_step(optimizer: Optimizer) -> dict[Tensor, dict[str, Any]]:
    """What a first step would make for each parameter, found by one on parameters without content, or on zeros.

    Empty where the optimizer is not torch's, so that nobody knows what else its step does: `checkpoint_io.unfit`
    explains what such a one makes of a state of another kind.
    """
    step: Any = type(optimizer).step
    if not step.__module__.startswith("torch.optim."):
        return {}
    for device in ("meta", "cpu"):
        with suppress(Exception):  # without content there is no value to look at
            return _made_on(device, optimizer, step)
    return {}


def _made_on(device: str, optimizer: Optimizer, step: Any) -> dict[Tensor, dict[str, Any]]:
    make = torch.empty_like if device == "meta" else torch.zeros_like
    ghosts = {
        parameter: make(parameter, device=device, requires_grad=False)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for ghost in ghosts.values():
        ghost.grad = make(ghost)
    ghostly = object.__new__(type(optimizer))
    plain = {"fused": False, "foreach": False, "capturable": False}
    ghostly.__dict__.update(
        vars(optimizer),
        param_groups=[
            group
            | {name: value for name, value in plain.items() if name in group}
            | {"params": [ghosts[parameter] for parameter in group["params"]]}
            for group in optimizer.param_groups
        ],
        state=defaultdict(dict),
        _params=[ghosts[parameter] for parameter in optimizer.param_groups[0]["params"]],  # which LBFGS looks at
        _optimizer_step_pre_hooks=OrderedDict(),
        _optimizer_step_post_hooks=OrderedDict(),
    )
    step(ghostly, lambda: torch.zeros(()))
    return {parameter: dict(ghostly.state.get(ghost, {})) for parameter, ghost in ghosts.items()}
