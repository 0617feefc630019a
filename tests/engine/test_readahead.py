"""What comes next is fetched or read before it is needed: in long reads, in the background, in nobody's way."""

from __future__ import annotations

import fcntl
import itertools
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from lightning_shards.data import remote, sample_reader
from lightning_shards.data.cache import Cache
from lightning_shards.data.remote import open_dataset
from lightning_shards.errors import RunError

from .servers import Web
from .test_loading import decode, make_job, make_sampler

FIRST, SECOND = "train/000000.tar", "train/000001.tar"
WANTED = (("png",), ("cls",))


def open_store(url: str, folder: Path) -> sample_reader.SampleReader:
    return sample_reader.SampleReader(open_dataset(url), "train", WANTED, Cache(url, folder, 10 << 20))


def wait_for(condition: Any, seconds: float = 60) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.01)


def read_ahead_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_what_is_expected_is_there_before_it_is_needed(web: Web, tmp_path: Path) -> None:
    reader = open_store(web.url, tmp_path)
    reader.expect([2, 0])
    wait_for(lambda: len(list(tmp_path.glob("*.tar"))) == 2)
    assert set(web.gets) == {"dataset.json", FIRST, "train/000002.tar"}
    web.stop()
    assert reader.locate([0])[0][0].name == FIRST
    reader.close()
    assert not read_ahead_threads()


def test_an_error_in_the_background_is_raised_where_the_shard_is_used(web: Web, tmp_path: Path) -> None:
    web.faults[FIRST] = ["404"] * 3
    reader = open_store(web.url, tmp_path)
    reader.expect([0, 1])
    wait_for(lambda: reader._open[0].done() and reader._open[1].done())
    assert reader.locate([17])[0][0].name == SECOND
    for _ in range(2):
        with pytest.raises(Exception, match=FIRST):
            reader.locate([3])[0]
    assert len(web.gets[FIRST]) == 1
    reader.close()


def test_random_access_waits_for_no_other_shard(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_reader, "STREAMS", 1)
    for number in range(3):
        web.faults[f"train/{number:06d}.tar"] = ["stall"]
    reader = open_store(web.url, tmp_path)
    reader.expect([0, 1, 2, 3])
    assert reader.locate([95])[0][0].name == "train/000003.tar"
    assert not any(reader._open[number].done() for number in reader._open if number != 3), "they stall until the end"
    web.stop()  # the stalled answers end
    reader.close()


def test_breaking_off_ends_the_threads_while_the_store_is_down(web: Web, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 100.0)
    for number in range(4):
        web.faults[f"train/{number:06d}.tar"] = ["500"] * 99
    decoder, sampler = make_job(Path(web.root)).decoder, make_sampler(Path(web.root))
    decoder.store = open_store(web.url, tmp_path)
    errors: list[BaseException] = []

    def iterate() -> None:
        try:
            next(decode(decoder, sampler))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=iterate)
    thread.start()
    wait_for(lambda: len(web.gets) >= 4)
    decoder.store.close()
    thread.join(5)
    assert errors and not thread.is_alive() and not read_ahead_threads()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_shard_that_cannot_be_had_ends_the_epoch(web: Web, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(remote, "TRIES", 2)
    web.faults[SECOND] = ["500"] * 99
    decoder, sampler = make_job(Path(web.root)).decoder, make_sampler(Path(web.root))
    decoder.store = open_store(web.url, tmp_path)
    with pytest.raises(RunError, match=f"{web.url}/{SECOND}"):
        list(decode(decoder, sampler))
    assert not read_ahead_threads()


def test_a_local_disk_is_read_in_order_and_in_long_reads(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[str, int, int]] = []
    pread = os.pread

    def spy(descriptor: int, size: int, offset: int) -> bytes:
        reads.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), size, offset))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", spy)
    monkeypatch.setattr("lightning_shards.data.shard_file.LONG_READ", 20_000)
    monkeypatch.setattr(sample_reader.ShardFile, "in_memory", lambda *_: False)
    decoder, sampler = make_job(dataset).decoder, make_sampler(dataset)
    shards = sampler.shards(0, len(sampler) - 1)
    assert sum(len(rows.ids) for rows, _ in decode(decoder, sampler)) == 96
    long = [read for read in reads if read[1] == 20_000]
    names = [str(dataset / decoder.store.shards[n].name) for n in shards or []]
    assert sorted({name for name, _, _ in long}) == sorted(names)
    for name in names:
        offsets = [offset for path, _, offset in long if path == name]
        assert offsets == list(range(0, Path(name).stat().st_size, 20_000)), "once, from begin to end"
        own = [size for path, size, _ in reads if path == name]
        assert set(own[: len(offsets)]) == {20_000}, "before any sample of it"
    switches = sum(a[0] != b[0] for a, b in itertools.pairwise(long))
    assert switches == len(names) - 1, "one shard after the other"


def test_what_is_in_memory_is_not_read_again(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for shard in dataset.glob("train/*.tar"):
        shard.read_bytes()
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: sizes.append(size) or pread(fd, size, at))  # type: ignore[func-returns-value]
    reader = sample_reader.SampleReader(open_dataset(str(dataset)), "train", WANTED)
    reader.expect([0, 1, 2, 3])
    wait_for(lambda: all(future.done() for future in reader._open.values()))
    reader.close()
    if reader.locate([0])[0][0].in_memory(0):
        assert sizes == []
    else:
        pytest.skip("this file system cannot tell what is in memory")


def test_one_process_of_a_node_reads_ahead_at_a_time(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{tempfile.gettempdir()}/lightning-shards-{os.getuid()}-{dataset.stat().st_dev}.lock"
    reader = sample_reader.SampleReader(open_dataset(str(dataset)), "train", WANTED)
    with Path(name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # what another rank does while it reads
        reader.expect([0, 1])
        time.sleep(0.1)
        assert not any(future.done() for future in reader._open.values())
    wait_for(lambda: all(future.done() for future in reader._open.values()))
    reader.close()
