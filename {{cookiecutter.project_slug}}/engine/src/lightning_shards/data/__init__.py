"""From tars on disk or behind URLs to batches: what an image passes through, without Lightning and without a model.

from lightning_shards.data import Boxes, Image, Mask, ShardLoader
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .balance import BalancedOrder
    from .batch import Batch
    from .crop import Crop, View
    from .dataset import Dataset
    from .decode import DecodeError
    from .fields import (
        SIDE,
        Array,
        Boxes,
        Bytes,
        ClassIndex,
        Field,
        Image,
        Json,
        Mask,
        MultiHot,
        Numbers,
        Text,
        dataset_fields,
        target_field,
    )
    from .mixture import Mixture, Source
    from .order import Order, WindowedOrder
    from .samples import ShardSamples
    from .shard_loader import ShardLoader
    from .transform import Transform

_HOMES = {
    "balance": ("BalancedOrder",),
    "batch": ("Batch",),
    "crop": ("Crop", "View"),
    "dataset": ("Dataset",),
    "decode": ("DecodeError",),
    "fields": (
        "SIDE",
        "Array",
        "Boxes",
        "Bytes",
        "ClassIndex",
        "Field",
        "Image",
        "Json",
        "Mask",
        "MultiHot",
        "Numbers",
        "Text",
        "dataset_fields",
        "target_field",
    ),
    "mixture": ("Mixture", "Source"),
    "order": ("Order", "WindowedOrder"),
    "samples": ("ShardSamples",),
    "shard_loader": ("ShardLoader",),
    "transform": ("Transform",),
}
__all__ = [
    "SIDE",
    "Array",
    "BalancedOrder",
    "Batch",
    "Boxes",
    "Bytes",
    "ClassIndex",
    "Crop",
    "Dataset",
    "DecodeError",
    "Field",
    "Image",
    "Json",
    "Mask",
    "Mixture",
    "MultiHot",
    "Numbers",
    "Order",
    "ShardLoader",
    "ShardSamples",
    "Source",
    "Text",
    "Transform",
    "View",
    "WindowedOrder",
    "dataset_fields",
    "target_field",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: decoding processes import this package too, and have no use for torch."""
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{home}", __name__), name)
