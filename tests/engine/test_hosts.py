"""Two hosts, each with its torchrun, on two loopback addresses of this one.

The commands are those of the README, with the shorter pauses of a rendezvous that nobody starts by hand.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from lightning_shards.data.dataset import Dataset
from lightning_shards.data.order import WindowedOrder

from . import PATIENCE, proofs, starts
from .servers import HeldPort
from .test_train import SMALL, start

EPOCHS = 80
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of this host on Linux only")


class Hosts:
    """Two places from which `train.py` is started in one folder that both see."""

    def __init__(self, folder: Path, port: HeldPort) -> None:
        self.folder, self.port = folder, port
        self.run = folder / "runs" / "two"
        self.started: list[starts.Host] = []

    def start(self, number: int, nodes: str, restarts: int = 0) -> starts.Host:
        host = starts.Host(self.folder, f"127.0.0.{number + 2}", self.port, nodes, restarts, ["--config", "c.yaml"])
        self.started.append(host)
        return host

    def steps(self) -> int:
        return sum(len(path.read_bytes().splitlines()) for path in self.run.glob("ledger/rank-0.jsonl"))

    def output(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def wait(self, until: Callable[[], bool]) -> None:
        """Until then, looking at the families of all hosts meanwhile; fail where it takes too long."""
        end = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < end, self.output()
            for host in self.started:
                host.statuses()
            time.sleep(0.1)


@pytest.fixture
def hosts(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    starts.prepare()
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    data = SMALL["data"] | {"path": str(dataset), "global_batch_size": 12, "image_size": 8}
    trainer = SMALL["trainer"] | {"max_epochs": EPOCHS, "log_every_n_steps": 50}
    settings = SMALL | {"data": data, "trainer": trainer, "ledger": True, "save_every_minutes": 0.001}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    both = Hosts(tmp_path, HeldPort())
    yield both
    for host in both.started:
        host.send(signal.SIGKILL)


def test_hosts_are_stopped_go_on_together_and_one_dies(hosts: Hosts, dataset: Path) -> None:
    """A signal to one saves and ends both; started again they go on with the run; the last one finishes it alone."""
    first, second = hosts.start(0, "2"), hosts.start(1, "2")
    hosts.wait(lambda: hosts.steps() > 20)
    second.signal_agent(signal.SIGTERM)
    hosts.wait(lambda: (hosts.run / "summary.json").exists() and second.statuses() != [None])
    assert proofs.summary(hosts.run)["status"] == "stopped", hosts.output()
    assert proofs.summary(hosts.run)["devices"] == 2
    hosts.wait(lambda: not first.left_behind())  # its rank has ended; torchrun itself waits for the other for minutes
    first.signal_agent(signal.SIGKILL)
    hosts.wait(lambda: first.statuses() != [None])
    assert "everything is saved" in hosts.output() and not second.left_behind()
    assert proofs.repeated_steps(hosts.run) == 0

    before = hosts.steps()
    first, second = hosts.start(0, "1:2", restarts=3), hosts.start(1, "1:2", restarts=3)
    hosts.wait(lambda: hosts.steps() > before + 20)
    second.signal_agent(signal.SIGKILL)
    hosts.wait(lambda: not second.left_behind())  # the kernel has ended its rank
    hosts.wait(lambda: first.statuses() != [None])
    assert first.statuses() == [0] and "rank 0 has lost another rank" in hosts.output(), hosts.output()
    assert not first.left_behind()
    assert proofs.summary(hosts.run)["devices"] == 1 and len({step.attempt for step in proofs.history(hosts.run)}) == 3
    shards = Dataset.open(dataset).splits["train"]
    order = WindowedOrder([s.samples for s in shards], [s.bytes for s in shards])
    assert proofs.examine(hosts.run, order, EPOCHS, 1.0, [12], killed=True) == (0, 0, [])


def test_several_hosts_need_a_name(
    hosts: Hosts, dataset: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(hosts.folder)
    torchrun = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2"}
    for name, value in {**torchrun, "TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.2"}.items():
        monkeypatch.setenv(name, value)
    assert start(monkeypatch, config="c.yaml") == 2
    assert "rank 1: error: torchrun on several hosts needs one name" in capfd.readouterr().err
    assert not os.path.lexists("runs")
