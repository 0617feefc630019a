"""A team's own transform: the same pixels whoever decodes, and one sentence for what cannot be used."""

from __future__ import annotations

import functools
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from lightning_shards.data import Boxes, ClassIndex, Crop, Field, Image, Mask
from lightning_shards.data.batch import Batch
from lightning_shards.data.transform import check_portable, generator
from lightning_shards.data.transforms import albumentations_transform, torchvision_transform
from lightning_shards.data.trial import try_fields
from lightning_shards.errors import InputError
from lightning_shards.train.datamodule import ShardDataModule
from torchvision.transforms import v2

from . import field_data, own_fields

FIELDS: dict[str, Field] = {"image": Image(), "target": ClassIndex(3)}
PLANE = {"image": Image(), "mask": Mask(4), "boxes": Boxes(2), "target": ClassIndex(3)}


def by_id(*passes: Any) -> dict[int, list[Any]]:
    """The values of each sample, however it was batched."""
    found = {}
    for batch in (batch for one in passes for batch in one):
        for row, number in enumerate(batch.ids.tolist()):
            values = [batch[name][row] for name in batch.fields]
            found[number] = [
                value.numpy().tobytes()
                if isinstance(value, torch.Tensor)
                else [value[name].tolist() for name in ("boxes", "labels")]
                for value in values
            ]
    return found


TORCHVISION = torchvision_transform(v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAffine(30), v2.ColorJitter(0.5)]))


@pytest.mark.parametrize(
    ("fields", "transform", "others"),
    [
        (FIELDS, own_fields.noise, [(3, 1, 1, 24), (1, 2, 1, 4), (2, 1, 2, 8), (1, 1, 3, 2)]),
        (PLANE, TORCHVISION, [(3, 1, 2, 8)]),  # each decoding process imports torch, which takes seconds
    ],
)
def test_the_same_pixels_whoever_decodes(tmp_path: Path, fields: dict, transform: Any, others: list) -> None:
    dataset = field_data.write(tmp_path / "d", 48)
    plain = by_id(field_data.loader(dataset, fields))
    loader = field_data.loader(dataset, fields, transform)
    one = by_id(loader)
    assert len(one) == 48 and sum(one[number] != plain[number] for number in one) > 30, "it does something"
    for workers, processes, world, micro in others:
        ranks = [
            field_data.loader(
                dataset, fields, transform, workers=workers, processes=processes, rank=rank, world=world, micro=micro
            )
            for rank in range(world)
        ]
        assert by_id(*ranks) == one
    loader.sampler.set_epoch(1)
    other = by_id(loader)
    assert sum(other[number] != one[number] for number in one) > 30, "another epoch shows it in another way"


def test_torchvision_sees_images_of_pil_where_it_is_asked_to() -> None:
    image, mask = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3), np.arange(64, dtype=np.uint8).reshape(8, 8)
    seen = []

    def flip(sample: dict[str, Any]) -> Any:
        seen.append(type(sample["image"]))
        return v2.functional.horizontal_flip(sample["image"]), v2.functional.horizontal_flip(sample["mask"])

    flipped = {"image": image, "mask": mask}
    torchvision_transform(lambda sample: dict(zip(sample, flip(sample), strict=True)), pil=True)(flipped, generator(3))
    assert (flipped["image"] == image[:, ::-1]).all() and (flipped["mask"] == mask[:, ::-1]).all()
    assert issubclass(seen[0], PIL.Image.Image)
    made = []
    for seed in (5, 5, 6):
        sample = {"image": image}
        torchvision_transform(v2.RandomRotation(90), pil=True)(sample, generator(seed))
        made.append(sample["image"].tolist())
    assert made[0] == made[1] != made[2]


