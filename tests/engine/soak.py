"""Random kills and resumes of tiny trainings, and what they prove: nothing lost, nothing done twice. `make soak`.

    python -m engine.soak --chains 100 --seed 0 --json soak.json

A chain is one run of train.py, on a dataset, on a mixture of two or with balanced classes. It is struck again and again
(SIGKILL, SIGTERM, SIGINT; at a random time, or at a chosen moment: in validation, at an epoch's end, while a file is
written) and goes on each time on other devices, with another micro-batch, other workers, sometimes another global
batch, until it is done. `--only K` repeats chain K.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import starts
from .chains import SIZES, Chain
from .conftest import write_dataset


def soak(chains: Sequence[int], seed: int, real_every: int, folder: Path) -> dict[str, Any]:
    """Play the chains; the figures of all of them."""
    os.environ["WANDB_MODE"] = "disabled"
    for number, sizes in enumerate(SIZES):
        write_dataset(folder / "data" / str(number), sizes=sizes)
    context = starts.server()
    kills: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    lost = repeated = attempts = 0
    began = time.monotonic()
    for count, number in enumerate(chains, 1):
        real = real_every and number % real_every == real_every - 1
        launcher = ("torchrun" if number // real_every % 2 else "lightning") if real else "fork"
        since = time.monotonic()
        chain = Chain(context, folder / "data", folder / f"chain-{number}", seed, number, launcher)
        chain.play()
        kills += chain.kills
        lost, repeated, attempts = lost + chain.lost, repeated + chain.repeated, attempts + chain.attempts
        verdict = "; ".join(chain.wrong) or "ok"
        print(
            f"[{count}/{len(chains)}] chain {number} {launcher} {chain.kind}: {' '.join(chain.story)}: {verdict}"
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
        "starts": attempts,
        "kills": dict(kills),
        "resumes": attempts - len(chains),
        "lost": lost,
        "repeated": repeated,
        "failures": failures,
        "seconds": round(time.monotonic() - began, 1),
        "load": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="these chains alone")
    parser.add_argument("--real-every", type=int, default=10, help="each n-th chain in processes of its own; 0: none")
    parser.add_argument("--folder", type=Path, help="where to work; failed chains are kept there")
    parser.add_argument("--json", type=Path, help="where the figures go")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    figures = soak(given.only or range(given.chains), given.seed, given.real_every, folder.resolve())
    print(json.dumps(figures, indent=1))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(bool(figures["failures"]))


if __name__ == "__main__":
    main()
