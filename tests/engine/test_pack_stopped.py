"""The `pack` command: killed, stopped, on a full disk; and the same command finishes byte for byte."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lightning_shards.errors import RunError
from lightning_shards.packing.pack import pack

from . import PATIENCE
from .in_place import PACKAGE
from .samples import KEEP, class_files, command, fingerprint, folders_of, jpeg, write_tree, write_zip


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Arguments of a pack that takes a few seconds, and what it gives when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("slow")
    photos = [jpeg(seed, 900, 1200) for seed in range(5)]
    source = write_tree(folder / "source", {f"{'ab'[i % 2]}/{i}.jpg": photos[i % 5] for i in range(240)})
    arguments = [str(source), "DEST", "--short-side", "500", "--shard-bytes", "100K", "--workers", "2"]
    assert command(*(folder / "whole" if a == "DEST" else a for a in arguments)).returncode == 0
    yield arguments, fingerprint(folder / "whole")
    shutil.rmtree(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_killed_in_the_middle_the_same_command_finishes(
    number: signal.Signals, slow: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    arguments = [str(tmp_path / "d") if a == "DEST" else a for a in slow[0]]
    full = [sys.executable, "-m", PACKAGE, "pack", *arguments]
    process = subprocess.Popen(full, stderr=subprocess.PIPE, text=True, start_new_session=True)
    done = tmp_path / ".d.packing" / "done"
    while len(list(done.glob("*.npz"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    if number in (signal.SIGINT, signal.SIGHUP):
        os.killpg(process.pid, number)  # as a terminal does: the workers get it too
    else:
        process.send_signal(number)
    stderr = process.communicate(timeout=PATIENCE)[1]
    assert not (tmp_path / "d").exists()
    if number == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 75
        assert len(stderr.splitlines()) == 1
        assert "run the same command again" in stderr
    kept = {path.name: path.stat().st_mtime_ns for path in done.glob("*.npz")}
    assert len(kept) >= 2
    again = command(*arguments, "--json")
    assert again.returncode == 0, again.stderr
    assert fingerprint(tmp_path / "d") == slow[1]
    assert folders_of(tmp_path) == {"d"}
    report = json.loads(again.stdout)
    assert report["images_per_second"] * report["seconds"] < 240 and report["packed_before"] > 0


def test_finished_shards_of_another_recipe_or_source_are_not_used(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", {**class_files(30), "cat/bad.jpg": b"x"})
    for _ in range(2):
        with pytest.raises(RunError):
            pack(root, tmp_path / "d", replace(KEEP, shard_bytes=30_000), 1, max_damaged_fraction=0.0)
    (root / "cat" / "bad.jpg").write_bytes(jpeg(77))
    pack(root, tmp_path / "d", replace(KEEP, shard_bytes=30_000), 1)
    pack(root, tmp_path / "fresh", replace(KEEP, shard_bytes=30_000), 1)
    assert fingerprint(tmp_path / "d") == fingerprint(tmp_path / "fresh")


def test_a_full_disk_is_one_sentence_and_the_same_command_finishes(
    slow: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    arguments = [str(tmp_path / "d") if a == "DEST" else a for a in slow[0]]
    limit = (60_000, 60_000)  # no file may grow beyond: the write fails as on a full disk
    result = command(*arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert "make room" in result.stderr
    assert not (tmp_path / "d").exists()
    assert not list((tmp_path / ".d.packing").rglob("*.tmp"))
    assert command(*arguments).returncode == 0
    assert fingerprint(tmp_path / "d") == slow[1]


@pytest.mark.parametrize("most", [300, 6_000])  # the listing of the zip's members; the paths of its images
def test_a_disk_that_is_full_while_the_source_is_listed_is_said_so(tmp_path: Path, most: int) -> None:
    source = write_zip(tmp_path / "z.zip", class_files(300))
    result = command(source, tmp_path / "d", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert "File too large" in result.stderr and "make room" in result.stderr
    assert command(source, tmp_path / "d").returncode == 0


def test_the_command_prints_a_report_or_json(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", class_files(10))
    text = command(root, tmp_path / "a")
    assert text.returncode == 0
    assert "images/s" in text.stdout
    assert "10% of the images" in text.stdout
    report = json.loads(command(root, tmp_path / "b", "--json", "--decoded").stdout)
    assert report["decoded"]["train"]["images"] == report["splits"]["train"]["images"]
    assert list(tmp_path.glob("b/train/*.npy"))
    assert report["splits"]["train"]["images"] == 24
    for arguments in (["pack", root], ["pack", root, tmp_path / "c", "--quality", "good"], ["unknown"], []):
        result = subprocess.run([sys.executable, "-m", PACKAGE, *arguments], capture_output=True, text=True)
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr


def test_two_packs_into_one_place_do_not_meet(tmp_path: Path, slow: tuple[list[str], dict[str, str]]) -> None:
    arguments = [str(tmp_path / "d") if a == "DEST" else a for a in slow[0]]
    first = subprocess.Popen([sys.executable, "-m", PACKAGE, "pack", *arguments], stdout=subprocess.DEVNULL)
    while not (tmp_path / ".d.packing" / "done").exists():
        time.sleep(0.01)
    second = command(*arguments)
    assert second.returncode == 2
    assert "another process" in second.stderr
    assert first.wait() == 0
    assert fingerprint(tmp_path / "d") == slow[1]