def test_the_generator_is_the_samples_own() -> None:
    expected = np.random.Generator(np.random.Philox(key=np.array([5, 0x7472616E73666F72], np.uint64)))
    first = expected.random(3)
    assert generator(5).random(3).tolist() == first.tolist()
    generator(6).integers(0, 9, 3, dtype=np.uint8)
    assert generator(5).random(3).tolist() == first.tolist(), "nothing is left of the one before"
    assert generator(-5).random(3).tolist() != first.tolist()


def test_only_training_is_transformed_unless_it_says_so(tmp_path: Path) -> None:
    dataset = field_data.write(tmp_path / "d", 8)
    plain = by_id(field_data.loader(dataset, FIELDS, train=False))
    assert by_id(field_data.loader(dataset, FIELDS, own_fields.noise, train=False)) == plain
    (batch,) = field_data.loader(dataset, FIELDS, own_fields.Dims(60), train=False)
    assert batch["image"].max() == 3


def test_samples_on_which_it_raises_are_masked_and_listed(tmp_path: Path) -> None:
    dataset, log = field_data.write(tmp_path / "d"), tmp_path / "skipped.jsonl"
    batches: list[Batch] = list(field_data.loader(dataset, FIELDS, own_fields.raises_on_some, log=log))
    masked = {int(number) for batch in batches for number in batch.ids[~batch.valid]}
    assert masked == {number for number in range(40) if number % 3 == 1}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["id"] for line in lines} == masked
    assert {line["error"] for line in lines} == {"the transform raised ValueError: no green ones"}


@pytest.mark.parametrize(
    ("transform", "sentence"),
    [
        (own_fields.raises, "raised ValueError: never mind, with every sample"),
        (own_fields.larger, r"makes 'image' uint8 \(99, 99, 3\), but .* uint8 \(32, 32, 3\)"),
        (own_fields.floats, "makes 'image' float64"),
        (own_fields.more, "adds or removes 'more'"),
        (torchvision_transform(v2.ToDtype(torch.float32)), "makes 'image' float32"),
        (torchvision_transform(v2.Resize((8, 8))), r"makes 'image' uint8 \(8, 8, 3\)"),
    ],
)
def test_what_no_sample_gets_through_is_one_sentence(tmp_path: Path, transform: Any, sentence: str) -> None:
    """Before a training, in its own process; and, where that is not tried, from the decoding process."""
    dataset = field_data.write(tmp_path / "d")
    with pytest.raises(InputError, match=sentence) as before:
        try_fields(dataset, "train", FIELDS, Crop(32), 0, transform)
    assert "\n" not in str(before.value)
    if transform.__class__ is not torchvision_transform:
        with pytest.raises(InputError, match=sentence):
            list(field_data.loader(dataset, FIELDS, transform))


def in_main(sample: dict[str, Any], random: np.random.Generator) -> None:
    pass


def test_what_other_processes_cannot_be_given_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = field_data.write(tmp_path / "d", 4)

    def inner(sample: dict[str, Any], random: np.random.Generator) -> None:
        pass

    main = types.ModuleType("__main__")
    main.in_main = in_main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(in_main, "__module__", "__main__")
    monkeypatch.setattr(own_fields.Depth, "__module__", "__main__")
    main.Depth = own_fields.Depth  # type: ignore[attr-defined]
    cases = [
        (lambda sample, random: None, "is a lambda"),
        (inner, "cannot be handed to other processes"),
        (in_main, "lives in __main__"),
        (functools.partial(in_main), "lives in __main__"),
        (torchvision_transform(v2.Lambda(lambda image: image)), "cannot be handed to other processes"),
    ]
    for transform, sentence in cases:
        with pytest.raises(InputError, match=sentence) as error:
            field_data.loader(dataset, FIELDS, transform)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"the field 'depth' .* lives in __main__"):
        check_portable("the field 'depth'", own_fields.Depth())


