"""torchvision's and albumentations' transforms as a transform of ours: the same pixels whoever decodes a sample.

Both draw from generators of their own; these are set from the sample's before each call. What that costs, and what it
takes besides:
- torchvision draws from torch's one generator of a process. So of a process's threads one transforms at a time, and
  each decoding process imports torch (seconds at its start, some 600 MB).
- albumentations keeps its generators in the transform. So each thread has a copy of it.

`transform = torchvision_transform(v2.RandAugment())` belongs into a module, as any transform does.
"""

from __future__ import annotations

import copy
import random as python_random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InputError

_torch_draws = threading.Lock()


def _is_image(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3


def _is_mask(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 2


def _is_boxes(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"boxes", "labels"}


def _in_plane(value: Any) -> bool:
    return _is_image(value) or _is_mask(value) or _is_boxes(value)


class torchvision_transform:
    """A transform of `torchvision.transforms.v2`: sees the sample's images, masks and boxes, all of them alike.

    Args:
        transform: any that can be pickled. Images stay uint8 and keep their size: `ToDtype` and `Normalize` belong on
            the device.
        evaluation: apply it to validation, test and predictions, too.
        pil: hand it images of PIL, as torchvision's datasets do, and not tensors. Of one image at a time most of its
            transforms are a few times as fast on those; the pixels differ a little.
    """

    def __init__(self, transform: Callable[..., Any], evaluation: bool = False, pil: bool = False) -> None:
        self.transform, self.evaluation, self.pil = transform, evaluation, pil

    def __call__(self, sample: dict[str, Any], random: np.random.Generator) -> None:
        import PIL.Image
        import torch
        from torchvision import tv_tensors

        side = next(value.shape[:2] for value in sample.values() if _is_image(value) or _is_mask(value))

        def wrap(value: Any) -> Any:
            if _is_image(value) and self.pil:
                return PIL.Image.fromarray(value)
            if _is_image(value):
                return tv_tensors.Image(torch.from_numpy(value).permute(2, 0, 1))
            if _is_mask(value):
                return tv_tensors.Mask(torch.from_numpy(value))
            form: Any = "XYXY"
            boxes = tv_tensors.BoundingBoxes(torch.from_numpy(value["boxes"]), format=form, canvas_size=side)
            return {"boxes": boxes, "labels": torch.from_numpy(value["labels"])}

        def unwrap(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: unwrap(one) for name, one in value.items()}
            if isinstance(value, PIL.Image.Image):
                return np.asarray(value)
            plain = value.as_subclass(torch.Tensor)
            return (plain.permute(1, 2, 0) if isinstance(value, tv_tensors.Image) else plain).numpy()

        seen = {name: wrap(value) for name, value in sample.items() if _in_plane(value)}
        with _torch_draws:  # the CPU's generator alone: torch.manual_seed would queue work for a GPU with every sample
            before = torch.default_generator.get_state()
            torch.default_generator.manual_seed(int(random.integers(1 << 63)))
            try:
                made = self.transform(seen)
            finally:
                torch.default_generator.set_state(before)
        sample.update({name: unwrap(value) for name, value in made.items()})


class albumentations_transform:
    """A transform of albumentations, from 1.4.19 on, or of its successor: sees the first image, mask and boxes.

    Further images and masks are passed by the names of their fields, which `additional_targets` must have; boxes need
    `bbox_params=BboxParams("pascal_voc", label_fields=["labels"])`.

    Args:
        transform: an `albumentations.Compose`.
        evaluation: apply it to validation, test and predictions, too.
    """

    def __init__(self, transform: Any, evaluation: bool = False) -> None:
        if not hasattr(transform, "set_random_seed"):
            raise InputError(
                "albumentations_transform takes an albumentations.Compose of version 1.4.19 or later, whose chance can"
                f" be set (set_random_seed); this is {type(transform).__name__}: install a later version, or wrap it in"
                " Compose([...])"
            )
        self.transform, self.evaluation = transform, evaluation
        self._of_thread = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"transform": self.transform, "evaluation": self.evaluation}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, sample: dict[str, Any], random: np.random.Generator) -> None:
        transform = getattr(self._of_thread, "transform", None)
        if transform is None:
            transform = self._of_thread.transform = copy.deepcopy(self.transform)
        seed = int(random.integers(1 << 32))
        if hasattr(transform, "set_random_state"):  # the fields' generator itself, and no further one for each part
            transform.set_random_state(random, python_random.Random(seed))
        else:
            transform.set_random_seed(seed)
        names: dict[str, str] = {}  # theirs -> ours
        given: dict[str, Any] = {}
        for name, value in sample.items():
            usual = "image" if _is_image(value) else "mask" if _is_mask(value) else "boxes" if _is_boxes(value) else ""
            if usual == "boxes" and "boxes" not in names:
                _check_box_format(transform)
                names["boxes"] = name
                given |= {"bboxes": value["boxes"], "labels": value["labels"]}
            elif usual:
                theirs = usual if usual not in names else name
                if theirs == name != usual and name not in (getattr(transform, "additional_targets", None) or {}):
                    raise ValueError(f"{name} is no target of it: give additional_targets={ {name: usual} }")
                names[theirs], given[theirs] = name, value
        made = transform(**given)
        for theirs, name in names.items():
            sample[name] = made[theirs] if theirs != "boxes" else _boxes(made)


def _check_box_format(transform: Any) -> None:
    """Raise ValueError where a Compose would take boxes for something else: it would drop and move them unseen."""
    if (processors := getattr(transform, "processors", None)) is None:
        return
    params = vars(processors["bboxes"].params) if "bboxes" in processors else {}
    if params.get("coord_format", params.get("format")) != "pascal_voc" or params.get("label_fields") != ["labels"]:
        wanted = 'bbox_params=BboxParams("pascal_voc", label_fields=["labels"])'
        raise ValueError(f"the samples have boxes: give Compose {wanted}")


def _boxes(made: dict[str, Any]) -> dict[str, Any]:
    boxes = np.asarray(made["bboxes"], np.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": np.asarray(made["labels"], np.int64).reshape(-1)}
