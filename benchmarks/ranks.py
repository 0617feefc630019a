"""The data path and the loop on 1, 2 and 4 CPU ranks with a trivial model, and what a word between the ranks costs.

    make demo && cd build/lightning-shards-demo
    uv run python ../../benchmarks/ranks.py --json ../../docs/results/ranks.json

Each case is `train.py` as a user starts it, with `--trainer.devices`: real images, a model of one linear layer. A rank
has the same micro-batch and one decoding thread in each case, so that without waiting for cores or for each other the
images per second of a rank would stay. The figures are of the second half of the steps of rank zero. Then the ranks, of
which each holds a flag, measure what asking for it costs: as Lightning does in every micro-batch (a broadcast, read
back), as an all-reduce that is waited for, and as one that is read later, which this project does once a second.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from baked import package

ROWS = 32  # of a micro-batch


def train() -> None:
    """On each rank: train.py with one linear layer in place of its network, and a clock at the end of each step."""
    import torch
    from lightning_shards.train.checkpoints import Checkpoints

    os.chdir(os.environ["RANKS_FOLDER"])
    name = os.environ["RANKS_PACKAGE"]
    backbones = importlib.import_module(f"{name}.backbones")
    ends: list[float] = []
    original = Checkpoints.on_train_batch_end

    def timed(self: Any, *given: Any) -> None:
        original(self, *given)
        ends.append(time.perf_counter())

    class Linear(torch.nn.Module):
        def __init__(self, outputs: int, widths: tuple[int, ...]) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, outputs)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(images.mean((2, 3)))

    Checkpoints.on_train_batch_end = timed  # type: ignore[method-assign, assignment]
    vars(backbones)["SmallCNN"] = Linear
    import train as script

    script.main()
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        half = ends[len(ends) // 2 :]
        steps = [1000 * (b - a) for a, b in itertools.pairwise(half)]
        figures = {"steps": len(steps), "ms_a_step": statistics.mean(steps), "median_ms": statistics.median(steps)}
        Path("figures.json").write_text(json.dumps(figures))


def words(rounds: int = 500) -> None:
    """On each rank: microseconds of each way to ask the others for a flag."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    flag = torch.zeros(1)

    def broadcast() -> None:
        distributed.broadcast(flag, src=0)
        flag.item()

    def waited() -> None:
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        flag.item()

    pending: list[Any] = []

    def later() -> None:
        while len(pending) > 20:
            pending.pop(0).wait()
        pending.append(distributed.all_reduce(torch.zeros(1), distributed.ReduceOp.MAX, async_op=True))

    figures = {}
    for name, ask in {"broadcast, read back": broadcast, "all-reduce, read back": waited, "read later": later}.items():
        took = []
        for _ in range(rounds):
            began = time.perf_counter()
            ask()
            took.append(1e6 * (time.perf_counter() - began))
        figures[name] = round(statistics.median(took), 1)
    for work in pending:
        work.wait()
    if distributed.get_rank() == 0:
        print(json.dumps(figures))
    distributed.barrier()
    distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def measure(name: str, ranks: int, epochs: int) -> dict[str, Any]:
    """One training on so many ranks."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path("src").absolute()), str(Path().absolute())]),
            "RANKS_FOLDER": folder,
            "RANKS_PACKAGE": name,
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "disabled",
        }
        data = {"path": Path("data/sample").absolute(), "global_batch_size": ROWS * ranks, "micro_batch_size": ROWS}
        given = {f"data.{key}": value for key, value in data.items()} | {
            "data.workers": 1,
            "trainer.devices": ranks,
            "trainer.max_epochs": epochs * ranks,
            "trainer.accelerator": "cpu",
            "trainer.enable_progress_bar": "false",
            "trainer.limit_val_batches": 0,
            "log.wandb": "false",
        }
        arguments = [text for key, value in given.items() for text in (f"--{key}", str(value))]
        config = str(Path("configs/sample.yaml").absolute())
        command = [sys.executable, str(Path(__file__).absolute()), "--config", config, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        figures = json.loads(Path(folder, "figures.json").read_text())
        summary = json.loads(next(Path(folder, "runs").glob("*/summary.json")).read_text())
    rate = ROWS / figures["ms_a_step"] * 1000
    return {
        "ranks": ranks,
        "images_per_second": round(rate * ranks),
        "images_per_second_of_a_rank": round(rate),
        "ms_a_step": round(figures["ms_a_step"], 2),
        "median_ms_a_step": round(figures["median_ms"], 2),
        "data_wait_fraction": round(summary["data_wait_fraction"], 2),
        "steps": figures["steps"],
    }


def ask(ranks: int) -> dict[str, float]:
    """What a word between so many ranks costs."""
    agent = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(free_port())]
    command = [sys.executable, *agent, "--", str(Path(__file__).absolute()), "--words"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--epochs", type=int, default=4, help="of a case with one rank; with more, as many steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    name = package()
    import torch

    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    results: dict[str, Any] = {
        "machine": machine,
        "torch": torch.__version__,
        "rows": ROWS,
        "cases": [],
        "words_us": {},
    }
    for round_ in range(arguments.rounds):
        for ranks in arguments.ranks:
            results["cases"].append(measure(name, ranks, arguments.epochs) | {"round": round_})
            print(results["cases"][-1], flush=True)
    for ranks in arguments.ranks:
        if ranks > 1:
            results["words_us"][str(ranks)] = [ask(ranks) for _ in range(arguments.rounds)]
            print(ranks, results["words_us"][str(ranks)], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if "RANKS_FOLDER" in os.environ:
        train()
    elif sys.argv[1:2] == ["--words"]:
        words()
    else:
        main()
