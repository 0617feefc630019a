"""A mixture gives each dataset its share, and of one dataset no sample comes again before all have come."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lightning_shards.data.mixture import BLOCK, Mixture, Source
from lightning_shards.data.order import WindowedOrder
from lightning_shards.data.sampler import TrainSampler
from lightning_shards.data.uniforms import sample_seeds
from lightning_shards.errors import InputError

SHAPES = st.lists(
    st.tuples(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.floats(0.05, 5)), min_size=1, max_size=4
)
Shape = tuple[list[int], float]


def mix(shapes: list[Shape], seed: int = 0, window: int = 50) -> Mixture:
    return Mixture(
        [
            Source(WindowedOrder(sizes, sizes, seed, 1.0, window), share, sum(sizes), len(sizes), str(number))
            for number, (sizes, share) in enumerate(shapes)
        ],
        seed,
    )


LARGE: list[Shape] = [([700] * 10, 0.7), ([90, 40, 170], 0.2), ([5000, 4000], 0.1)]


@settings(max_examples=60, deadline=None)
@given(shapes=SHAPES, epoch=st.integers(0, 4), cuts=st.lists(st.floats(0, 1), max_size=6))
def test_any_slicing_gives_the_same(shapes: list[Shape], epoch: int, cuts: list[float]) -> None:
    assume(min(share for _, share in shapes) * sum(sum(s) for s, _ in shapes) > 2 * sum(share for _, share in shapes))
    order = mix(shapes)
    whole = order.ids(epoch, 0, len(order))
    edges = sorted({0, len(order), *(int(cut * len(order)) for cut in cuts)})
    other = pickle.loads(pickle.dumps(order))
    for read, expected in ((other.ids, whole), (other.occurrences, order.occurrences(epoch, 0, len(order)))):
        pieces = [read(epoch, start, stop) for start, stop in itertools.pairwise(edges)]
        assert np.array_equal(np.concatenate(pieces), expected)
    for start, stop in itertools.pairwise(edges):
        ends = np.cumsum([size for sizes, _ in shapes for size in sizes])
        needed = np.searchsorted(ends, whole[start:stop], side="right")
        shards = other.shards(epoch, start, stop)
        assert set(needed.tolist()) <= set(shards) and len(set(shards)) == len(shards)
        assert sum(np.diff(ends, prepend=0)[shards]) <= order.reach(stop - start) + 50 * len(shapes)


def test_shares_and_counts_over_many_blocks() -> None:
    """Over 60,000 positions each source has its share, and the counts of its samples differ by one at most."""
    order = mix(LARGE)
    epochs = -(-60_000 // len(order))
    ids = np.concatenate([order.ids(epoch, 0, len(order)) for epoch in range(epochs)])[:60_000]
    ends = np.cumsum([sum(sizes) for sizes, _ in LARGE])
    for number, (sizes, share) in enumerate(LARGE):
        own = ids[(ids < ends[number]) & (ids >= ends[number] - sum(sizes))]
        assert abs(len(own) - share * 60_000) < BLOCK / 2
        counts = Counter(own.tolist())
        least = 0 if len(counts) < sum(sizes) else min(counts.values())
        assert max(counts.values()) - least <= 1
    within = [abs(np.count_nonzero(ids[:stop] < ends[0]) - 0.7 * stop) for stop in range(BLOCK, len(order), BLOCK)]
    assert max(within) <= 1


def test_each_epoch_has_the_same_counts_and_another_order() -> None:
    order = mix(LARGE)
    ends = np.cumsum([sum(sizes) for sizes, _ in LARGE])
    epochs = [np.searchsorted(ends, order.ids(epoch, 0, len(order)), side="right") for epoch in range(3)]
    assert {tuple(np.bincount(numbers)) for numbers in epochs} == {tuple(order.counts)}
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])


def test_a_sample_that_comes_again_has_another_seed() -> None:
    order = mix(LARGE)
    for epoch in range(2):
        ids, occurrences = (read(epoch, 0, len(order)) for read in (order.ids, order.occurrences))
        assert len(set(ids.tolist())) < len(ids), "the second source comes several times"
        assert len(set(sample_seeds(0, epoch, ids, occurrences).tolist())) == len(ids)
        assert np.array_equal(sample_seeds(0, epoch, ids, np.zeros_like(ids)), sample_seeds(0, epoch, ids))


def test_a_mixture_of_one_is_the_dataset_itself() -> None:
    alone = WindowedOrder([17, 30, 9], [1] * 3, 5, 1.0, 20)
    order = Mixture([Source(alone, 3.0, 56, 3, "a")], 5)
    assert np.array_equal(order.ids(2, 0, 56), alone.ids(2, 0, 56))
    assert [n for n in order.shards(1, 0, 56) if n < 3][:3] == alone.shards(1, 0, 56)


def test_ranks_do_not_enter() -> None:
    order, total = mix(LARGE), 24

    def step(world: int, micro: int, number: int) -> list[int]:
        times = total // world // micro
        ranks = [TrainSampler(order, rank, world, micro, times, (0, 480)) for rank in range(world)]
        batches = [list(itertools.islice(rank, number * times, (number + 1) * times)) for rank in ranks]
        return [i for turn in range(times) for batch in batches for i in batch[turn].tolist()]

    assert step(1, 24, 3) == step(2, 4, 3) == step(3, 8, 3) == order.ids(0, 480 + 72, 480 + 96).tolist()


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="not one of"):
        mix([([100], 0.001), ([100], 1.0)])
    order = WindowedOrder([5], [5])
    with pytest.raises(InputError, match="twice"):
        Mixture([Source(order, 1, 5, 1, "a"), Source(order, 1, 5, 1, "a")])
    with pytest.raises(IndexError):
        mix(LARGE).ids(0, 5, 1 << 40)
