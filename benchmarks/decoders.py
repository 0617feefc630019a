"""Ways of decoding an image and of resizing a crop, alone on one core: microseconds an image, and how far from exact.

    make bench BENCH="--cases 500,256short --only bare"      # makes the photos
    cd build/lightning-shards-demo && taskset -c 0 ../bench/bin/python ../../benchmarks/decoders.py

A decoder's error is the mean difference of its pixels from OpenCV's, a filter's from PIL's antialiased bilinear filter,
both of 255. "Kept" memory is used again for the next image. Restart markers let a decoder begin anywhere: the last rows
of the first table cut the file apart at the markers around a crop, and decode what is left, which is a JPEG by itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from lightning_shards.data.crop import Crop, resize
from lightning_shards.data.decode import decode_image as our_decode
from lightning_shards.data.decode import decode_jpeg as first_rows
from lightning_shards.data.image_header import read_frame
from peers import CROP_SCALE, QUALITY, Box
from PIL import Image
from torchvision.io import ImageReadMode, decode_image, decode_jpeg

cv2.setNumThreads(0)
torch.set_num_threads(1)
SIZE = 224
Rows = dict[str, tuple[float, float]]


def microseconds(work: Callable[[int], Any], images: int, rounds: int) -> float:
    """Of one image, the median of `rounds` passes over all, after one that warms up."""
    passes = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        for number in range(images):
            work(number)
        passes.append((time.perf_counter() - began) / images * 1e6)
    return statistics.median(passes[1:])


def difference(pairs: Sequence[tuple[Any, Any]]) -> float:
    return float(np.mean([np.abs(np.subtract(a, b, dtype=np.int16)).mean() for a, b in pairs]))


def between_markers(data: bytes, box: Box) -> tuple[bytes, int, int]:
    """The part of a 4:2:0 JPEG with restart markers that holds `box`, as a JPEG, and where that begins: top, left."""
    frame = read_frame(data)
    assert frame
    scan = data.index(b"\xff\xda")
    scan += 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    interval = data.index(b"\xff\xdd\x00\x04") + 4
    wide = 16 * int.from_bytes(data[interval : interval + 2], "big")  # pixels between two markers
    across, down = -(-frame.width // wide), -(-frame.height // 16)
    tall = range(max(0, (box[0] - 2) // 16), min(down, -(-(box[0] + box[2] + 2) // 16)))
    broad = range(max(0, (box[1] - 2) // wide), min(across, -(-(box[1] + box[3] + 2) // wide)))
    coded = np.frombuffer(data, np.uint8)[scan:]
    marks = np.flatnonzero(coded[:-1] == 255)
    ends = [scan, *(marks[coded[marks + 1] >> 3 == 26] + scan + 2).tolist(), len(data)]
    parts = [data[ends[row * across + broad.start] : ends[row * across + broad.stop]] for row in tall]
    body = np.frombuffer(b"".join(parts), np.uint8).copy()
    segments = (np.array(tall)[:, None] * across + np.array(broad)).ravel()
    places = np.cumsum(np.diff(ends)[segments])[:-1] - 1
    body[places] = 0xD0 + np.arange(len(places)) % 8  # they are counted modulo 8
    height = min(frame.height, 16 * tall.stop) - 16 * tall.start
    width = min(frame.width, wide * broad.stop) - wide * broad.start
    shape = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    head = data[: frame.at] + shape + data[frame.at + 4 : scan]
    return head + body.tobytes()[:-2] + b"\xff\xd9", 16 * tall.start, wide * broad.start


def decoders(files: list[bytes], boxes: list[Box], rounds: int) -> Rows:
    arrays = [np.frombuffer(data, np.uint8) for data in files]
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    frames: list[Any] = [read_frame(data) for data in files]
    kept = np.empty(1 << 24, np.uint8)
    rgb: Callable[[int], Any] = lambda at: cv2.imdecode(arrays[at], cv2.IMREAD_COLOR_RGB)  # noqa: E731
    turbo: Callable[..., Any] = lambda at, **how: simplejpeg.decode_jpeg(files[at], "RGB", **how)  # noqa: E731
    ways: dict[str, Callable[[int], Any]] = {
        "OpenCV": rgb,
        "simplejpeg": turbo,
        "simplejpeg, memory kept": lambda at: turbo(at, buffer=kept),
        "the same, fast inverse DCT": lambda at: turbo(at, buffer=kept, fastdct=True),
        "the same, down to the last row of a crop (ours)": lambda at: first_rows(
            files[at], frames[at], 1, boxes[at][0] + boxes[at][2], keep=False
        ),
        "torchvision.io": lambda at: decode_jpeg(tensors[at]).permute(1, 2, 0).numpy(),
        "PIL": lambda at: np.asarray(Image.open(BytesIO(files[at]))),
    }
    rows = {}
    for name, way in ways.items():
        last = [box[0] + box[2] for box in boxes] if "last row" in name else [None] * len(files)
        pairs = [(np.array(way(at)[: last[at]]), rgb(at)[: last[at]]) for at in range(len(files))]
        rows[name] = (microseconds(way, len(files), rounds), difference(pairs))
    for name, blocks in {"a row of blocks": 0, "2 to 5 blocks": 2, "each block": 1}.items():
        marked = []
        for at in range(len(files)):
            pixels = cv2.imdecode(arrays[at], cv2.IMREAD_COLOR)
            across = -(-pixels.shape[1] // 16)  # type: ignore[union-attr]
            every = next((n for n in range(blocks or across, across + 1) if across % n == 0), across)
            options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_RST_INTERVAL, every]
            marked.append(cv2.imencode(".jpg", pixels, options)[1].tobytes())  # type: ignore[arg-type]
        again = lambda at, data=marked: simplejpeg.decode_jpeg(data[at], "RGB", buffer=kept)  # noqa: E731
        pairs = [
            (np.array(again(at)), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))
            for at, data in enumerate(marked)
        ]
        rows[f"simplejpeg, a restart marker after {name}"] = (
            microseconds(again, len(files), rounds),
            difference(pairs),
        )
        rows[f"the same, only what lies around a crop ({name})"] = part(marked, boxes, kept, rounds)
    return rows


def png_decoders(files: list[bytes], rounds: int) -> Rows:
    """The same of PNGs: those that `files` are, or that they give."""
    arrays = [np.frombuffer(data, np.uint8) for data in files]
    if not files[0].startswith(b"\x89PNG"):
        arrays = [cv2.imencode(".png", cv2.imdecode(array, cv2.IMREAD_COLOR))[1] for array in arrays]  # type: ignore
    pngs, tensors = [array.tobytes() for array in arrays], [torch.from_numpy(array.copy()) for array in arrays]
    ways: dict[str, Callable[[int], Any]] = {
        "OpenCV": lambda at: cv2.imdecode(arrays[at], cv2.IMREAD_COLOR_RGB),
        "OpenCV, unpacked by libdeflate (ours)": lambda at: our_decode(pngs[at]),
        "torchvision.io": lambda at: decode_image(tensors[at], ImageReadMode.RGB).permute(1, 2, 0).numpy(),
        "PIL": lambda at: np.asarray(Image.open(BytesIO(pngs[at])).convert("RGB")),
    }
    rows = {}
    for name, way in ways.items():
        pairs = [(way(at), ways["OpenCV"](at)) for at in range(len(files))]
        rows[name] = (microseconds(way, len(files), rounds), difference(pairs))
    return rows


def part(marked: list[bytes], boxes: list[Box], kept: Any, rounds: int) -> tuple[float, float]:
    pairs = []
    for data, box in zip(marked, boxes, strict=True):
        cut, top, left = between_markers(data, box)
        pair = (simplejpeg.decode_jpeg(cut, "RGB"), simplejpeg.decode_jpeg(data, "RGB"))
        places = ((box[0] - top, box[1] - left), box[:2])
        pairs.append(tuple(image[y : y + box[2], x : x + box[3]] for image, (y, x) in zip(pair, places, strict=True)))
    way = lambda at: simplejpeg.decode_jpeg(between_markers(marked[at], boxes[at])[0], "RGB", buffer=kept)  # noqa: E731
    return microseconds(way, len(marked), rounds), difference(pairs)  # type: ignore[arg-type]


def filters(files: list[bytes], boxes: list[Box], rounds: int) -> Rows:
    regions = []
    for data, (top, left, height, width) in zip(files, boxes, strict=True):
        regions.append(simplejpeg.decode_jpeg(data, "RGB")[top : top + height, left : left + width])
    out = np.empty((SIZE, SIZE, 3), np.uint8)

    def opencv(interpolation: int) -> Callable[[int], Any]:
        return lambda at: cv2.resize(regions[at], (SIZE, SIZE), dst=out, interpolation=interpolation)

    def mixed(at: int) -> Any:
        return opencv(cv2.INTER_AREA if max(regions[at].shape) > 1.25 * SIZE else cv2.INTER_LINEAR)(at)

    def pil(at: int) -> Any:
        return np.asarray(Image.fromarray(regions[at]).resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    def on_tensors(at: int) -> Any:
        rows = torch.from_numpy(regions[at]).permute(2, 0, 1)[None]
        found = torch.nn.functional.interpolate(rows, (SIZE, SIZE), mode="bilinear", antialias=True)
        return found[0].permute(1, 2, 0).numpy()

    ways = {
        "OpenCV linear": opencv(cv2.INTER_LINEAR),
        "OpenCV area": opencv(cv2.INTER_AREA),
        "linear to 1.25x, area beyond (ours before)": mixed,
        "linear, of blurred pixels beyond 1.25x (ours)": lambda at: (resize(regions[at], out), out)[1],  # type: ignore[func-returns-value]
        "torch, antialiased": on_tensors,
        "PIL, antialiased": pil,
    }
    rows = {}
    for name, way in ways.items():
        pairs = [(np.array(way(at)), pil(at)) for at in range(len(regions))]
        rows[name] = (microseconds(way, len(regions), rounds), difference(pairs))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("data/bench/made-2000"), help="where `make bench` keeps photos"
    )
    parser.add_argument("--cases", nargs="+", default=["500", "256short", "256long", "64png", "32"])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    results: dict[str, dict[str, Rows]] = {}
    crop, random = Crop(SIZE, scale=CROP_SCALE), np.random.default_rng(0)
    for case in arguments.cases:
        paths = sorted(next(arguments.work.glob(f"{case}-*")).glob("images/*/*-0.*"))
        files = [paths[at].read_bytes() for at in random.permutation(len(paths))[: arguments.images]]
        results[case] = {"PNG": png_decoders(files, arguments.rounds)}
        if paths[0].suffix == ".jpg":
            shapes = [simplejpeg.decode_jpeg_header(data)[:2] for data in files]
            boxes = [crop.box(height, width, random.random(crop.draws)) for height, width in shapes]
            results[case]["decoders"] = decoders(files, boxes, arguments.rounds)
            results[case]["filters"] = filters(files, boxes, arguments.rounds)
        for title, rows in results[case].items():
            print(f"\n{case}, {title}: {sum(map(len, files)) / len(files) / 1000:.1f} KB")
            for name, (duration, error) in rows.items():
                print(f"  {name:62} {duration:7,.0f} us   {error:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
