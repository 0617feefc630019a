"""The front door in plain PyTorch: each sample once, on any ranks, from any state; bad input is a sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_shards.data import Batch, Crop, Image, ShardLoader, ShardSamples, order
from lightning_shards.errors import InputError, RunError
from lightning_shards.train.datamodule import ShardDataModule

from . import PATIENCE
from .conftest import write_dataset

CROP = Crop(16)


def ids(batches: Any) -> list[int]:
    return [number for batch in batches for number in batch.ids.tolist()]


def test_six_lines_train_and_each_iteration_is_the_next_epoch(dataset: Path) -> None:
    loader = ShardLoader(str(dataset), batch_size=8, crop=16)
    model, criterion = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3)), torch.nn.CrossEntropyLoss()
    epochs = []
    for epoch in range(2):
        assert loader.epoch == epoch and len(loader) == 12
        seen = []
        for batch in loader:
            criterion(model(batch["image"].float()), batch["target"]).backward()
            seen += batch.ids.tolist()
        epochs.append(seen)
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(96)) and epochs[0] != epochs[1]
    assert (loader.epoch, loader.position) == (2, 0) and loader.progress(4) == 0.5
    loader.close()


def test_the_state_is_where_the_next_batch_begins(dataset: Path) -> None:
    """Taken behind a batch it has this batch; broken off, the next pass goes on there; another hardware too."""
    whole = ids(ShardLoader(dataset, 8, crop=CROP))
    loader, seen = ShardLoader(dataset, 8, crop=CROP), []
    for number, batch in enumerate(loader, 1):
        seen += batch.ids.tolist()
        assert (loader.epoch, loader.position) == ((0, 8 * number) if number < 12 else (1, 0))
        if number == 3:
            break
    state = json.loads(json.dumps(loader.state_dict()))
    assert seen + ids(loader) == whole, "the next pass goes on where the last was left"
    others = [ShardLoader(dataset, 4, crop=CROP, rank=rank, world_size=3, workers=1 + rank) for rank in range(3)]
    for other in others:
        other.load_state_dict(state)
    parts = [list(other) for other in others]
    assert [len(part) for part in parts] == [6, 6, 6]
    assert [number for step in zip(*parts, strict=True) for number in ids(step)] == whole[24:]
    assert {json.dumps(other.state_dict()) for other in others} == {json.dumps(loader.state_dict())}


def test_accumulated_batches_count_when_all_were_handed_out(dataset: Path) -> None:
    loader = ShardLoader(dataset, 4, crop=CROP, accumulation=5)
    places = [loader.position for _ in loader]
    assert places == [20 * ((number + 1) // 5) for number in range(19)] + [0] and len(loader) == 20
    assert (loader.epoch, loader.position) == (1, 0), "the last 16 samples wait for another epoch"


def test_same_batches_as_under_the_trainer(dataset: Path) -> None:
    """The datamodule's batches, which a script without a trainer gets too, and its state."""
    data = ShardDataModule(str(dataset), global_batch_size=8, image_size=16, seed=3)
    loader = ShardLoader(dataset, 8, crop=16, seed=3)
    for one, other in zip(data.train_dataloader(), loader, strict=True):
        assert torch.equal(one["image"], other["image"]) and torch.equal(one.ids, other.ids)
    held_out = data.val_dataloader()
    assert not isinstance(held_out, list) and sum(int((batch.ids >= 0).sum()) for batch in held_out) == 21
    data.advance()
    loader.load_state_dict(data.checkpoint_state())
    assert (loader.epoch, loader.position) == (0, 8)
    data.teardown("fit")


def test_held_out_samples_come_once_in_order_and_padded(dataset: Path) -> None:
    for world in (1, 2, 3):
        loaders = [ShardLoader(dataset, 4, split="val", crop=CROP, rank=r, world_size=world) for r in range(world)]
        for _ in range(2):
            parts = [list(loader) for loader in loaders]
            assert len({len(part) for part in parts}) == 1 and len(parts[0]) == len(loaders[0])
            found = [batch.ids[batch.valid].tolist() for step in zip(*parts, strict=True) for batch in step]
            assert [number for part in found for number in part] == list(range(21))
    train = ShardLoader(dataset, 96, shuffle=False, crop=CROP)
    assert ids(train) == list(range(96))


