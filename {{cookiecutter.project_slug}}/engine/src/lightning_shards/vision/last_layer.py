"""What the last layer of a classification network sees: the features of its images."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import InputError


def features(network: nn.Module, images: Tensor) -> Tensor:
    """The input of the network's last linear layer, (B, F), for what `network` takes.

    Raises InputError for a network that does not end in one.
    """
    last = next((layer for layer in reversed(list(network.modules())) if isinstance(layer, nn.Linear)), None)
    seen: list[Tensor] = []
    if last is not None:
        hook = last.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
        try:
            outputs = network(images)
        finally:
            hook.remove()
        if seen and seen[-1].ndim == 2 and outputs.shape == (len(images), last.out_features):
            return seen[-1]
    raise InputError(
        f"the network {type(network).__name__} does not end in one linear layer, by which its features are known: give"
        " the model a method features(image) that makes them, (B, F)"
    )
