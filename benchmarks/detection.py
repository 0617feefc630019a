"""Images with boxes: this loader beside the one of torchvision's reference training for detection, on the same files.

    make bench BENCH="detection --images 1500"

The images are the photos of the loaders' benchmark, 500 x 375 pixels, with one to twelve boxes each at random places.
torchvision's loader is its reference's: `CocoDetection`, transforms of v2, a `DataLoader` of as many processes as there
are cores; with the reference's two sets of transforms, which hand out images of many sizes, and with the crop that ours
makes, `RandomResizedCrop`. Each epoch has a process of its own, its clock starts behind the first batch. Ratios are of
neighbours, which other programs disturb alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from lightning_shards.data import ShardLoader
from lightning_shards.packing.pack import PackOptions, pack
from lightning_shards.train import hardware
from measure import scratch
from photos import HEIGHT, WIDTH, make_photos

BATCH, CROP, CLASSES = 32, 224, 20
KINDS = {
    "ours": "this loader, crops of 224 pixels",
    "flip": "torchvision's reference: mirrored, whole images",
    "ssd": "torchvision's reference for SSD: colours, zoomed out, cropped around boxes, mirrored",
    "crop": "torchvision's loader with RandomResizedCrop of 224 pixels, mirrored",
}


def make(folder: Path, count: int) -> None:
    """Photos, their boxes in COCO's form, and the dataset of both with the same bytes."""
    make_photos(folder / "photos", count)
    random = np.random.default_rng(0)
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, path in enumerate(sorted((folder / "photos").rglob("*.jpg")), 1):
        name = path.relative_to(folder / "photos").as_posix()
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for _ in range(int(random.integers(1, 13))):
            width, height = random.integers(16, (WIDTH // 2, HEIGHT // 2)).tolist()
            left, top = random.integers(0, (WIDTH - width, HEIGHT - height)).tolist()
            kind = int(random.integers(CLASSES)) + 1
            about = {"id": len(annotations) + 1, "image_id": number, "category_id": kind, "iscrowd": 0}
            annotations.append({**about, "bbox": [left, top, width, height], "area": width * height})
    categories = [{"id": kind, "name": f"class {kind}"} for kind in range(1, CLASSES + 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))
    recipe = PackOptions(coco=(folder / "boxes.json",), short_side=None, val=0, test=0)
    pack(folder / "photos", folder / "packed", recipe, os.cpu_count() or 1)


def ours(folder: Path, workers: int) -> Iterator[tuple[int, int]]:
    """Images and boxes of each batch."""
    loader = ShardLoader(folder / "packed", BATCH, crop=CROP, workers=workers, decoded_bytes=0)
    for batch in loader:
        yield len(batch.ids), sum(len(one["labels"]) for one in batch["boxes"])
    loader.close()


def reference(folder: Path, kind: str, workers: int) -> Iterator[tuple[int, int]]:
    """The same of torchvision's, as references/detection/train.py makes it with --use-v2."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
    from torchvision.transforms import v2

    mirrored, mean = v2.RandomHorizontalFlip(0.5), (123.0, 117.0, 104.0)
    chosen = {
        "flip": [mirrored],
        "ssd": [v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=mean), v2.RandomIoUCrop(), mirrored],
        "crop": [v2.RandomResizedCrop(CROP, scale=(0.25, 1.0)), mirrored],
    }[kind]
    last = [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True), v2.ConvertBoundingBoxFormat("XYXY")]
    transforms = v2.Compose([*chosen, *last, v2.SanitizeBoundingBoxes(), v2.ToPureTensor()])
    dataset = CocoDetection(str(folder / "photos"), str(folder / "boxes.json"), transforms=transforms)
    wrapped = wrap_dataset_for_transforms_v2(dataset, target_keys=["boxes", "labels", "image_id"])
    loader: Any = DataLoader(wrapped, BATCH, shuffle=True, num_workers=workers, collate_fn=pairs, drop_last=True)
    for images, targets in loader:
        yield len(images), sum(len(one["labels"]) for one in targets)


def pairs(batch: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*batch, strict=True))


def epoch(folder: Path, kind: str) -> dict[str, float]:
    """One epoch in this process."""
    workers = len(os.sched_getaffinity(0))
    batches = ours(folder, workers) if kind == "ours" else reference(folder, kind, workers)
    next(batches)
    began, images, boxes = time.perf_counter(), 0, 0
    for count, found in batches:
        images, boxes = images + count, boxes + found
    return {"images_per_second": images / (time.perf_counter() - began), "boxes_an_image": boxes / images}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        print(json.dumps(epoch(Path(given.once[0]), given.once[1])))
        return
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    with scratch() as folder:
        make(Path(folder), given.images)
        for _ in range(given.rounds):
            for kind in KINDS:
                command = [sys.executable, __file__, "--once", folder, kind]
                said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                runs[kind].append(json.loads(said.splitlines()[-1]))
    results: dict[str, Any] = {"command": "python benchmarks/detection.py " + " ".join(sys.argv[1:])}
    results |= {"machine": hardware.device_name("cpu"), "images": given.images, "rounds": given.rounds, "loaders": {}}
    for kind, title in KINDS.items():
        rates = [one["images_per_second"] for one in runs[kind]]
        ratios = [mine["images_per_second"] / rate for mine, rate in zip(runs["ours"], rates, strict=True)]
        results["loaders"][title] = {
            "images_per_second": list(map(round, rates)),
            "median": round(median(rates)),
            "boxes_an_image": round(runs[kind][0]["boxes_an_image"], 2),
            **({} if kind == "ours" else {"ours_is_times": [round(ratio, 2) for ratio in ratios]}),
            **({} if kind == "ours" else {"ours_is_times_median": round(median(ratios), 2)}),
        }
    results["versions"] = hardware.versions()
    print(json.dumps(results, indent=1))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
