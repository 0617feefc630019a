"""Balanced classes: as often as their factors say, the same number in every epoch, and the same on any machine."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning_shards.data.balance import BalancedOrder, balancing_factors
from lightning_shards.data.uniforms import sample_seeds

GOLDEN = [13, 21, 10, 28, 3, 22, 2, 9, 29, 15]


def balanced(
    folder: Path, sizes: list[int], balance: float | dict[int, float], classes: int = 5, **others: object
) -> tuple[BalancedOrder, np.ndarray]:
    """An order, and the class numbers: of each class half as many as of the one before."""
    draws = np.random.default_rng(0).random(sum(sizes))
    numbers = np.minimum(-np.log2(draws + 1e-9).astype(np.int16), classes - 1).astype(np.int16)
    np.save(folder / "classes.npy", numbers)
    return BalancedOrder(sizes, sizes, folder / "classes.npy", balance, **others), numbers


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(sum),
    balance=st.one_of(st.floats(0, 1), st.dictionaries(st.integers(0, 4), st.floats(0.1, 9))),
    window=st.integers(1, 100),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_each_sample_comes_the_floor_or_ceiling_of_its_factor_and_slices_agree(
    tmp_path: Path, sizes: list[int], balance: float | dict[int, float], window: int, epoch: int, data: st.DataObject
) -> None:
    order, numbers = balanced(tmp_path, sizes, balance, window_samples=window, seed=3)
    ids, occurrences = order.ids(epoch, 0, len(order)), order.occurrences(epoch, 0, len(order))
    counts = np.bincount(ids, minlength=sum(sizes))
    factors = order.factors[numbers]
    assert (counts >= np.floor(factors - 1e-6)).all() and (counts <= np.ceil(factors + 1e-6)).all()
    assert sorted(zip(ids.tolist(), occurrences.tolist(), strict=True)) == sorted(
        (number, turn) for number, count in enumerate(counts.tolist()) for turn in range(count)
    )
    assert len(set(sample_seeds(0, epoch, ids, occurrences).tolist())) == len(ids)
    start = data.draw(st.integers(0, len(order)))
    stop = data.draw(st.integers(start, len(order)))
    other = pickle.loads(pickle.dumps(order))
    assert np.array_equal(other.ids(epoch, start, stop), ids[start:stop])
    assert np.array_equal(other.occurrences(epoch, start, stop), occurrences[start:stop])
    shards = np.searchsorted(np.cumsum(sizes), ids[start:stop], side="right")
    assert start == stop or set(shards.tolist()) <= set(other.shards(epoch, start, stop))


def test_the_length_and_the_factors_hold_over_many_epochs(tmp_path: Path) -> None:
    order, numbers = balanced(tmp_path, [100] * 10, 0.7)
    epochs = [np.bincount(numbers[order.ids(epoch, 0, len(order))]) for epoch in range(200)]
    assert {int(counts.sum()) for counts in epochs} == {len(order)} and abs(len(order) - 1000) <= 1
    expected = order.counts * order.factors
    for counts in epochs:
        assert (np.abs(counts - expected) <= 10).all(), "within one a shard"
    repeats = np.mean(epochs, axis=0) / np.bincount(numbers)
    assert np.abs(repeats / order.factors - 1).max() < 0.01
    assert len({tuple(order.ids(epoch, 0, len(order))) for epoch in range(200)}) == 200
    rare = np.bincount(np.concatenate([order.ids(epoch, 0, len(order)) for epoch in range(200)]), minlength=1000)
    spread = rare[numbers == 0] / 200 / order.factors[0]
    assert spread.min() > 0.7 and spread.max() < 1.3, "none of a class is left out for good"


def test_strengths() -> None:
    counts = np.array([800, 100, 0, 10])
    assert balancing_factors(counts, 0.0) == pytest.approx(np.array([1, 1, 0, 1]))
    equal = counts * balancing_factors(counts, 1.0)
    assert equal == pytest.approx(np.array([910 / 3, 910 / 3, 0, 910 / 3]))
    half = counts * balancing_factors(counts, 0.5)
    assert half.sum() == pytest.approx(910) and half[0] / half[3] == pytest.approx(80**0.5)


def test_explicit_factors_make_the_epoch_longer_and_leave_the_others(tmp_path: Path) -> None:
    order, numbers = balanced(tmp_path, [200] * 5, {4: 3.0})
    counts = np.bincount(order.ids(1, 0, len(order)), minlength=1000)
    assert (counts == np.where(numbers == 4, 3, 1)).all() and len(order) == 1000 + 2 * np.count_nonzero(numbers == 4)


def test_a_fraction_is_balanced_within_itself_and_a_sample_of_no_class_comes_once(tmp_path: Path) -> None:
    order, numbers = balanced(tmp_path, [50] * 20, 1.0, fraction=0.3)
    found = np.bincount(numbers[order.ids(0, 0, len(order))])
    assert abs(len(order) - 300) <= 1 and found.max() - found.min() <= 8
    np.save(tmp_path / "classes.npy", np.array([0, -1, -1, 0, 1, -1] * 10, np.int16))
    order = BalancedOrder([60], [60], tmp_path / "classes.npy", {0: 2.0, 1: 0.5})
    counts = np.bincount(order.ids(0, 0, len(order)), minlength=60).reshape(10, 6)
    assert (counts[:, [1, 2, 5]] == 1).all() and (counts[:, [0, 3]] == 2).all() and counts[:, 4].sum() == 5


def test_golden_values_hold(tmp_path: Path) -> None:
    np.save(tmp_path / "classes.npy", np.arange(30, dtype=np.int16) % 7 % 4)
    order = BalancedOrder([10, 20], [1, 1], tmp_path / "classes.npy", 0.5)
    assert order.ids(1, 3, 13).tolist() == GOLDEN
