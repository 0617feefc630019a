"""Several datasets read as one: their targets meet by name, whatever their numbers, shard sizes and places."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lightning_shards.data.cache import Cache
from lightning_shards.data.class_numbers import classes_of, numbers_file
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.joined import Renumbering, join
from lightning_shards.data.sample_reader import SampleReader
from lightning_shards.data.training_order import describe
from lightning_shards.errors import InputError
from lightning_shards.train.datamodule import ShardDataModule

from . import proofs
from .conftest import NAMES, encoded, write_dataset
from .servers import Web
from .test_train import SMALL, project, start

__all__ = ["project"]
WANTED = (("png",), ("cls",))


def renamed(root: Path, names: list[str]) -> Path:
    """The dataset at `root`, whose class numbers now stand for other names."""
    about = Dataset.open(root)
    Dataset(about.root, about.task, names, about.splits).save()
    return root


def module(path: Path, **settings: Any) -> ShardDataModule:
    return ShardDataModule(path=str(path), global_batch_size=8, **settings)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """29 samples in two shards; 0 is green here, 1 blue and 2 red."""
    return renamed(write_dataset(tmp_path_factory.mktemp("other") / "o", sizes=(12, 17)), ["green", "blue", "red"])


def test_targets_meet_by_name_in_folders_and_behind_urls(dataset: Path, other: Path, web: Web, tmp_path: Path) -> None:
    url = write_dataset(web.root.parent / "elsewhere", sizes=(5, 6)) if web.root != dataset else dataset
    members = [Dataset.open(dataset), Dataset.open(other), Dataset.parse((url / "dataset.json").read_bytes(), web.url)]
    joined = join(members)
    caches = [None, None, Cache(web.url, tmp_path / "cache", 10 << 20)]
    reader = SampleReader(joined, "train", WANTED, caches)
    assert len(reader) == 96 + 29 + 96 and joined.targets == NAMES
    for first, count, meaning in ((0, 96, [0, 1, 2]), (96, 29, [1, 2, 0]), (125, 96, [0, 1, 2])):
        found = [shard.read(row) for shard, row in reader.locate(np.arange(first, first + count))]
        assert [image for image, _ in found] == [encoded(number) for number in range(count)]
        assert [int(label) for _, label in found] == [meaning[number % 3] for number in range(count)]
    assert len({shard.name for shard, _ in reader.locate(np.arange(len(reader)))}) == 4 + 2 + 4, "names with folders"
    reader.expect([9, 0, 5])
    reader.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]
    held_out = SampleReader(joined, "val", WANTED, [None])
    assert len(held_out) == 21, "the first one's"


@pytest.mark.parametrize(
    ("task", "numbers", "before", "after"),
    [
        ("single_label", (2, 0), b"1", b"0"),
        ("single_label", (2, 0), b" 0\n", b"2"),
        ("single_label", (2, 0), b"7", b"-1"),
        ("single_label", (2, 0), b"-1", b"-1"),
        ("single_label", (2, 0), b"cat", b"-1"),
        ("multi_label", (2, 0), b'{"labels": [0, 1, 5]}', b'{"labels": [2, 0, -1]}'),
        ("multi_label", (2, 0), b"[]", b"[]"),
        ("regression", (1, 0), b'{"targets": [3.5, 4]}', b'{"targets": [4, 3.5]}'),
        ("regression", (1, 0), b'{"targets": [3.5]}', b'{"targets": [3.5]}'),
        ("regression", (1, 0), b"\xff", b"\xff"),
    ],
)
def test_numbers_of_targets_are_replaced(task: str, numbers: tuple[int, ...], before: bytes, after: bytes) -> None:
    assert Renumbering(task, numbers)(before) == after


def test_a_mixture_is_refused_in_a_sentence(dataset: Path, other: Path, tmp_path: Path) -> None:
    strange = renamed(write_dataset(tmp_path / "strange", sizes=(9,)), ["red", "green", "owl"])
    numbers = write_dataset(tmp_path / "numbers", sizes=(9,), task="regression")
    for mixture, why in (
        ({str(other): 1.0}, "data.path .* is none of data.mixture's datasets"),
        ({str(dataset): 0.5, str(strange): 0.5}, "only one has 'owl'"),
        ({str(dataset): 0.5, str(numbers): 0.5}, "is for regression"),
        ({str(dataset): 0.5, str(other): 0.0}, "must be above 0"),
        ({str(dataset): 1.0, str(tmp_path / "nowhere"): 1.0}, "no packed dataset"),
        ({str(dataset): 1.0, str(other): 0.0001}, "not one of"),
    ):
        with pytest.raises(InputError, match=why) as error:
            module(dataset, mixture=mixture)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="give one of them"):
        module(dataset, mixture={str(dataset): 1, str(other): 1}, balance=0.5)


def test_a_balance_is_refused_in_a_sentence(dataset: Path, tmp_path: Path) -> None:
    for balance, why in ((1.5, "between 0 and 1"), ({"owl": 2.0}, "no class 'owl'"), ({"red": 0.0}, "above 0")):
        with pytest.raises(InputError, match=why):
            module(dataset, balance=balance)
    several = write_dataset(tmp_path / "several", sizes=(9,), task="multi_label")
    with pytest.raises(InputError, match="needs a class"):
        module(several, balance=0.5)


def test_class_numbers_are_made_once_and_those_that_do_not_fit_are_made_anew(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", sizes=(17, 30))
    about = Dataset.open(root)
    path = numbers_file(about, "train", classes_of(about))
    assert path == root / classes_of(about).file_name(about, "train") and np.load(path).tolist() == [
        n % 3 for n in range(47)
    ]
    for damage in (np.zeros(5, np.int16), np.full(47, 3, np.int16), np.zeros(47)):
        np.save(path, damage)
        assert np.load(numbers_file(about, "train", classes_of(about))).tolist() == [n % 3 for n in range(47)]
    path.write_bytes(b"no numbers")
    made = path.stat()
    assert np.load(numbers_file(about, "train", classes_of(about))).tolist() == [n % 3 for n in range(47)]
    assert path.stat().st_size != made.st_size


def test_balance_behind_a_url_needs_the_file_that_pack_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    root = write_dataset(tmp_path / "d", sizes=(17, 30))
    server = Web(root)
    try:
        with pytest.raises(InputError, match="upload that file too"):
            module(server.url, balance=0.5)  # type: ignore[arg-type]
        numbers_file(Dataset.open(root), "train", classes_of(Dataset.open(root)))
        far = module(server.url, balance=0.5).order  # type: ignore[arg-type]
        assert np.array_equal(far.ids(0, 0, len(far)), module(root, balance=0.5).order.ids(0, 0, len(far)))
    finally:
        server.stop()


def test_another_share_or_balance_is_refused_on_a_resume(dataset: Path, other: Path) -> None:
    plain, mixed = module(dataset), module(dataset, mixture={str(dataset): 0.7, str(other): 0.3})
    balanced = module(dataset, balance={"red": 2.0})
    for before, after, what in (
        (plain, balanced, "balance"),
        (balanced, plain, "balance"),
        (balanced, module(dataset, balance={"red": 3.0}), "balance"),
        (mixed, module(dataset, mixture={str(dataset): 0.6, str(other): 0.4}), "mixture"),
        (mixed, plain, "not the one"),
    ):
        state = json.loads(json.dumps({"epoch": 1, "position": 8, "images_seen": 104, "order": before._order_state()}))
        with pytest.raises(InputError, match=what):
            after.load_checkpoint_state(state)
        before.load_checkpoint_state(state)


def test_classes_of_one_size_have_no_rarest(dataset: Path) -> None:
    data = ShardDataModule(str(dataset), balance=0.5, **SMALL["data"])
    assert describe(data.order, data.dataset, {}) == "each epoch shows each class 32 times: all have 32 images"


@pytest.mark.parametrize("kind", ["mixture", "balance"])
def test_a_training_says_what_it_will_see_and_sees_it(
    project: Path, dataset: Path, other: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, kind: str
) -> None:
    settings = yaml.safe_load((project / "small.yaml").read_text())
    added = {"mixture": {str(dataset): 0.7, str(other): 0.3}} if kind == "mixture" else {"balance": {"blue": 3.5}}
    settings["data"] |= added
    (project / "small.yaml").write_text(yaml.safe_dump(settings))
    assert start(monkeypatch, "--run", "r", "--ledger", "true", "--trainer.max_epochs", "2") == 0
    said = capsys.readouterr().out
    order = ShardDataModule(**settings["data"] | SMALL["data"]).order
    assert proofs.check_ids(proofs.history(project / "runs" / "r"), order, 2) == (0, 0, [])
    counts = Counter(np.concatenate([step.ids for step in proofs.history(project / "runs" / "r")]).tolist())
    if kind == "mixture":
        assert f"38 of {other} (1.31 times all of it)" in said and len(order) == 125
        assert max(counts) >= 96, "samples of the second dataset"
    else:
        assert "red (the rarest, 32 images) 32 times, blue (the commonest, 32 images) 112 times" in said
        assert {count for i, count in counts.items() if i % 3 == 2} <= {5, 6, 7, 8}
