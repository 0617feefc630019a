"""Repeated augmentation: each sample comes several times in one global batch, exactly so however a run is cut."""

from __future__ import annotations

import itertools
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_shards.data.mixture import Mixture, Source
from lightning_shards.data.order import Order, WindowedOrder
from lightning_shards.data.repeats import Repeated
from lightning_shards.data.uniforms import sample_seeds
from lightning_shards.errors import InputError
from lightning_shards.train.datamodule import ShardDataModule

from . import proofs, starts
from .conftest import NAMES, write_dataset
from .starts import Strike
from .test_orders_resumed import OrderTrial

KILL, TERM = signal.SIGKILL, signal.SIGTERM


def windowed(samples: list[int], seed: int = 0) -> WindowedOrder:
    return WindowedOrder(samples, [10 * n for n in samples], seed, window_samples=20)


def mixture(samples: list[int]) -> Mixture:
    sources = [Source(windowed(samples, s), share, sum(samples), len(samples), str(s)) for s, share in ((1, 3), (2, 1))]
    return Mixture(sources, 5)


ORDERS: dict[str, Callable[[list[int]], Order]] = {"one": windowed, "mixture": mixture}
SAMPLES = st.lists(st.integers(1, 30), min_size=2, max_size=6).filter(lambda samples: sum(samples) >= 20)


@given(SAMPLES, st.integers(2, 5), st.sampled_from(list(ORDERS)), st.data())
@settings(max_examples=60, deadline=None)
def test_any_slice_is_a_slice_of_the_whole(samples: list[int], repeats: int, kind: str, data: st.DataObject) -> None:
    order, epoch = Repeated(ORDERS[kind](samples), repeats), data.draw(st.integers(0, 7))
    whole, seen = order.ids(epoch, 0, len(order)), order.occurrences(epoch, 0, len(order))
    start = data.draw(st.integers(0, len(order)))
    stop = data.draw(st.integers(start, len(order)))
    assert (order.ids(epoch, start, stop) == whole[start:stop]).all()
    assert (order.occurrences(epoch, start, stop) == seen[start:stop]).all()


