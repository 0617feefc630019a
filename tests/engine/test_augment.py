"""Augmentation: the right numbers for each sample, the right weights in the loss, no wait for values on a device."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_shards.data import uniforms
from lightning_shards.data.batch import Batch
from lightning_shards.data.crop import Crop
from lightning_shards.data.dataset import TARGET_FIELDS
from lightning_shards.data.sampler import TrainSampler
from lightning_shards.errors import InputError
from lightning_shards.vision import augmentation, device_uniforms
from team.augment import Augment, Draws
from team.model import ImageModel
from team.objectives import OBJECTIVES
from torchvision.transforms.v2 import functional as tv

from .test_loading import make_loader

ALL: dict[str, Any] = {"mixup": 0.4, "cutmix": 1.0, "erasing": 0.5, "color_jitter": 0.4}
OWN = {"erasing": 0.5, "color_jitter": 0.4}  # those that need no partner
SIDE = 28
MIXED = [task for task in OBJECTIVES if task not in TARGET_FIELDS]  # masks and boxes cannot be mixed


def make(**settings: float) -> Augment:
    values: dict[str, Any] = dict.fromkeys(ALL, 0.0) | settings
    return Augment(**values, fill=torch.tensor([124.0, 116.0, 104.0]).view(1, 3, 1, 1))


def make_batch(ids: list[int], task: str = "single_label", invalid: tuple[int, ...] = (), epoch: int = 0) -> Batch:
    """A batch whose pixels, targets and keys follow from the sample ids alone."""
    pixels = [np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for i in ids]
    numbers = torch.tensor(ids)
    targets = numbers % 3 if task == "single_label" else torch.nn.functional.one_hot(numbers % 3, 3).float()
    return Batch(
        {"image": torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), "target": targets},
        numbers,
        torch.from_numpy(uniforms.sample_seeds(0, epoch, np.array(ids))),
        torch.tensor([row not in invalid for row in range(len(ids))]),
    )


def arguments(rows: Batch) -> tuple[torch.Tensor, ...]:
    """What the augmentation of a batch is given."""
    return rows["image"], rows["target"], rows.seeds, rows.valid


def augmented(net: Any, rows: Batch) -> Any:
    return (net.augment if isinstance(net, ImageModel) else net)(*arguments(rows))


def constant_rows(rows: int) -> Batch:
    """Row i has the value i in every pixel, so what comes from the row before it can be told apart."""
    images = torch.arange(rows, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, SIDE, SIDE)
    rows_of = make_batch(list(range(rows)))
    images = images.contiguous(memory_format=torch.channels_last)
    return dataclasses.replace(rows_of, fields={**rows_of.fields, "image": images})


def draws(rows: int) -> Draws:
    return Draws(*device_uniforms.uniform(make_batch(list(range(rows))).seeds, len(Draws._fields)).unbind(1))


# -- where the random numbers come from
@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_the_hash_on_the_device_is_the_one_on_the_host(seed: int) -> None:
    ids = np.concatenate([np.arange(-1, 1000), [10**8, 2**62]])
    edges = np.array([0, 1, 2**63 - 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15], np.uint64)
    words = np.concatenate([edges, uniforms.sample_seeds(seed, 3, ids).view(np.uint64)])
    assert (
        device_uniforms.splitmix(torch.from_numpy(words.view(np.int64))).numpy().view(np.uint64) == uniforms._mix(words)
    ).all()
    count = len(Draws._fields)
    host = uniforms.draw(uniforms.sample_seeds(seed, 3, ids), device_uniforms.FIRST_COLUMN + count)[
        :, device_uniforms.FIRST_COLUMN :
    ]
    device = device_uniforms.uniform(torch.from_numpy(uniforms.sample_seeds(seed, 3, ids)), count)
    assert device.dtype == torch.float32 and (device.double().numpy() == np.floor(host * 2**24) / 2**24).all()
    assert device.min() >= 0 and device.max() < 1


def test_the_decoder_and_the_device_share_no_numbers() -> None:
    assert Crop(SIDE).draws < device_uniforms.FIRST_COLUMN


def test_a_sample_looks_the_same_in_any_batch_and_other_in_another_epoch() -> None:
    net = make(**OWN)
    alone, _ = augmented(net, make_batch([5, 17]))
    among, _ = augmented(net, make_batch([3, 17, 8, 5], invalid=(2,)))
    assert torch.allclose(alone, among[[3, 1]], atol=1e-3)
    later, _ = augmented(net, make_batch([5, 17], epoch=1))
    assert not torch.allclose(alone, later, atol=1)


def test_with_mixing_a_micro_batch_decides() -> None:
    net = make(**ALL)
    first, again, other = (augmented(net, make_batch(ids)) for ids in ([1, 2, 3, 4], [1, 2, 3, 4], [9, 2, 3, 4]))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1].share, again[1].share)
    assert torch.equal(first[1].share[1:], other[1].share[1:]), "the share is the sample's own"
    assert torch.allclose(first[0][2:], other[0][2:], atol=1e-3), "only the row behind the changed one sees it"


def test_two_ranks_see_what_one_sees(dataset: Path) -> None:
    def seen(rank: int, world: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        loader = make_loader(dataset, micro=4)
        assert isinstance(loader.sampler, TrainSampler)
        loader.sampler = dataclasses.replace(loader.sampler, rank=rank, world=world, accumulation=2 // world)
        done = (augmented(net, batch) for batch in loader)
        return [(images, mix.share) for images, mix in done]

    net = make(**ALL)
    two = itertools.chain(*zip(seen(0, 2), seen(1, 2), strict=True))
    for (images, share), (others, shares) in zip(seen(0, 1), two, strict=True):
        assert torch.equal(images, others) and torch.equal(share, shares)


# -- pixels
def test_everything_off_hands_the_images_through() -> None:
    rows = make_batch([1, 2])
    images, mix = augmented(make(), rows)
    assert images is rows["image"] and mix is None


@pytest.mark.parametrize("names", [n for k in (1, 2, 4) for n in itertools.combinations(ALL, k)])
def test_memory_format_range_and_type(names: tuple[str, ...]) -> None:
    rows = make_batch(list(range(16)))
    before = rows["image"].clone()
    images, mix = augmented(make(**{name: ALL[name] for name in names}), rows)
    assert images.is_contiguous(memory_format=torch.channels_last) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 255 and torch.equal(rows["image"], before)
    assert (mix is not None) == bool({"mixup", "cutmix"} & set(names))
    if mix is not None:
        assert mix.share.min() >= 0 and mix.share.max() <= 1 and mix.share.shape == (16,)


def test_mixup_blends_each_row_with_the_one_before_by_its_own_share() -> None:
    images, mix = augmented(make(mixup=1.0), constant_rows(64))
    own = torch.arange(64.0)
    expected = mix.share * own + (1 - mix.share) * own.roll(1)
    assert torch.allclose(images, expected[:, None, None, None].expand_as(images), atol=1e-3)
    assert torch.equal(mix.targets, (torch.arange(64) % 3).roll(1)) and len(mix.share.unique()) == 64


def test_cutmix_pastes_one_box_whose_area_is_the_weight_in_the_loss() -> None:
    rows = 256
    images, mix = augmented(make(cutmix=1.0), constant_rows(rows))
    own, before = torch.arange(rows), torch.arange(rows).roll(1)
    kept = images == own[:, None, None, None]
    assert (kept | (images == before[:, None, None, None])).all(), "each pixel is of one of the two"
    assert torch.allclose(kept.float().mean((1, 2, 3)), mix.share, atol=1e-6)
    assert (~kept).sum() > 0
    for pasted in (~kept[:, 0]).numpy():  # a box: as many pixels as its rows times its columns
        assert pasted.sum() == pasted.any(0).sum() * pasted.any(1).sum()


def test_with_both_each_sample_takes_one_of_the_two() -> None:
    images, mix = augmented(make(mixup=1.0, cutmix=1.0), constant_rows(250))
    blended = (images.amax((1, 2, 3)) - images.amin((1, 2, 3)) < 1e-3) & (mix.share > 0.01) & (mix.share < 0.99)
    pasted = images.amax((1, 2, 3)) - images.amin((1, 2, 3)) > 0.99
    assert 90 < blended.sum() < 150 and 80 < pasted.sum() < 150 and not (blended & pasted).any()


def test_erasing_meets_the_share_of_rows_and_the_areas_that_it_names() -> None:
    rows, side = 4000, 64
    drawn = draws(rows)[3:8]
    inside = augmentation.erased(0.3, side, *drawn)[:, 0]
    assert inside.shape == (rows, side, side) and not augmentation.erased(0.0, side, *drawn).any()
    hit = inside.any((1, 2))
    assert abs(hit.float().mean().item() - 0.3) < 0.03
    height, width = inside.any(2).sum(1)[hit], inside.any(1).sum(1)[hit]
    assert torch.equal(height * width, inside.sum((1, 2))[hit]), "boxes"
    area = (height * width).float() / side**2
    assert area.min() > 0.015 and area.max() < 0.35 and abs(area.mean().item() - (0.02 + 1 / 3) / 2) < 0.01
    slimness = (height / width).log()
    assert abs(slimness.mean().item()) < 0.1 and slimness.abs().max() < math.log(1 / 0.3) + 0.2
    reached = inside.any(0)
    assert all(edge.any() for edge in (reached[0], reached[-1], reached[:, 0], reached[:, -1]))
    assert reached.float().mean() > 0.99, "up to a corner or two"


def test_color_jitter_does_what_torchvision_does() -> None:
    images = make_batch(list(range(8)))["image"].float() / 4 + 90  # far from 0 and 255: nothing is cut off
    numbers = draws(8)
    done = augmentation.jitter(images, 0.3, *numbers[:3])
    factors = [1 + 0.3 * (2 * d - 1) for d in (numbers.saturation, numbers.contrast, numbers.brightness)]
    for row in range(8):
        image = images[row] / 255
        for step, factor in zip((tv.adjust_saturation, tv.adjust_contrast, tv.adjust_brightness), factors, strict=True):
            image = step(image, factor[row].item())
        assert torch.allclose(done[row] / 255, image, atol=1e-3)
    assert len(torch.stack(factors).unique()) == 24, "each row and each change has its own"


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 2.0, 8.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    u = device_uniforms.uniform(torch.from_numpy(uniforms.sample_seeds(0, 0, np.arange(200_000))), 1)[:, 0]
    shares = device_uniforms.quantile(device_uniforms.beta_quantiles(alpha), u)
    assert shares.min() >= 0 and shares.max() <= 1
    assert abs(shares.mean().item() - 0.5) < 0.005
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.02)
    torch.manual_seed(0)
    sampled = torch.distributions.Beta(alpha, alpha).sample((200_000,)).sort().values
    assert (sampled - shares.sort().values).abs().mean() < 0.004, "the distance between the two distributions"
    exact = {1.0: u, 0.5: torch.sin(math.pi * u / 2) ** 2}
    if alpha in exact:
        assert torch.allclose(shares, exact[alpha], atol=1e-3)


# -- rows that are not valid
def model(task: str = "single_label", **settings: Any) -> ImageModel:
    torch.manual_seed(0)
    net = ImageModel(["a", "b", "c"], task, image_size=SIDE, backbone="small_cnn", **settings)  # type: ignore[arg-type]
    return net.eval()  # batch statistics see every row; they are not what is asked here


def gradients(net: ImageModel, rows: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    net.zero_grad()
    images, mix = augmented(net, rows)
    losses = net.losses(net(images), rows, mix)
    (losses.sum() / len(losses)).backward()
    return losses.detach(), [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("task", MIXED)
@pytest.mark.parametrize("invalid", [(1, 4), (0, 7), (0, 1, 2, 3, 4, 5, 6, 7)])
def test_nothing_of_a_row_that_is_not_valid_reaches_another(task: str, invalid: tuple[int, ...]) -> None:
    net, rows = model(task, **ALL), make_batch(list(range(8)), task, invalid)
    garbage = dataclasses.replace(rows, fields={name: rows[name].clone() for name in rows.fields})
    for row in invalid:
        garbage["image"][row] = 255 * (row % 2)
        garbage["target"][row] = 2
    (losses, clean), (others, dirty) = gradients(net, rows), gradients(net, garbage)
    assert torch.equal(losses, others) and all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
    assert (losses[list(invalid)] == 0).all() and losses.isfinite().all()
    _, mix = augmented(net, rows)
    behind = [(row + 1) % 8 for row in invalid]
    assert (mix.share[behind] == 1).all() and ((mix.share < 1).any() or len(invalid) == 8)


# -- the loss
@pytest.mark.parametrize("task", MIXED)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_mixed_target(task: str, smoothing: float) -> None:
    if task == "regression" and smoothing:
        with pytest.raises(InputError, match="is for classes"):
            model(task, label_smoothing=smoothing)
        return
    net = model(task, mixup=1.0, cutmix=1.0, label_smoothing=smoothing)
    rows = make_batch(list(range(12)), task)
    images, mix = augmented(net, rows)
    logits = net(images).detach()
    losses = net.losses(logits, rows, mix)
    share = mix.share[:, None]
    own = torch.nn.functional.one_hot(rows["target"], 3).float() if task == "single_label" else rows["target"]
    target = share * own + (1 - share) * own.roll(1, 0)
    if task == "regression":  # squared errors: apart by what does not depend on the outputs
        constant = (mix.share * (1 - mix.share))[:, None] * (own - own.roll(1, 0)).square()
        expected = ((logits - target).square() + constant).mean(1)
    elif task == "single_label":
        expected = -((target * (1 - smoothing) + smoothing / 3) * logits.log_softmax(1)).sum(1)
    else:
        smooth = target * (1 - smoothing) + smoothing / 2
        expected = -(smooth * logits.sigmoid().log() + (1 - smooth) * (-logits).sigmoid().log()).mean(1)
    assert torch.allclose(losses, expected, atol=1e-5)


def test_validation_and_prediction_see_the_images_as_they_are() -> None:
    plain, net, rows = model(), model(**ALL), make_batch(list(range(8)))
    for step in ("validation_step", "test_step"):
        outputs = [getattr(one, step)(rows, 0)["scores"] for one in (plain, net)]
        assert torch.equal(*outputs)
        a, b = (one.measures.compute()["loss"] for one in (plain, net))
        assert a == b
        plain.measures.reset()
        net.measures.reset()
    assert torch.equal(plain(rows["image"]), net(rows["image"]))
    assert set(plain.state_dict()) == set(net.state_dict()), "checkpoints keep their names"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_that_of_the_mixed_target(smoothing: float) -> None:
    net = model(mixup=1.0, cutmix=1.0, label_smoothing=smoothing, loss="binary_cross_entropy")
    rows = make_batch(list(range(12)), invalid=(4,))
    images, mix = augmented(net, rows)
    logits = net(images).detach()
    own, share = torch.nn.functional.one_hot(rows["target"], 3).float(), mix.share[:, None]
    target = (share * own + (1 - share) * own.roll(1, 0)) * (1 - smoothing) + smoothing / 3
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
    expected[4] = 0
    assert torch.allclose(net.losses(logits, rows, mix), expected, atol=1e-6)


def test_scores_of_binary_cross_entropy_are_probabilities_of_one_class() -> None:
    objective = OBJECTIVES["single_label"](3, loss="binary_cross_entropy")
    logits = torch.tensor([[2.0, -1.0, 0.5], [-90.0, -95.0, -100.0], [200.0, -200.0, 0.0]])
    scores = objective.scores(logits)
    assert torch.allclose(scores.sum(1), torch.ones(3)) and torch.equal(scores.argmax(1), logits.argmax(1))


@pytest.mark.parametrize("task", ["multi_label", "regression"])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_a_choice_of_loss_is_refused_for_tasks_that_have_none(task: str, loss: str) -> None:
    with pytest.raises(InputError, match=rf"model\.loss {loss} is for another task: give null"):
        model(task, loss=loss)


# -- how it runs
def test_it_compiles_into_one_graph() -> None:
    net, rows = make(**ALL), make_batch(list(range(8)), invalid=(3,))
    images, mix = augmented(net, rows)
    compiled_images, compiled_mix = torch.compile(net, backend="eager", fullgraph=True)(*arguments(rows))
    assert torch.equal(images, compiled_images) and torch.equal(mix.share, compiled_mix.share)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_runs_under_autocast_and_in_half_precision(dtype: torch.dtype) -> None:
    net, rows = model(**ALL), make_batch(list(range(8)))
    images, mix = augmented(net, rows)
    with torch.autocast("cpu", dtype):
        mixed, mixed_mix = augmented(net, rows)
        losses = net.losses(net(mixed), rows, mixed_mix)
    assert torch.equal(images, mixed) and torch.equal(mix.share, mixed_mix.share)
    exact = net.losses(net(images), rows, mix)
    assert torch.allclose(losses, exact, rtol=0.05, atol=0.05)
    net.to(dtype)
    images, mix = augmented(net, rows)
    assert images.dtype == dtype and torch.allclose(net.losses(net(images), rows, mix), exact, rtol=0.1, atol=0.1)
