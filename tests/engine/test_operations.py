"""Random operations on the device: each does what torchvision's does, and chance belongs to the sample alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning_shards.data import uniforms
from lightning_shards.errors import InputError
from lightning_shards.vision.operations import Operation, apply
from lightning_shards.vision.random_operations import LEVELS, NARROW, WIDE, RandomOperations, random_operations
from team.augment import Augment
from torchvision.transforms import InterpolationMode, RandAugment, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

SIDE, ROWS = 40, 6
FILL = torch.tensor([124.0, 116.0, 104.0]).view(1, 3, 1, 1)
NONE = torch.zeros(1, 3, 1, 1)
NAMES = {value: name for name, value in vars(Operation).items() if name.isupper() and name != "COUNT"}
BLENDED = (Operation.BRIGHTNESS, Operation.COLOR, Operation.CONTRAST, Operation.SHARPNESS)
MAGNITUDES = {  # a few of each, in the operation's own unit
    Operation.IDENTITY: (0.0,),
    **dict.fromkeys((Operation.SHEAR_X, Operation.SHEAR_Y), (0.0, 0.3, -0.3, 0.99, -0.99)),
    **dict.fromkeys((Operation.TRANSLATE_X, Operation.TRANSLATE_Y), (0.0, 3 / SIDE, -7 / SIDE)),
    Operation.ROTATE: (0.0, 30.0, -30.0, 90.0, -135.0),
    **dict.fromkeys(BLENDED, (-0.99, -0.3, 0.0, 0.3, 0.99)),
    Operation.POSTERIZE: (1.0, 2.0, 5.0, 8.0),
    Operation.SOLARIZE: (0.0, 100.0, 255.0),
    Operation.AUTOCONTRAST: (0.0,),
    Operation.EQUALIZE: (0.0,),
}


def pictures(ids: list[int], side: int = SIDE) -> torch.Tensor:
    """Smooth pictures with some noise, uint8 (B, 3, S, S), channels last; every fifth has a single value."""
    y, x = torch.meshgrid(torch.linspace(0, 6, side), torch.linspace(0, 6, side), indexing="ij")
    rows = []
    for number in ids:
        random = np.random.default_rng(number)
        a, b, c = random.uniform(0.3, 1.5, 3)
        base = torch.stack([torch.sin(a * x + number), torch.cos(b * y), torch.sin(c * (x + y))])
        noise = torch.from_numpy(random.uniform(-8, 8, (3, side, side)))
        rows.append(128 + random.uniform(20, 110) * base + noise if number % 5 else torch.full_like(base, 77))
    return torch.stack(rows).clamp(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def seeds(ids: list[int], epoch: int = 0) -> torch.Tensor:
    return torch.from_numpy(uniforms.sample_seeds(0, epoch, np.array(ids)))


def theirs(image: torch.Tensor, operation: int, magnitude: float) -> torch.Tensor:
    name = {"AUTOCONTRAST": "AutoContrast"}.get(NAMES[operation], NAMES[operation].title().replace("_", ""))
    amount = round(magnitude * SIDE) if name.startswith("Translate") else magnitude
    return _apply_op(image, name, amount, InterpolationMode.BILINEAR, None).float()


def every(operation: int, magnitude: float, images: torch.Tensor, fill: torch.Tensor = NONE) -> torch.Tensor:
    """The same operation on each row."""
    rows = len(images)
    return apply(images.float(), torch.full((rows,), operation), torch.full((rows,), magnitude), fill)


@pytest.mark.parametrize("operation", NAMES, ids=list(NAMES.values()))
def test_each_operation_is_torchvisions(operation: int) -> None:
    """To within 1 of 255, since theirs cuts off or rounds what is behind the point; 2 where it does so twice."""
    images = pictures(list(range(ROWS)))
    twice = operation in (Operation.COLOR, Operation.CONTRAST, Operation.SHARPNESS)
    for magnitude in MAGNITUDES[operation]:
        ours = every(operation, magnitude, images)
        expected = torch.stack([theirs(image, operation, magnitude) for image in images])
        assert (ours - expected).abs().max() <= (2 if twice else 1) + 1e-3, magnitude
        assert ours.is_contiguous(memory_format=torch.channels_last) and ours.min() >= 0 and ours.max() <= 255
        if operation in (Operation.IDENTITY, Operation.POSTERIZE, Operation.SOLARIZE, Operation.EQUALIZE):
            assert torch.equal(ours, expected)


def test_what_an_image_is_moved_away_from_takes_the_colour() -> None:
    moved = every(Operation.TRANSLATE_X, 10 / SIDE, pictures([1, 2]), FILL)
    assert torch.allclose(moved[..., :10], FILL.expand(2, 3, SIDE, 10), atol=1e-3)
    flat = FILL.expand(2, 3, SIDE, SIDE)
    assert torch.allclose(every(Operation.ROTATE, 30.0, flat, FILL), flat, atol=1e-3), "no seam"


def test_each_row_has_its_own_and_no_row_looks_at_another() -> None:
    images, kinds = pictures(list(range(14))).float(), torch.arange(14)
    amounts = torch.tensor([MAGNITUDES[kind][-1] for kind in range(14)])
    together = apply(images, kinds, amounts, FILL)
    for row in range(14):
        alone = apply(images[row : row + 1], kinds[row : row + 1], amounts[row : row + 1], FILL)
        assert torch.allclose(together[row], alone[0], atol=1e-3)


def test_the_magnitudes_are_theirs() -> None:
    wide = TrivialAugmentWide()._augmentation_space(LEVELS)
    narrow = RandAugment()._augmentation_space(LEVELS, (SIDE, SIDE))
    for largest, space, across in ((WIDE, wide, 224), (NARROW, narrow, SIDE)):
        ours = RandomOperations(1, None, largest)
        for number, (name, (values, signed)) in enumerate(space.items()):
            moved = across if name.startswith("Translate") else 1
            expected = torch.as_tensor(values, dtype=torch.float32).expand(LEVELS)
            assert torch.allclose(ours.magnitudes[number] * moved, expected, atol=1e-4), name
            assert bool(ours.signed[number]) == signed, name


MAKERS: dict[str, Callable[[], RandomOperations | None]] = {
    "trivial": lambda: random_operations(True, None),
    "rand": lambda: random_operations(False, (2, 9)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_chance_is_the_samples_own(make: Callable[[], Any]) -> None:
    net, ids = make(), list(range(64))
    images = pictures(ids).float()
    whole = net(images, seeds(ids), FILL)
    again = net(images.flip(0), seeds(ids[::-1]), FILL).flip(0)
    parts = torch.cat([net(images[i : i + 7], seeds(ids[i : i + 7]), FILL) for i in range(0, 64, 7)])
    assert torch.allclose(whole, again, atol=1e-2) and torch.allclose(whole, parts, atol=1e-2)
    other = net(images, seeds(ids, epoch=1), FILL)
    assert ((whole - other).abs().amax((1, 2, 3)) > 1).float().mean() > 0.5


def test_operations_levels_and_signs_come_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(images: torch.Tensor, operation: torch.Tensor, magnitude: torch.Tensor, fill: torch.Tensor) -> Any:
        seen.append((operation, magnitude))
        return images

    monkeypatch.setattr("lightning_shards.vision.random_operations.apply", note)
    net, ids = random_operations(True, None), list(range(14_000))
    assert net is not None
    net(torch.zeros(len(ids), 3, 8, 8), seeds(ids), FILL)
    (operation, magnitude) = seen[0]
    assert (torch.bincount(operation, minlength=14) - 1000).abs().max() < 150
    turned = magnitude[operation == Operation.ROTATE]
    assert len(turned.unique()) > 50 and abs((turned < 0).float().mean().item() - 0.5) < 0.06
    assert turned.abs().max() == 135


def test_off_by_default_and_refused_in_a_sentence() -> None:
    assert random_operations(False, None) is None
    for trivial, rand in ((True, (2, 9)), (False, (0, 9)), (False, (2, 31)), (False, (2, -1)), (False, (11, 9))):
        with pytest.raises(InputError, match=r"model\.(trivial|rand)_augment"):
            random_operations(trivial, rand)


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_it_compiles_into_one_graph_and_ignores_autocast(make: Callable[[], Any]) -> None:
    net = Augment(0.2, 1.0, 0.25, 0.2, FILL, make())
    ids = list(range(8))
    given = pictures(ids), torch.tensor(ids) % 3, seeds(ids), torch.ones(8, dtype=torch.bool)
    images, _ = net(*given)
    compiled, _ = torch.compile(net, backend="eager", fullgraph=True)(*given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = net(*given)
    assert torch.equal(images, compiled) and torch.equal(images, mixed)


def test_rows_that_are_not_valid_change_no_other() -> None:
    net = Augment(0.0, 1.0, 0.0, 0.0, FILL, random_operations(True, None))
    ids, valid = list(range(8)), torch.ones(8, dtype=torch.bool)
    valid[3] = False
    images, damaged = pictures(ids), pictures(ids)
    damaged[3] = 255
    one, other = (net(given, torch.tensor(ids), seeds(ids), valid)[0] for given in (images, damaged))
    assert torch.equal(one[:3], other[:3]) and torch.equal(one[4:], other[4:])