def test_fields_transform_and_orders_are_obeyed(dataset: Path, tmp_path: Path) -> None:
    (batch, *_) = ShardLoader(dataset, 96, crop=CROP, fields={"picture": Image(("png",))})
    assert list(batch.fields) == ["picture"] and batch["picture"].shape == (96, 3, 16, 16)
    with pytest.raises(InputError, match="lambda"):
        ShardLoader(dataset, 8, crop=CROP, transform=lambda sample, random: None)
    other = write_dataset(tmp_path / "other", sizes=(30,))
    both = ShardLoader(dataset, 8, crop=CROP, mixture={str(dataset): 0.5, str(other): 0.5})
    assert max(ids(both)) >= 96 and both.state_dict()["order"]
    others = ShardLoader(dataset, 8, crop=CROP, mixture={str(dataset): 0.4, str(other): 0.6})
    with pytest.raises(InputError, match=re.escape("changed: mixture.1.share (was 0.5, is 0.4), mixture.2.share (was")):
        others.load_state_dict(both.state_dict())
    with pytest.raises(InputError, match=re.escape("changed: seed (was 1, is 0); set")):
        ShardLoader(dataset, 8, crop=CROP).load_state_dict(ShardLoader(dataset, 8, crop=CROP, seed=1).state_dict())
    balanced = ShardLoader(dataset, 8, crop=CROP, balance={"red": 2.0})
    assert len(set(ids(balanced))) <= 96
    half = ShardLoader(dataset, 8, crop=CROP, fraction=0.5)
    again = ShardLoader(dataset, 8, crop=CROP, order=half._place.order if half._place else None)
    assert ids(half) == ids(again)


