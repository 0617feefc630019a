"""What a sample holds, field by field. Imports no torch: the decoding processes have it too."""

from .base import SIDE, Field, Fields
from .free import Array, Bytes, Json, Text
from .plane import Boxes, Image, Mask
from .resolve import check_sample, dataset_fields, from_description, resolve_fields, target_field
from .targets import ClassIndex, MultiHot, Numbers

__all__ = [
    "SIDE",
    "Array",
    "Boxes",
    "Bytes",
    "ClassIndex",
    "Field",
    "Fields",
    "Image",
    "Json",
    "Mask",
    "MultiHot",
    "Numbers",
    "Text",
    "check_sample",
    "dataset_fields",
    "from_description",
    "resolve_fields",
    "target_field",
]
