"""The order hands out each sample once, is the same on any hardware, and can be entered anywhere."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_shards.data.order import WindowedOrder, permutation
from lightning_shards.data.sampler import EvalSampler, TrainSampler
from lightning_shards.data.uniforms import draw, sample_seeds

GOLDEN_ORDER = [14, 13, 12, 10, 11, 3, 9, 5, 1, 0, 2, 7, 4, 6, 8]
GOLDEN_PERMUTATION = [1, 2, 4, 6, 5, 0, 7, 3]
GOLDEN_EPOCHS = {  # (samples of the shards, bytes of a sample, seed, fraction, window): three epochs
    ((4, 6, 5), 1, 0, 1.0, 10, 1 << 62): "e9b78661a05a10ca",
    ((17, 30, 9, 40), 1000, 0, 1.0, 40, 1 << 62): "30daee2dc56034f2",
    ((17, 30, 9, 40), 1000, 3, 0.7, 1 << 20, 25_000): "e7dc2b4ff3e4b4af",
    ((1, 33, 2, 50, 13, 8), 7, 11, 0.5, 20, 1 << 62): "2736df7f664cf30f",
    ((61,), 1, 2, 1.0, 1 << 62, 1 << 62): "3939faeab9b814e3",
    ((500,) * 32, 100, 0, 1.0, 4000, 1 << 62): "8bba6f636c55653f",
    ((1250,) * 100 + (7,), 2000, 5, 0.33, 1 << 20, 9_000_000): "336209f9ed20d41c",
    ((0, 3, 0, 9), 1, 1, 1.0, 1, 1): "500d50c473b1d279",
}
GOLDEN_KEYS = [-2367954187680252117, -5298878457688342744, -8024006551314186939]
SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(sum)


@settings(max_examples=200, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 5), epoch=st.integers(0, 3), window=st.integers(1, 100), data=st.data())
def test_each_epoch_is_a_permutation_and_slices_agree(
    sizes: list[int], seed: int, epoch: int, window: int, data: st.DataObject
) -> None:
    order = WindowedOrder(sizes, [100 * s for s in sizes], seed, window_samples=window, window_bytes=3000)
    whole = order.ids(epoch, 0, len(order))
    assert sorted(whole.tolist()) == list(range(sum(sizes)))
    start = data.draw(st.integers(0, len(order)))
    stop = data.draw(st.integers(start, len(order)))
    assert np.array_equal(
        WindowedOrder(sizes, [100 * s for s in sizes], seed, 1.0, window, 3000).ids(epoch, start, stop),
        whole[start:stop],
    )


@settings(max_examples=100, deadline=None)
@given(sizes=SIZES, window=st.integers(1, 60), epoch=st.integers(0, 2))
def test_windows_are_bounded_and_samples_stay_inside(sizes: list[int], window: int, epoch: int) -> None:
    order = WindowedOrder(sizes, sizes, 1, window_samples=window)
    first = np.cumsum(sizes) - sizes
    position = 0
    while position < len(order):
        shards = order.shards(epoch, position, position)
        count = sum(sizes[s] for s in shards)
        assert count <= window or len([s for s in shards if sizes[s]]) == 1 or len(shards) == 1
        inside = sorted(i for s in shards for i in range(first[s], first[s] + sizes[s]))
        assert sorted(order.ids(epoch, position, position + count).tolist()) == inside
        position += count
    assert position == len(order)


@settings(max_examples=150, deadline=None)
@given(
    sizes=SIZES,
    worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    micro=st.integers(1, 3),
    steps_done=st.integers(0, 5),
    data=st.data(),
)
def test_global_batches_do_not_depend_on_ranks_or_accumulation(
    sizes: list[int], worlds: tuple[int, int], micro: int, steps_done: int, data: st.DataObject
) -> None:
    order = WindowedOrder(sizes, sizes, 3, window_samples=50)
    total = micro * worlds[0] * worlds[1]
    start = min(steps_done * total, len(order) // total * total)

    def steps(world: int, accumulation: int) -> list[list[int]]:
        ranks = [TrainSampler(order, r, world, micro, accumulation, (0, start)) for r in range(world)]
        batches = [list(rank) for rank in ranks]
        assert {len(rank) for rank in ranks} == {(len(order) // total) * accumulation}
        rows = [[i for a in range(accumulation) for b in batches for i in b[s * accumulation + a]]
                for s in range(len(batches[0]) // accumulation)]  # fmt: skip
        return rows

    left, right = steps(worlds[0], worlds[1]), steps(worlds[1], worlds[0])
    assert left == right
    expected = order.ids(0, start, start + len(left) * total).tolist()
    assert [i for step in left for i in step] == expected
    assert len(order) - start - len(expected) < total  # only what does not fill a batch waits


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 60), world=st.integers(1, 4), micro=st.integers(1, 7))
def test_evaluation_counts_each_sample_once(count: int, world: int, micro: int) -> None:
    ranks = [EvalSampler(count, rank, world, micro) for rank in range(world)]
    rows = [batch for rank in ranks for batch in rank]
    assert len({len(list(rank)) for rank in ranks}) == 1 and all(len(batch) == micro for batch in rows)
    assert sorted(i for batch in rows for i in batch if i >= 0) == list(range(count))


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 1.0])
def test_a_fraction_is_the_same_subset_in_every_epoch(fraction: float) -> None:
    sizes = [10] * 20
    order = WindowedOrder(sizes, sizes, 0, fraction)
    subsets = [set(order.ids(epoch, 0, len(order)).tolist()) for epoch in range(3)]
    assert subsets[0] == subsets[1] == subsets[2] and len(subsets[0]) == len(order)
    assert fraction * 200 <= len(order) < fraction * 200 + 10
    larger = WindowedOrder(sizes, sizes, 0, min(1.0, fraction * 2))
    assert subsets[0] <= set(larger.ids(0, 0, len(larger)).tolist())


def test_seeds_and_epochs_differ_and_golden_values_hold() -> None:
    """The golden values are the contract: another version, machine or NumPy must give the same order."""
    order = WindowedOrder([4, 6, 5], [1, 1, 1], seed=0, window_samples=10)
    orders = {
        tuple(WindowedOrder([50] * 4, [1] * 4, seed).ids(epoch, 0, 200)) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9
    assert order.ids(0, 0, 15).tolist() == GOLDEN_ORDER
    assert permutation(8, 1, 2, 3).tolist() == GOLDEN_PERMUTATION
    assert sample_seeds(0, 0, np.arange(3)).tolist() == GOLDEN_KEYS


@pytest.mark.parametrize("case", GOLDEN_EPOCHS)
def test_the_order_stays_bit_for_bit(case: tuple[Any, ...]) -> None:
    samples, size, *others = case
    order = pickle.loads(pickle.dumps(WindowedOrder(samples, [size * count for count in samples], *others)))
    ids = [order.ids(epoch, 0, len(order)).astype("<i8").tobytes() for epoch in range(3)]
    assert hashlib.sha256(b"".join(ids)).hexdigest()[:16] == GOLDEN_EPOCHS[case]


@settings(max_examples=100, deadline=None)
@given(sizes=SIZES, window=st.integers(1, 60), data=st.data())
def test_the_shards_at_hand_hold_the_samples_and_what_comes_next(
    sizes: list[int], window: int, data: st.DataObject
) -> None:
    order = WindowedOrder(sizes, sizes, 2, window_samples=window)
    ends = np.cumsum(sizes)
    start = data.draw(st.integers(0, len(order) - 1))
    stop = data.draw(st.integers(start + 1, len(order)))
    shards = order.shards(1, start, stop)
    needed = np.searchsorted(ends, order.ids(1, start, stop), side="right")
    assert set(needed.tolist()) <= set(shards) and len(set(shards)) == len(shards)
    assert stop == len(order) or sum(sizes[number] for number in shards) > stop - start
    whole = order.shards(1, 0, len(order))
    assert any(whole[i : i + len(shards)] == shards for i in range(len(whole))), "in the order of reading"


def test_random_numbers_belong_to_samples() -> None:
    ids = np.array([5, 9, 2, 7])
    numbers = draw(sample_seeds(0, 1, ids), 6)
    assert np.array_equal(draw(sample_seeds(0, 1, ids[::-1]), 6), numbers[::-1])
    assert not np.array_equal(draw(sample_seeds(0, 2, ids), 6), numbers) and not np.array_equal(
        draw(sample_seeds(1, 1, ids), 6), numbers
    )
    many = draw(sample_seeds(0, 0, np.arange(20_000)), 8)
    assert many.min() >= 0 and many.max() < 1
    assert np.abs(many.mean(axis=0) - 0.5).max() < 0.01 and np.abs(many.std(axis=0) - 12**-0.5).max() < 0.01
    correlations = np.corrcoef(many.T) - np.eye(8)
    assert np.abs(correlations).max() < 0.03 and np.abs(np.corrcoef(many[:-1, 0], many[1:, 0])[0, 1]) < 0.03


def test_neighbours_in_a_shard_are_far_apart_in_the_order() -> None:
    """Mixing: with windows of eight shards, two neighbours of a shard stand on average a third of a window apart."""
    sizes = [500] * 32
    order = WindowedOrder(sizes, sizes, 0, window_samples=4000)
    place = np.argsort(order.ids(0, 0, len(order)))
    distances = np.abs(np.diff(place.reshape(32, 500), axis=1))
    assert abs(distances.mean() - 4000 / 3) < 60 and np.median(distances) > 1000