def test_damaged_samples_are_masked_and_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = write_dataset(tmp_path / "d", damaged={3: b"no image", 50: b""})
    batches = list(ShardLoader(root, 8, crop=CROP, max_skipped_fraction=0.1))
    assert {int(number) for batch in batches for number in batch.ids[~batch.valid]} == {3, 50}
    assert capfd.readouterr().err.count("cannot be decoded") == 1
    log = tmp_path / "skipped.jsonl"
    list(ShardLoader(root, 8, crop=CROP, max_skipped_fraction=0.1, skipped_log=log))
    assert len(log.read_text().splitlines()) == 2 and not capfd.readouterr().err
    with pytest.raises(RunError, match="max_skipped_fraction"):
        list(ShardLoader(root, 8, crop=CROP))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"path": "nowhere"}, "no packed dataset"), ({"split": "dev"}, "has train, val, test"),
     ({"batch_size": 97}, "lower batch_size"), ({"batch_size": 49, "rank": 0, "world_size": 2}, "lower batch_size"),
     ({"batch_size": 0}, "at least 1"), ({"batch_size": 2.5}, "whole number"), ({"batch_size": "8"}, "whole number"),
     ({"shufle": True}, "no setting shufle"), ({"rank": 1}, "go together"), ({"rank": 2, "world_size": 2}, "below"),
     ({"device": "nonsense"}, "cannot be used"), ({"shuffle": False, "fraction": 0.5}, "without shuffle"),
     ({"split": "val", "accumulation": 2}, "without shuffle"), ({"crop": 4}, "at least 8"), ({"seed": -1}, "least 0"),
     ({"workers": 0}, "at least 1"), ({"fraction": 0}, "above 0"), ({"fields": {"image": 3}}, "a field has names")],
)  # fmt: skip
def test_bad_input_is_one_sentence(dataset: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        ShardLoader(**{"path": dataset, "batch_size": 8, "crop": CROP, **settings})
    assert "\n" not in str(error.value)


def test_states_that_do_not_fit_are_refused(dataset: Path, tmp_path: Path) -> None:
    loader = ShardLoader(dataset, 8, crop=CROP)
    state = loader.state_dict()
    other = ShardLoader(write_dataset(tmp_path / "d", sizes=(96,)), 8, crop=CROP).state_dict()
    held_out = ShardLoader(dataset, 8, split="val", shuffle=True, crop=CROP).state_dict()
    wrong: list[Any] = [{}, None, [], {**state, "epoch": "1"}, {**state, "position": 97}, {**state, "position": -1},
                        {**state, "order": 3}, other, held_out]  # fmt: skip
    for content in wrong:
        with pytest.raises(InputError):
            loader.load_state_dict(content)
    assert loader.state_dict() == state
    with pytest.raises(InputError, match="no state"):
        ShardLoader(dataset, 8, split="val", crop=CROP).state_dict()


def test_a_state_keeps_its_window_on_a_machine_with_less_memory(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mixture = {str(dataset): 0.5, str(write_dataset(tmp_path / "d", sizes=(30, 20, 10))): 0.5}
    for settings in ({}, {"balance": 0.5}, {"mixture": mixture}):
        first = ShardSamples(dataset, 8, **settings)  # type: ignore[arg-type]
        state, whole = first.state_dict(), keys(first)
        with monkeypatch.context() as change:
            change.setattr(order, "memory_bytes", lambda: 1 << 18)
            small = ShardSamples(dataset, 8, **settings)  # type: ignore[arg-type]
            own = small.state_dict()
            assert keys(small) != whole
            small.load_state_dict(state)
            assert "more than a quarter of this machine's memory" in capfd.readouterr().err
            assert keys(small) == whole and small.state_dict() == state
            small.load_state_dict(own)
            assert keys(small) != whole
            with pytest.raises(InputError, match="window_bytes"):
                ShardSamples(dataset, 8, window_bytes=1 << 16, **settings).load_state_dict(state)  # type: ignore[arg-type]
    loader = ShardLoader(dataset, 8, crop=CROP)
    all_ids = ids(loader)
    with monkeypatch.context() as change:
        change.setattr(order, "memory_bytes", lambda: 1 << 18)
        other = ShardLoader(dataset, 8, crop=CROP)
        other.load_state_dict({**loader.state_dict(), "epoch": 0, "position": 24})
        assert ids(other) == all_ids[24:]
        data = ShardDataModule(str(dataset), global_batch_size=8, image_size=16)
        data.load_checkpoint_state({**loader.state_dict(), "epoch": 0, "position": 24, "images_seen": 24})
        assert data.order.ids(0, 0, 96).tolist() == all_ids and "memory" in (data.note or "")


def keys(samples: ShardSamples) -> list[str]:
    return [sample["__key__"] for sample in samples]


def test_a_pass_ends_where_another_begins_and_a_closed_loader_is_refused(dataset: Path) -> None:
    loader = ShardLoader(dataset, 8, crop=CROP)
    state, first = loader.state_dict(), iter(loader)
    next(first)
    loader.load_state_dict(state)
    with pytest.raises(InputError, match="another pass"):
        next(first)
    assert len(list(loader)) == 12
    loader.close()
    with pytest.raises(InputError, match="closed"):
        next(iter(loader))


def test_ranks_come_from_torchrun_or_the_process_group(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    loader = ShardLoader(dataset, 4, crop=CROP)
    assert (loader.rank, loader.world_size, len(loader)) == (1, 3, 8)
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(InputError, match="after the process group"):
        next(iter(loader))
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(InputError, match="no number"):
        ShardLoader(dataset, 4, crop=CROP)


BLOCKED = """
import importlib.abc, os, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning", "pytorch_lightning", "wandb", "torchmetrics", "jsonargparse",
                                      "torchvision", "tensorboard", "pynvml"):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
sys.meta_path.insert(0, Blocked())
"""
USES = """
def command(*arguments):
    sys.argv = ["lightning_shards", *arguments]
    status = main("python -m lightning_shards")
    assert not status, (arguments, status)
if __name__ == "__main__":  # the processes that pack import this file, too
    from lightning_shards.cli import main
    from lightning_shards.data import ShardLoader
    import lightning_shards.reporting.report
    tars, folder = sys.argv[1:]
    command("pack", folder, "packed", "--val", "0.2", "--test", "0")
    command("verify", "packed")
    command("adopt", tars, "adopted")
    assert len(list(ShardLoader("packed", 4, crop=16))) > 1
    command("runs")
"""


def test_works_with_the_base_dependencies_alone(dataset: Path, tmp_path: Path) -> None:
    """Packing, verifying, reading and the list of runs, where what only training needs cannot be imported."""
    import cv2

    from .conftest import picture

    for number in range(24):
        place = tmp_path / "images" / ["red", "green"][number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), picture(number))
    (tmp_path / "runs").mkdir()
    script = tmp_path / "uses.py"
    script.write_text(BLOCKED + USES)
    command = [sys.executable, str(script), str(dataset / "train"), "images"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_batch_is_what_the_annotations_say(dataset: Path) -> None:
    assert isinstance(next(iter(ShardLoader(dataset, 8, crop=CROP))), Batch)
