"""The blocks of a classification network, from the stem to the head.

The same list serves frozen layers, learning rates by layer and gradient checkpointing. For timm's networks it is what
timm says (`group_matcher`); for all others, torchvision's and a team's own, it follows from the tree of modules: a
block is a module that is made of others, in the order in which the constructor makes them. Layers before the first
block are the stem, layers between blocks belong to the next one, norms to what is before them. In a network without
such blocks (VGG, small_cnn) each convolution is one, with its norm. The last layer is the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

# Modules that hold blocks and are none: by class, and torchvision's own by their names.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_HOLDERS = ("Encoder", "MaxVitBlock", "AnyStage", "_DenseBlock")


@dataclass(frozen=True)
class _Unit:
    """What the tree is cut into: a module or a module's own parameters."""

    parameters: tuple[str, ...]
    composite: bool  # made of other modules
    weighs: bool  # has more than norms and biases


def blocks(network: nn.Module) -> list[list[str]]:
    """The names of all parameters of `network`: of each block, from the stem to the head."""
    head = _head(network)
    return _by_timm(network, head) or _by_tree(network, head)


def modules(network: nn.Module, parameters: Iterable[str]) -> list[nn.Module]:
    """The modules whose parameters are all among `parameters`, each as large as can be."""
    return list(_whole(network, "", set(parameters)))


def _whole(module: nn.Module, path: str, names: set[str]) -> Iterator[nn.Module]:
    own = {name for name, _ in module.named_parameters(prefix=path)}
    if own and own <= names and type(module) not in (nn.ModuleList, nn.ModuleDict):
        yield module
    elif own & names:
        for name, child in module.named_children():
            yield from _whole(child, f"{path}.{name}" if path else name, names)


def _head(network: nn.Module) -> str:
    """The path of the last layer with weights."""
    found = [path for path, module in network.named_modules() if _weighs(module.parameters(recurse=False))]
    return found[-1] if found else ""


def _weighs(parameters: Iterable[nn.Parameter]) -> bool:
    return any(p.ndim > 1 for p in parameters)


def _by_timm(network: nn.Module, head: str) -> list[list[str]] | None:
    """timm's own grouping; None for other networks, and where it does not end with the head."""
    matcher: Any = getattr(network, "group_matcher", None)
    if matcher is None:
        return None
    from timm.models import group_parameters

    groups = group_parameters(network, matcher(coarse=False))
    parts = [list(names) for _, names in sorted(groups.items())]
    return parts if len(parts) > 2 and f"{head}.weight" in parts[-1] else None


def _by_tree(network: nn.Module, head: str) -> list[list[str]]:
    made_of_blocks = any(
        _is_composite(module) and path and not head.startswith(f"{path}.") for path, module in network.named_modules()
    )
    parts: list[list[str]] = []
    waiting: list[str] = []  # layers, for the next block
    units = list(_units(network, "", head, made_of_blocks))
    last_block = max((place for place, unit in enumerate(units) if unit.composite), default=-1)
    for place, unit in enumerate(units[:-1]):
        if unit.composite and not parts and waiting:
            parts, waiting = [waiting], []  # the stem
        if unit.composite or (unit.weighs and place > last_block):
            parts.append([*waiting, *unit.parameters])
            waiting = []
        elif unit.weighs or waiting or not parts:
            waiting += unit.parameters
        else:
            parts[-1] += unit.parameters
    if waiting:
        parts.append(waiting)
    return [*parts, list(units[-1].parameters)] if units else []


def _units(module: nn.Module, path: str, head: str, made_of_blocks: bool) -> Iterator[_Unit]:
    """The parts of `module` that are not divided, in order; the head is the last."""
    own = tuple(f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False))
    children = [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
    layers = all(not any(True for _ in child.children()) for _, child in children)
    holds_head = not path or head.startswith(f"{path}.")
    if holds_head or (_is_container(module) and not (layers and made_of_blocks)):
        if own:
            yield _Unit(own, False, _weighs(module.parameters(recurse=False)))
        for name, child in children:
            yield from _units(child, f"{path}.{name}" if path else name, head, made_of_blocks)
    else:
        names = tuple(name for name, _ in module.named_parameters(prefix=path))
        yield _Unit(names, _is_composite(module), _weighs(module.parameters()))


def _is_container(module: nn.Module) -> bool:
    return type(module) in _CONTAINERS or type(module).__name__ in _HOLDERS


def _is_composite(module: nn.Module) -> bool:
    return not _is_container(module) and any(any(True for _ in child.parameters()) for child in module.children())