def test_a_module_that_only_the_trainer_finds_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("made_up_here")
    exec("def change(sample, random): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "made_up_here", module)
    dataset = field_data.write(tmp_path / "d", 8)
    with pytest.raises(InputError, match="cannot import the fields or the transform"):
        list(field_data.loader(dataset, FIELDS, module.change))


def test_the_datamodule_has_fields_and_a_transform(tmp_path: Path) -> None:
    dataset = field_data.write(tmp_path / "d")

    class Own(ShardDataModule):
        fields = {"image": Image(), "mask": Mask(4)}  # noqa: RUF012
        transform = own_fields.nothing

    class Asked(ShardDataModule):
        fields = lambda dataset: {"image": Image(), "kind": ClassIndex(len(dataset.targets))}  # noqa: E731

    class Lacking(ShardDataModule):
        fields = {"image": Image(), "mask": Mask(4, ("sky.png",))}  # noqa: RUF012

    class Broken(ShardDataModule):
        transform = own_fields.raises

    settings: dict[str, Any] = {"path": str(dataset.root), "global_batch_size": 8, "image_size": 32}
    assert list(ShardDataModule(**settings).sample_fields) == ["image", "target"]
    assert dict(Own(**settings).sample_fields) == dict(Own.fields)
    assert Asked(**settings).sample_fields == dict[str, Field](image=Image(), kind=ClassIndex(3))
    for wrong, sentence in ((Lacking, "the tars hold"), (Broken, "with every sample")):
        with pytest.raises(InputError, match=sentence):
            wrong(**settings)


def test_torchs_own_chance_is_left_alone(tmp_path: Path) -> None:
    sample = {"image": np.zeros((8, 8, 3), np.uint8), "target": np.int64(1)}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    torchvision_transform(v2.ColorJitter(0.5))(sample, generator(1))
    assert torch.equal(torch.rand(3), expected) and sample["target"] == 1


def test_albumentations_by_its_interface(tmp_path: Path) -> None:
    transform, dataset = albumentations_transform(own_fields.Foreign()), field_data.write(tmp_path / "d", 24)
    one = by_id(field_data.loader(dataset, PLANE, transform))
    assert one == by_id(field_data.loader(dataset, PLANE, transform, workers=3, micro=12))
    assert one != by_id(field_data.loader(dataset, PLANE))
    assert pickle.loads(pickle.dumps(albumentations_transform(own_fields.Foreign(), evaluation=True))).evaluation
    with pytest.raises(InputError, match=r"1\.4\.19 or later"):
        albumentations_transform(own_fields.noise)
    two = {"image": Image(), "left": Image(("png",))}
    with pytest.raises(InputError, match="additional_targets"):
        list(field_data.loader(dataset, two, transform))
    transform.transform.processors = {}  # as of a Compose without bbox_params, which moves boxes as if they were shares
    with pytest.raises(InputError, match=r"have boxes: give Compose bbox_params=BboxParams\(.pascal_voc"):
        list(field_data.loader(dataset, PLANE, transform))


def test_albumentations_itself(tmp_path: Path) -> None:
    a = pytest.importorskip("albumentations")
    boxes = a.BboxParams("pascal_voc", label_fields=["labels"])
    made = a.Compose(
        [a.HorizontalFlip(), a.Rotate(20), a.RandomBrightnessContrast(), a.GaussNoise()], bbox_params=boxes
    )
    transform, dataset = albumentations_transform(made), field_data.write(tmp_path / "d", 24)
    one = by_id(field_data.loader(dataset, PLANE, transform))
    assert one == by_id(field_data.loader(dataset, PLANE, transform, workers=3, micro=12))
    assert sum(one[number] != plain for number, plain in by_id(field_data.loader(dataset, PLANE)).items()) > 18
    for other in (None, a.BboxParams("coco", label_fields=["labels"]), a.BboxParams("pascal_voc", label_fields=["x"])):
        with pytest.raises(InputError, match=r"have boxes: give Compose bbox_params=BboxParams\(.pascal_voc"):
            list(field_data.loader(dataset, PLANE, albumentations_transform(a.Compose([], bbox_params=other))))
