"""28-pixel images: this loader beside the recipe of webdataset's README, on the same tars, in one run.

    make demo && cd build/lightning-shards-demo
    uv run python ../../benchmarks/small_images.py --json ../../docs/results/small_images.json

Both give batches of 256 with a random crop of 85 to 100%, resized to 28 pixels, mirrored half of the time, as uint8.
Each round runs both, one after the other, over the training split of the packed sample; the first is not counted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH = 256
EPOCHS = 3  # in one measurement


def package(name: str) -> Any:
    """A module of the project whose folder this runs in."""
    folder = next(path.parent for path in Path("src").glob("*/__init__.py"))
    sys.path.insert(0, str(Path("src").absolute()))
    return importlib.import_module(f"{folder.name}.{name}")


def ours(root: str, _: int) -> Iterator[int]:
    """Rows of each batch of this project's loader."""
    decode, loader, order, sampler = (package(f"loading.{n}") for n in ("decode", "loader", "order", "sampler"))
    data = package("shards.dataset").Dataset.open(root)
    shards = data.splits["train"]
    plan = order.Order([s.samples for s in shards], [s.bytes for s in shards])
    store = package("fetching.store").Store(data, "train", (decode.IMAGE_FIELDS, ("cls",)))
    rows = sampler.TrainSampler(plan, 0, 1, BATCH, 1, (0, 0))
    crop, log = decode.Crop(28, scale=(0.85, 1.0)), loader.SkipLog(None, 0)
    train = loader.ShardLoader(store, rows, crop, "single_label", len(data.targets), 0, 1, log)  # as `auto` chooses
    for epoch in range(EPOCHS):
        rows.set_epoch(epoch)
        yield from (len(batch.ids) for batch in train)


def recipe(root: str, workers: int) -> Iterator[int]:
    """Rows of each batch of webdataset's README: shuffle, decode, transform, DataLoader workers."""
    import torch
    import webdataset
    from torchvision.transforms import v2

    transform = v2.Compose([v2.RandomResizedCrop(28, scale=(0.85, 1.0)), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    tars = sorted(str(path) for path in Path(root, "train").glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).decode("pil").to_tuple("png", "cls")
    loaded = torch.utils.data.DataLoader(dataset.map_tuple(transform, int).batched(BATCH), None, num_workers=workers)
    for _ in range(EPOCHS):
        yield from (len(labels) for _, labels in loaded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/sample")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    workers = len(os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {"ours": [], "webdataset recipe": []}
    for number in range(arguments.rounds + 1):
        for name, make in (("ours", ours), ("webdataset recipe", recipe)):
            began = time.perf_counter()
            rows = sum(make(arguments.data, workers))
            if number:
                rates[name].append(round(rows / (time.perf_counter() - began)))
    medians = {name: sorted(found)[len(found) // 2] for name, found in rates.items()}
    results = {
        "images_per_second": rates,
        "medians": medians,
        "ratio": round(medians["ours"] / medians["webdataset recipe"], 2),
        "machine": {"cores": workers, "processor": platform.machine(), "python": platform.python_version()},
    }
    print(json.dumps(results, indent=1))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
