"""How far down a network is trained, from when on, and how fast each part: by blocks, from the head to the stem."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import InputError
from .blocks import blocks


class FineTuning:
    """What is trained of a network.

    Args:
        network: with a head and blocks (`vision.blocks`).
        name: of the network, for sentences.
        trained_blocks: how many blocks are trained in front of the head; 0: the head alone; None: all that there are.
        thaw_after: share of the training after which all is trained, 0..1; 1: never.
        layer_decay: learning rate of a block, as a share of that of the one behind it (Clark et al., ELECTRA, 2020,
            appendix A; for images Bao et al., BEiT, 2022). The head has the whole rate, the last block this share.

    Raises InputError for values that cannot be, and for a network without blocks.
    """

    def __init__(
        self, network: nn.Module, name: str, trained_blocks: int | None, thaw_after: float, layer_decay: float
    ) -> None:
        if not 0 <= thaw_after <= 1:
            raise InputError(f"model.thaw_after is {thaw_after}, it must be between 0 and 1")
        if not 0 < layer_decay <= 1:
            raise InputError(f"model.layer_decay is {layer_decay}, it must be above 0 and at most 1")
        self.network, self.thaw_after, self.layer_decay = network, thaw_after, layer_decay
        self._frozen: tuple[nn.Parameter, ...] = ()
        self._parts: list[list[str]] = []
        asked = {"trained_blocks": trained_blocks is not None, "layer_decay": layer_decay != 1}
        if not any(asked.values()):
            return
        self._parts = blocks(network)
        if (count := len(self._parts) - 1) < 2:
            setting = next(key for key, value in asked.items() if value)
            raise InputError(f"model.{setting} goes by blocks, and {name} has none: leave it out")
        if trained_blocks is not None:
            if not 0 <= trained_blocks <= count:
                raise InputError(
                    f"model.trained_blocks is {trained_blocks}, and {name} has {count} blocks in front of its head:"
                    f" give 0 to {count}, or null to train all"
                )
            named = dict(network.named_parameters())
            self._frozen = tuple(named[key] for part in self._parts[: count - trained_blocks] for key in part)

    def frozen(self, progress: float) -> tuple[nn.Parameter, ...]:
        """What is not trained at `progress`, 0..1 of the training."""
        return self._frozen if progress < self.thaw_after else ()

    def groups(self, module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        """The groups of an optimizer over all parameters of `module` that are trained now or later.

        `weight_decay` is for matrices and kernels, biases and norms have none. With an `lr_scale` a group gets that
        multiple of the learning rate; what of `module` is not in the network gets the whole.
        """
        thaws = {id(p) for p in self._frozen}
        trained = [p for p in module.parameters() if p.requires_grad or id(p) in thaws]
        if self.layer_decay == 1:
            return _by_decay(trained, weight_decay)
        named, groups = dict(self.network.named_parameters()), []
        depth = {id(named[key]): n for n, part in enumerate(reversed(self._parts)) for key in part}
        for n in range(len(self._parts)):
            part = [p for p in trained if depth.get(id(p), 0) == n]
            groups += [one | {"lr_scale": self.layer_decay**n} for one in _by_decay(part, weight_decay)]
        return [group for group in groups if group["params"]]


def _by_decay(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    decayed, plain = ([p for p in parameters if (p.ndim > 1) == matrix] for matrix in (True, False))
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
