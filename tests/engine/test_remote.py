"""Shards behind URLs: a web server that fails in every way, an S3 server, and the cache that all processes share."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import torch
from lightning_shards.data import cache as caches
from lightning_shards.data import remote
from lightning_shards.data.cache import Cache, footprint
from lightning_shards.data.remote import open_dataset
from lightning_shards.data.sample_reader import SampleReader
from lightning_shards.errors import InputError, RunError
from lightning_shards.train.datamodule import ShardDataModule

from .conftest import encoded, write_dataset
from .servers import Web

FIRST = "train/000000.tar"
WANTED = (("png",), ("cls",))


def open_store(url: str, folder: Path, capacity: int = 10 << 20) -> SampleReader:
    return SampleReader(open_dataset(url), "train", WANTED, Cache(url, folder, capacity))


def contents(store: SampleReader, ids: range) -> list[list[bytes]]:
    return [shard.read(row) for number in ids for shard, row in store.locate([number])]


EXPECTED = [[encoded(number), str(number % 3).encode()] for number in range(96)]


def copies(folder: Path, suffix: str = ".tar") -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == suffix)


def folder_bytes(folder: Path) -> int:
    total = 0
    for entry in os.scandir(folder):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:
            continue
    return total


def test_a_url_reads_as_the_folder_does_and_is_fetched_once(web: Web, tmp_path: Path) -> None:
    for _ in range(2):
        assert contents(open_store(web.url, tmp_path), range(96)) == EXPECTED
    assert web.gets == {"dataset.json": [0, 0]} | {f"train/{n:06d}.tar": [0] for n in range(4)}
    assert len(copies(tmp_path)) == len(copies(tmp_path, ".index")) == 4 and not copies(tmp_path, ".tmp")


def test_other_protocols_and_a_file_url(dataset: Path, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.put(str(dataset), "/colours", recursive=True)
    assert contents(open_store("memory://colours", tmp_path / "c"), range(96)) == EXPECTED
    assert isinstance(open_dataset(f"file://{dataset}").root, Path), "a local folder needs no copies"
    for bad in ("pipe:cat x", "pipe://x", "nonsense://x", "gs://x" if not has("gcsfs") else "x://x"):
        with pytest.raises(InputError):
            open_dataset(bad)


def has(package: str) -> bool:
    return __import__("importlib.util").util.find_spec(package) is not None


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_connections_go_on_where_they_ended(web: Web, tmp_path: Path, monkeypatch: Any, ranges: bool) -> None:
    monkeypatch.setattr(remote, "PIECE", 20_000)
    web.ranges = ranges
    web.faults["dataset.json"] = ["500", "cut"]
    web.faults[FIRST] = ["503", "cut", "slow", "429", "500", "cut"]
    assert contents(open_store(web.url, tmp_path), range(96)) == EXPECTED
    if ranges:
        pieces = list(range(0, open_dataset(web.url).splits["train"][0].bytes, 20_000))
        assert sorted(set(web.gets[FIRST])) == pieces and len(web.gets[FIRST]) == len(pieces) + 5


def test_silence_is_a_broken_connection(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "STALL_SECONDS", 0.3)
    web.faults[FIRST] = ["stall"]
    assert contents(open_store(web.url, tmp_path), range(17)) == EXPECTED[:17]
    assert len(web.gets[FIRST]) == 2


def test_a_server_may_restart(web: Web, tmp_path: Path) -> None:
    store = open_store(web.url, tmp_path)
    assert contents(store, range(17)) == EXPECTED[:17]
    web.stop()
    threading.Timer(0.3, web.start).start()
    assert contents(store, range(17, 96)) == EXPECTED[17:]


def test_what_cannot_be_had_is_one_sentence_with_the_url(web: Web, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(remote, "TRIES", 3)
    web.faults[FIRST] = ["500"] * 9
    with pytest.raises(RunError, match=f"{web.url}/{FIRST} .*3 times.*500"):
        open_store(web.url, tmp_path).locate([0])[0]
    assert len(web.gets[FIRST]) == 3
    for status, why in (("404", "no such file"), ("403", "denied")):
        web.faults["dataset.json"] = [status]
        with pytest.raises(InputError, match=why):
            open_dataset(web.url)
    assert len(web.gets["dataset.json"]) == 3


def test_a_store_that_is_down_at_the_start_is_said_and_soon_given_up(web: Web, monkeypatch: Any, capfd: Any) -> None:
    monkeypatch.setattr(remote, "START_STALL_SECONDS", 0.2)
    web.faults["dataset.json"] = ["stall"] * 9
    with pytest.raises(RunError, match=f"tried {remote.START_TRIES} times .*is the store up"):
        open_dataset(web.url)
    assert len(web.gets["dataset.json"]) == remote.START_TRIES
    assert capfd.readouterr().err.count(f"{web.url}/dataset.json cannot be read") == 1
    web.stop()
    with pytest.raises(RunError, match="is the store up"):
        open_dataset(web.url)


@pytest.mark.parametrize("status", ["301", "302", "307", "308"])
def test_what_has_moved_is_followed(web: Web, tmp_path: Path, monkeypatch: Any, status: str) -> None:
    assert contents(open_store(f"{web.url}/moved/{status}", tmp_path), range(17)) == EXPECTED[:17]
    monkeypatch.setattr(remote, "START_TRIES", 2)
    with pytest.raises((InputError, RunError), match="cannot be read"):
        open_dataset(f"{web.url}/moved/{status}/round")


@pytest.mark.parametrize("status", ["429", "503"])
def test_a_server_says_when_to_come_back(web: Web, monkeypatch: Any, status: str) -> None:
    date = formatdate(time.time() + 86_400, usegmt=True)
    web.faults[FIRST] = [f"{status} 7", f"{status} {date}", f"{status} nonsense"]
    pauses: list[float] = []
    store = remote.Remote(web.url)
    monkeypatch.setattr(store.stop, "wait", lambda pause: pauses.append(pause))
    assert len(b"".join(store.pieces(FIRST, 5000))) == 5000
    assert pauses[0] == 7 and pauses[1] == remote.LONGEST_RETRY_AFTER and pauses[2] < 1


def test_bytes_from_another_place_are_never_used(web: Web, tmp_path: Path) -> None:
    web.faults[FIRST] = ["shifted"]
    assert contents(open_store(web.url, tmp_path), range(17)) == EXPECTED[:17]
    web.faults["dataset.json"] = ["shifted"]
    with pytest.raises(InputError, match=r"dataset\.json"):
        open_dataset(web.url)


def test_a_damaged_download_is_never_used(web: Web, tmp_path: Path) -> None:
    web.faults[FIRST] = ["flip", "flip"]
    assert contents(open_store(web.url, tmp_path), range(17)) == EXPECTED[:17]
    assert len(web.gets[FIRST]) == 3
    web.faults[FIRST] = ["flip"] * 3
    with pytest.raises(RunError, match=f"{FIRST}: came 3 times"):
        open_store(web.url, tmp_path / "other").locate([0])[0]
    assert not copies(tmp_path / "other") and not copies(tmp_path / "other", ".tmp")


def test_a_copy_that_was_cut_short_is_fetched_again(web: Web, tmp_path: Path) -> None:
    open_store(web.url, tmp_path).locate([0])[0]
    os.truncate(copies(tmp_path)[0], 1000)
    assert contents(open_store(web.url, tmp_path), range(17)) == EXPECTED[:17]


def test_two_buckets_with_the_same_names_do_not_collide(tmp_path: Path, web: Web) -> None:
    other = Web(write_dataset(tmp_path / "other", damaged={0: EXPECTED[0][0][::-1]}))  # tars of the same length
    assert contents(open_store(web.url, tmp_path / "c"), range(1)) == EXPECTED[:1]
    assert contents(open_store(other.url, tmp_path / "c"), range(1))[0][0] == EXPECTED[0][0][::-1]
    assert contents(open_store(web.url, tmp_path / "c"), range(1)) == EXPECTED[:1]
    other.stop()


CHILD = """
import sys
from lightning_shards.data.cache import Cache
from lightning_shards.data.remote import open_dataset
from lightning_shards.data.sample_reader import SampleReader
from pathlib import Path
url, folder, capacity = sys.argv[1:]
store = SampleReader(open_dataset(url), "train", (("png",), ("cls",)), Cache(url, Path(folder), int(capacity)))
print("ready", flush=True)
for line in sys.stdin:
    verb, *numbers = line.split()
    store.expect([int(number) for number in numbers])
    shards = [store.locate([sum(s.samples for s in store.shards[: int(number)])])[0][0] for number in numbers]
    held = shards if verb == "read" else None
    del shards
    print("done", flush=True)
