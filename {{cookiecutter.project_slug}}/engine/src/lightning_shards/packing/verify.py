"""Re-read a whole dataset, every image and target, and name each damage by shard, key and offset.

Arrays of decoded images are compared with what the tars decode to."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ..data.dataset import Dataset, Shard
from ..data.decoded import DecodedPlan
from ..data.fields import check_sample, dataset_fields
from ..data.remote import Remote, open_dataset
from ..data.rows import USUAL
from ..data.tar_index import ShardIndex
from ..errors import InputError, RunError
from .verify_arrays import ArrayCheck, plans

CHUNK = 1 << 24  # bytes of one sequential read


def verify(root: Path | str, workers: int, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Check every byte that training would read.

    Args:
        root: folder or URL of a dataset; remote shards go through a temporary file, one a worker.
        workers: shards read at a time (threads: checksums and decoding release the interpreter lock).
        progress: is called with (samples done, samples in all).

    Returns {"samples", "shards", "bytes", "damages": [{"shard", "key", "offset", "error"}]}; key and offset are None
    where the whole shard is meant, offset alone where the sample lacks the field. An array is named as a shard is.

    Raises InputError where there is no dataset.
    """
    dataset = open_dataset(str(root))
    known = plans(dataset)
    planned = [(shard, known.get(split)) for split, shards in dataset.splits.items() for shard in shards]
    shards = [shard for shard, _ in planned]
    total, done = sum(shard.samples for shard in shards), 0
    damages: list[dict[str, Any]] = []
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(_verify_shard, dataset, shard, plan): shard for shard, plan in planned}
        try:
            for future in as_completed(futures):
                damages += future.result()
                done += futures[future].samples
                progress(done, total)
        finally:
            pool.shutdown(cancel_futures=True)
    damages.sort(key=lambda damage: (damage["shard"], damage["offset"] or -1))
    return {"samples": total, "shards": len(shards), "bytes": sum(shard.bytes for shard in shards), "damages": damages}


def _verify_shard(dataset: Dataset, shard: Shard, plan: DecodedPlan | None) -> list[dict[str, Any]]:
    if isinstance(dataset.root, Path):
        return _verify_tar(dataset.root / shard.name, dataset, shard, plan)
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        try:
            for piece in Remote(dataset.root).pieces(shard.name, shard.bytes):
                file.write(piece)
        except (InputError, RunError) as error:
            return [{"shard": shard.name, "key": None, "offset": None, "error": str(error)}]
        file.flush()
        return _verify_tar(Path(file.name), dataset, shard, plan)


def _verify_tar(path: Path, dataset: Dataset, shard: Shard, plan: DecodedPlan | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    arrays = ArrayCheck(plan, shard)

    def report(error: object, key: str | None = None, offset: int | None = None) -> None:
        found.append({"shard": shard.name, "key": key, "offset": offset, "error": str(error)})

    try:
        if _checksum(path) != shard.sha256:
            report("its SHA-256 is not the one in dataset.json")
        index = ShardIndex.build(path)
        if len(index) != shard.samples:
            report(f"holds {len(index)} samples, dataset.json says {shard.samples}")
        fields = dataset_fields(dataset)
        places = {name: index.pick(field.names)[:2] for name, field in fields.items()}
        with path.open("rb") as file:
            for row, key in enumerate(index.keys):
                members, offsets = dict[str, bytes](), dict[str, int]()
                for name, (starts, sizes) in places.items():
                    if starts[row] >= 0:
                        offsets[name] = file.seek(int(starts[row]))
                        members[name] = file.read(int(sizes[row]))
                before, values = len(found), dict[str, Any]()
                for name, error in check_sample(fields, members, values):
                    report(error if name in USUAL else f"{name}: {error}", key, offsets.get(name))
                arrays.compare(row, key, values if len(found) == before else None)
    except OSError as error:
        report(f"cannot be read ({error.strerror})")
    except InputError as error:
        report(str(error).removeprefix(f"{path}: "))
    named = [
        {"shard": name, "key": None, "offset": None, "error": error} for name, error in arrays.findings(dataset.root)
    ]
    return found + named


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