@given(SAMPLES, st.integers(2, 5), st.sampled_from(list(ORDERS)), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_every_unit_has_all_views_of_its_samples(samples: list[int], repeats: int, kind: str, epoch: int) -> None:
    inner = ORDERS[kind](samples)
    order = Repeated(inner, repeats)
    ids, seen = order.ids(epoch, 0, len(order)), order.occurrences(epoch, 0, len(order))
    assert len(order) % order.unit == 0 and len(inner) - len(order) < order.unit
    for row in range(0, len(order), order.unit):
        of_unit = Counter(ids[row : row + order.unit].tolist())
        assert all(count % repeats == 0 for count in of_unit.values())
        pair = ids[row : row + order.unit].reshape(repeats, 2)
        assert (pair == pair[0]).all(), "two take turns"
    seeds = sample_seeds(0, epoch, ids, seen)
    assert len(set(seeds.tolist())) == len(seeds), "each view has a seed of its own"


@pytest.mark.parametrize("repeats", [2, 3, 5])
def test_in_so_many_epochs_each_sample_comes_so_many_times(repeats: int) -> None:
    inner = windowed([40, 20, 60])  # 120, a multiple of 2 x 2, 2 x 3 and 2 x 5
    order = Repeated(inner, repeats)
    for begin in (0, repeats):
        epochs = [order.ids(epoch, 0, len(order)) for epoch in range(begin, begin + repeats)]
        assert set(Counter(np.concatenate(epochs).tolist()).values()) == {repeats} and len(order) == 120
        assert all(set(Counter(one.tolist()).values()) == {repeats} for one in epochs)


@given(SAMPLES, st.integers(2, 4), st.sampled_from(list(ORDERS)), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_the_shards_that_are_read_are_at_hand(samples: list[int], repeats: int, kind: str, epoch: int) -> None:
    order: Order = Repeated(ORDERS[kind](samples), repeats)
    ends = np.cumsum(samples * (2 if kind == "mixture" else 1))
    size = 10 * np.array(samples * 2)
    for start in range(0, len(order) - 7, 7):
        hand = order.shards(epoch, start, start + 7)
        used = np.searchsorted(ends, order.ids(epoch, start, start + 7), side="right")
        assert set(used.tolist()) <= set(hand) and len(set(hand)) == len(hand)
        assert size[list(hand)].sum() <= order.reach(7)


@pytest.mark.parametrize("changes", [{}, {"balance": 1.0}, {"fraction": 0.5}, {"mixture": True}])
def test_it_goes_with_all_that_decides_the_order(tmp_path: Path, dataset: Path, changes: dict[str, Any]) -> None:
    if "mixture" in changes:
        other = write_dataset(tmp_path / "other", sizes=(7, 20, 4), held_out=5)
        changes = {"mixture": {str(dataset): 0.4, str(other): 0.6}}
    data = ShardDataModule(str(dataset), global_batch_size=12, repeats=3, **changes)
    plain = ShardDataModule(str(dataset), global_batch_size=12, **changes)
    assert isinstance(data.order, Repeated) and dict(data.order.settings) == {**plain.order.settings, "repeats": 3}
    assert 0 <= len(plain.order) - len(data.order) < 6
    assert data.note is not None and "each 3 times (data.repeats)" in data.note
    assert "repeats" not in plain.order.settings and type(plain.order) is not Repeated


@pytest.mark.parametrize("changes", [{}, {"repeats": 3}, {"balance": 1.0}, {"balance": {NAMES[0]: 5.0}}])
@pytest.mark.parametrize("share", [1.0, 0.9, 0.5])
def test_samples_each_once_whatever_an_epoch_shows(dataset: Path, changes: dict[str, Any], share: float) -> None:
    data = ShardDataModule(str(dataset), global_batch_size=12, **changes)
    data.shorten(share, False, "trainer.limit_train_batches")
    order = data.each_once()
    ids = order.ids(0, 0, len(order))
    assert len(set(ids.tolist())) == len(ids) == len(order) <= 96
    assert len(order) == (96 if share == 1 else min(96, len(data.order)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"repeats": 0}, "repeats is 0, it must be a whole number, at least 1"),
        ({"repeats": 3, "global_batch_size": 16}, "16 is no multiple of 2 x data.repeats, 6: 12 or 18 would do"),
        ({"repeats": 9, "global_batch_size": 16}, "no multiple of 2 x data.repeats, 18: 18 would do"),
        ({"repeats": 100, "global_batch_size": 96}, "data.repeats 100 is too many for 96 training samples"),
    ],
)
def test_what_cannot_be_is_refused(dataset: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ShardDataModule(str(dataset), **{"global_batch_size": 12, **changes})


@pytest.fixture(scope="module")
def context() -> Any:
    return starts.server()


@pytest.mark.parametrize("sizes", [{}, {"image_size": 16, "size_schedule": {8: 0.5}}], ids=["one-size", "two-sizes"])
def test_each_position_comes_once_however_it_is_cut(
    context: Any, tmp_path: Path, dataset: Path, sizes: dict[str, Any]
) -> None:
    trial = OrderTrial(context, tmp_path, dataset, repeats=3, global_batch_size=12, workers=1, **sizes)
    assert trial.start(12, Strike("step", 4, KILL)) == [-KILL]
    assert trial.start(24, Strike("batch", 5, KILL, rank=1), devices=2, accumulation=2)[1] == -KILL
    assert trial.start(6, Strike("step", 3, TERM), devices=2) == [0, 0]
    trial.finish(12, accumulation=3)
    for epoch, steps in itertools.groupby(proofs.history(trial.run), key=lambda step: step.epoch):
        counts = Counter(i for step in steps for i in step.ids)
        assert set(counts.values()) == {3}, epoch


def test_another_number_of_repeats_is_refused_on_a_resume(context: Any, tmp_path: Path, dataset: Path) -> None:
    trial = OrderTrial(context, tmp_path, dataset, repeats=3, global_batch_size=12, workers=1)
    assert trial.start(12, Strike("step", 4, KILL)) == [-KILL]
    arguments = ["--resume", "cut", "--data.repeats", "2"]
    assert starts.wait(starts.Forked(context, tmp_path, arguments, 1, ()), 300) == [2]
    said = "".join(log.read_text() for log in tmp_path.glob("output-*.log"))
    assert "these changed: repeats (was 3, is 2); set them back" in said