"""


class Child:
    """Another process, which opens the shards it is told, or keeps on reading them."""

    def __init__(self, url: str, folder: Path, capacity: int = 10 << 20) -> None:
        command = [sys.executable, "-c", CHILD, url, str(folder), str(capacity)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout and self.process.stdout.readline() == "ready\n"

    def tell(self, verb: str, *numbers: int) -> None:
        assert self.process.stdin
        print(verb, *numbers, file=self.process.stdin, flush=True)

    def wait(self) -> None:
        assert self.process.stdout and self.process.stdout.readline() == "done\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_two_processes_never_fetch_the_same_shard(web: Web, tmp_path: Path) -> None:
    for number in range(4):
        web.faults[f"train/{number:06d}.tar"] = ["slow"]
    children = [Child(web.url, tmp_path) for _ in range(2)]
    for child in children:
        child.tell("open", 0, 1, 2, 3)
    for child in children:
        child.wait()
        child.kill()
    assert [web.gets[f"train/{n:06d}.tar"] for n in range(4)] == [[0]] * 4


def test_what_another_process_holds_stays_until_it_ends(web: Web, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(caches, "PATIENCE", 1e9)  # do not ask it to let go
    shards = open_dataset(web.url).splits["train"]
    capacity = shards[0].bytes + footprint(shards[1]) + footprint(shards[2])
    child = Child(web.url, tmp_path, capacity)
    child.tell("read", 0)
    child.wait()
    (held,) = copies(tmp_path)
    (tmp_path / f"{'0' * 32}.{'0' * 32}.tmp").write_bytes(bytes(5000))  # of a process that was killed
    store = open_store(web.url, tmp_path, capacity)
    for first in (17, 47, 17, 47):  # the second and the third shard take turns, the first was used longest ago
        store.locate([first])[0]
        store._open.clear()
        assert held.exists() and folder_bytes(tmp_path) <= capacity and not copies(tmp_path, ".tmp")
    child.kill()
    store.locate([95])[0]
    assert not held.exists() and folder_bytes(tmp_path) <= capacity


def test_who_only_keeps_shards_open_lets_go_for_who_needs_room(web: Web, tmp_path: Path) -> None:
    shards = open_dataset(web.url).splits["train"]
    capacity = footprint(shards[3]) + 5000
    child = Child(web.url, tmp_path, capacity)
    child.tell("open", 3)
    child.wait()
    store = open_store(web.url, tmp_path, capacity)
    assert store.locate([0])[0][0].name == FIRST and child.process.poll() is None
    child.kill()


def loaders(url: str, folder: Path, capacity: int, **settings: Any) -> ShardDataModule:
    """A datamodule under a trainer that has one device and no model."""
    data = ShardDataModule(
        url, 8, image_size=16, cache=str(folder / "cache"), cache_bytes=capacity, workers=4, **settings
    )
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=1, global_rank=0, num_devices=1, default_root_dir=str(folder), strategy=strategy
    )
    return data


def smallest(url: str, folder: Path, **settings: Any) -> int:
    """The capacity that is named when too little was given."""
    with pytest.raises(InputError, match="two windows") as error:
        loaders(url, folder, 10_000, **settings)
    return int(str(error.value).split("up to ")[1].split(";")[0])


@pytest.mark.parametrize("window", [1, 150_000])
def test_a_dataset_four_times_the_cache_trains_within_it(tmp_path: Path, window: int) -> None:
    web = Web(write_dataset(tmp_path / "d", sizes=[12 + n % 3 for n in range(100)], held_out=5))
    settings: dict[str, Any] = {"window_bytes": window, "max_skipped_fraction": 0.0}
    capacity = smallest(web.url, tmp_path, **settings)
    data, over, done = loaders(web.url, tmp_path, capacity, **settings), [], threading.Event()
    assert sum(shard.bytes for shard in data.dataset.splits["train"]) > 4 * capacity
    with pytest.raises(InputError):
        loaders(web.url, tmp_path, capacity - 1, **settings)

    def watch() -> None:
        while not done.is_set():
            over.append(folder_bytes(tmp_path / "cache"))
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for epoch in range(2):
        train = data.train_dataloader()
        train.sampler.set_epoch(epoch)
        ids = []
        for number, batch in enumerate(train):
            ids += batch.ids[batch.valid].tolist()
            if number == 20:  # a validation while training has shards open
                validated = [i for b in data.val_dataloader() for i in b.ids[b.valid].tolist()]  # type: ignore[union-attr]
                assert sorted(validated) == list(range(5))
        total = len(data.order)
        assert len(ids) == len(set(ids)) == total // 8 * 8 and set(ids) <= set(range(total))
    done.set()
    watcher.join()
    assert len(over) > 50 and max(over) <= capacity
    fetched = [len(web.gets[shard.name]) for shard in data.dataset.splits["train"]]
    assert max(fetched) <= 2, "once an epoch, or not at all where a copy was left"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
    web.stop()


def test_s3(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    names = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}
    for name, value in {**names, "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(remote, "PIECE", 20_000)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    for bucket, root in (("ours", dataset), ("theirs", write_dataset(tmp_path / "d", damaged={0: b"another"}))):
        files.mkdir(bucket)
        files.put(str(root), f"{bucket}/colours", recursive=True)
    assert contents(open_store("s3://ours/colours", tmp_path / "c"), range(96)) == EXPECTED
    assert contents(open_store("s3://theirs/colours", tmp_path / "c"), range(1))[0][0] == b"another"
    with pytest.raises(InputError, match="no such file"):
        open_dataset("s3://ours/nothing")
    server.stop()
