"""Random kills and resumes of tiny trainings, and what they prove: nothing lost, nothing done twice. `make soak`.

    python -m engine.soak --chains 100 --seed 0 --json soak.json

A chain is one training: of train.py, or a loop in plain PyTorch over `ShardLoader` or `ShardSamples`; on a dataset, on
a mixture of two, with balanced classes or weights, or on images with masks or boxes. It is struck again and again
(SIGKILL, of train.py also SIGTERM and SIGINT; at a random time, or at a chosen moment: in validation, at an epoch's
end, while a file is written) and goes on each time on other ranks, with another micro-batch, other workers, sometimes
another global batch, until it is done. `--only K` repeats chain K.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_shards.train import hardware

from . import in_place as in_place  # first: it is where `train` and the team's package are found
from . import starts
from .chains import Chain, write_datasets
from .plain_chain import PlainChain
from .trainer_chain import TrainerChain

DOORS = {1: "ShardLoader", 3: "ShardLoader", 5: "ShardSamples", 6: "ShardLoader", 8: "ShardSamples"}  # of each ten
KINDS = ("masks", "mixture", "plain", "balance", "boxes", "weights")


def chain_of(context: Any, folder: Path, seed: int, number: int, real_every: int) -> Chain:
    """Chain `number`: half of them are runs of train.py, and each `real_every`-th of these starts real processes."""
    about = context, folder / "data", folder / f"chain-{number}", seed, number
    tens, place = divmod(number, 10)
    if door := DOORS.get(place):
        return PlainChain(*about, door, KINDS[(sorted(DOORS).index(place) + tens) % len(KINDS)])
    real = real_every and number % real_every == real_every - 1
    return TrainerChain(*about, ("lightning", "torchrun")[number // real_every % 2] if real else "fork")


def soak(chains: Sequence[int], seed: int, real_every: int, folder: Path, minutes: float) -> dict[str, Any]:
    """Play the chains; the figures of all of them."""
    os.environ["WANDB_MODE"] = "disabled"
    write_datasets(folder / "data")
    context = starts.server()
    kills: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    lost = repeated = attempts = 0
    began = time.monotonic()
    for count, number in enumerate(chains, 1):
        since = time.monotonic()
        if since - began > 60 * minutes:
            chains = chains[: count - 1]
            break
        chain = chain_of(context, folder, seed, number, real_every)
        chain.play()
        kills += chain.kills
        kinds[f"{chain.door}, {chain.kind}"] += 1
        lost, repeated, attempts = lost + chain.lost, repeated + chain.repeated, attempts + chain.attempts
        verdict = "; ".join(chain.wrong) or "ok"
        print(
            f"[{count}/{len(chains)}] chain {number} {chain.door} {chain.kind}: {' '.join(chain.story)}: {verdict}"
            f" ({time.monotonic() - since:.1f} s)",
            flush=True,
        )
        if chain.wrong:
            failures.append({"chain": number, "wrong": chain.wrong, "again": f"--seed {seed} --only {number}"})
        else:
            shutil.rmtree(chain.folder)
    return {
        "chains": len(chains),
        "seed": seed,
        "kinds": dict(sorted(kinds.items())),
        "starts": attempts,
        "kills": dict(kills),
        "resumes": attempts - len(chains),
        "lost": lost,
        "repeated": repeated,
        "failures": failures,
        "seconds": round(time.monotonic() - began, 1),
        "machine": hardware.device_name("cpu"),
        "load": os.getloadavg(),
        "versions": hardware.versions(),
        "command": " ".join(["python -m engine.soak", *sys.argv[1:]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="these chains alone")
    parser.add_argument("--real-every", type=int, default=10, help="each n-th chain in processes of its own; 0: none")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further chain after so long")
    parser.add_argument("--folder", type=Path, help="where to work; failed chains are kept there")
    parser.add_argument("--json", type=Path, help="where the figures go")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    figures = soak(given.only or range(given.chains), given.seed, given.real_every, folder.resolve(), given.minutes)
    print(json.dumps(figures, indent=1))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(bool(figures["failures"]))


if __name__ == "__main__":
    main()
