"""`pack --decoded`: the arrays of small images beside the tars, by the code that an epoch makes them with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..data.crop import Crop
from ..data.dataset import Dataset
from ..data.decoded import default_bytes, free_bytes
from ..data.loader import EpochLoader, SkipLog
from ..data.sampler import EvalSampler
from ..data.spread import processes_and_threads
from ..data.worker import WorkerSpec
from ..errors import RunError
from ..machine import cache_folder, cpus
from ..terminal import in_bytes
from .pool import Progress, Stopped, noted_signals

BATCH = 256


def keep_decoded(dataset: Dataset, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Decode every image once, and keep its pixels.

    `progress` is called with (images done, images in all).

    Returns {split: {"images", "bytes", "note"}}: of its arrays; the note says why there are none, or what else is to be
    said. Raises Stopped, RunError and OSError: what is decoded by then is kept, and the first epoch goes on there.
    """
    found = {split: _job(dataset, split) for split in dataset.splits}
    jobs = {split: job for split, job in found.items() if isinstance(job, WorkerSpec)}
    report = {split: {"images": 0, "bytes": 0, "note": job} for split, job in found.items() if isinstance(job, str)}
    total, done = sum(map(dataset.samples, jobs)), 0
    with noted_signals() as stopped:
        for split, job in jobs.items():
            count = dataset.samples(split)
            processes, threads = processes_and_threads(dataset, split, cpus(), 1)
            sampler, skipped = EvalSampler(count, 0, 1, min(BATCH, count)), SkipLog(None, count)
            loader = EpochLoader(replace(job, workers=threads), sampler, skipped, None, processes)
            try:
                for batch in loader:
                    progress(min(done + len(batch.ids), total), total)
                    done += len(batch.ids)
                    if stopped:
                        raise Stopped("stopped; what is decoded is kept, and the first epoch goes on there")
            finally:
                loader.close()
            report[split] = _finish(dataset, split, job)
    return {split: report[split] for split in dataset.splits}


def _job(dataset: Dataset, split: str) -> WorkerSpec | str:
    """What the decoding processes have to do, or why nothing can be kept."""
    job = WorkerSpec(dataset, split, Crop(1), BATCH, None, 1, (cache_folder(), None))
    plan = job.possible_plan()
    if isinstance(plan, str):
        return f"nothing is kept decoded: {plan}"
    missing = plan.needed(shard for shard in dataset.splits[split] if not plan.open(shard))
    if missing > free_bytes(dataset):
        return f"to keep the images decoded takes {in_bytes(missing)}, and the disk has {in_bytes(free_bytes(dataset))}"
    return replace(job, crop=Crop(max(plan.height, plan.width)), decoded=plan)


def _finish(dataset: Dataset, split: str, job: WorkerSpec) -> dict[str, Any]:
    plan, shards = job.decoded, dataset.splits[split]
    assert plan
    kept = [shard for shard in shards if plan.finish(shard)]
    if len(kept) < len(shards):
        raise RunError(f"{len(shards) - len(kept)} of {len(shards)} shards of {split} are not kept decoded")
    needed = plan.needed(kept)
    allowed, note = default_bytes(dataset, True), ""
    if needed > allowed:
        note = f"training reads them where data.decoded_bytes is {needed} or more; by default it is {allowed} here"
    return {"images": dataset.samples(split), "bytes": needed, "note": note}


def render(report: Mapping[str, Mapping[str, Any]]) -> str:
    """The report for a person."""
    lines = []
    for split, kept in report.items():
        size = f"{kept['images']:>11,} images decoded {kept['bytes'] / 1e6:>10,.1f} MB" if kept["images"] else ""
        lines.append(f"  {split:<6}{'; '.join(filter(None, (size, kept['note'])))}")
    return "\n".join(lines)
