"""A frozen network looks at every image of a dataset once; what it makes of them is kept in arrays beside the tars."""

from __future__ import annotations

import hashlib
import inspect
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.array_file import HERE, IN_TAR
from ..data.array_plan import ArrayPlan
from ..data.batch import Batch
from ..data.crop import Crop
from ..data.dataset import Dataset
from ..data.embedding import VALUES, Embedding, can_keep
from ..data.fields import Fields, Image
from ..data.loader import EpochLoader, SkipLog
from ..data.ranks import find_ranks
from ..data.runs_of_ids import RunsOfIds
from ..data.spread import processes_and_threads
from ..data.transform import Transform
from ..data.worker import WorkerSpec
from ..errors import InputError, RunError
from ..machine import cache_folder
from ..terminal import in_bytes
from ..train import cluster, hardware
from ..vision.calibration import fitted_values
from .embedding_writer import EmbeddingWriter, unfinished

Progress = Callable[[int, int], None]  # samples done, samples in all


@dataclass(frozen=True)
class Look:
    """How a network looks at images.

    Attributes:
        crop: the square that it sees.
        views: 1 for the image's centre; more are so many random crops of each training image.
        seed: of the random crops.
        batch_size: images at a time.
        workers: decoding threads; None: CPU cores / devices.
    """

    crop: Crop
    views: int = 1
    seed: int = 0
    batch_size: int = 256
    workers: int | None = None

    def describe(self) -> dict[str, Any]:
        """What of it decides the values."""
        crop = self.crop
        if self.views == 1:
            return {"size": crop.size, "center": crop.center}
        random = {"scale": list(crop.scale), "ratio": list(crop.ratio), "flip": crop.flip, "seed": self.seed}
        return {"size": crop.size, "center": crop.center, **random}


class Embedder:
    """Runs a model over the splits of a dataset.

    Args:
        model: a LightningModule with `features(image)` or `scores(image)`, whose weights are there.
        title: what a person calls it.
        scores: keep its scores, for distillation; else its features.
        dataset: whose images.
        name: by which a training will call the embedding.
        look: how the images are cut.
        fields: of a sample; those that are numbers of fixed shape are kept, too.
        transform: of the project; plays a part with random crops, and where it says that it is for evaluation, too.
        devices: how many; each has shards of its own.
        force: replace what another network has made under this name.

    Raises InputError for what cannot be done.
    """

    def __init__(
        self,
        model: Any,
        title: str,
        scores: bool,
        dataset: Dataset,
        name: str,
        look: Look,
        fields: Fields,
        transform: Transform | None = None,
        devices: int | str = 1,
        force: bool = False,
    ) -> None:
        self.model, self.dataset, self.look, self._transform = model.eval(), dataset, look, transform
        if [n for n, one in fields.items() if isinstance(one, Image)] != ["image"]:
            raise InputError(f"{dataset.root} has not one field `image`: embed looks at images alone")
        self._fields = {n: one for n, one in fields.items() if n == "image" or can_keep(one)}
        self._method = "scores" if scores else "features"
        device = hardware.accelerator("auto")
        hardware.quiet()
        hardware.prepare(device)
        precision: Any = hardware.precision(device)
        nodes = 1
        if found := cluster.layout():
            cluster.check_flags(found, devices=str(devices), num_nodes=None, prefix="--")
            nodes, devices = found
        launched: Any = cluster.cluster()
        try:
            self.fabric = Fabric(
                accelerator=device, devices=devices, num_nodes=nodes, plugins=launched, precision=precision
            )
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise InputError(f"--devices {devices} cannot be had here: {str(error).splitlines()[0]}") from None
        network = {"kind": self._method, "title": title, "weights": weights_hash(model, scores), **look.describe()}
        if transform and (look.views > 1 or getattr(transform, "evaluation", False)):
            network["transform"] = name_of(transform)
        others = {n: one.describe() for n, one in self._fields.items() if n != "image"}  # type: ignore[attr-defined]
        self.embedding = Embedding(name, network, self._length(), look.views, others)
        try:
            self._before = Embedding.find(dataset, name)
        except InputError:  # of another dataset, or damaged: nobody can read it
            if not force:
                raise
            self._before = None
        if not force and self._before not in (None, self.embedding):
            raise InputError(
                f"{dataset.root} has another embedding {name!r}, by {self._before.network.get('title')}: give this one"
                " another --name, or replace that with --force"
            )
        self.fabric.launch()

    def _length(self) -> int:
        side = self.look.crop.size
        try:
            with torch.inference_mode():
                values = getattr(self.model, self._method)(torch.zeros(1, 3, side, side, dtype=torch.uint8))
        except (RuntimeError, AssertionError, ValueError) as error:  # of another size than it was made for
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"the model cannot look at images of {side} pixels ({why}): give the --image-size that it was made for"
            ) from None
        if not isinstance(values, Tensor) or values.ndim != 2 or not values.is_floating_point():
            raise InputError(f"the model's {self._method} of images are no table of numbers (B, F)")
        return values.shape[1]

    def plans(self) -> dict[str, ArrayPlan]:
        """The arrays of each split that has samples."""
        return {s: self.embedding.plan(self.dataset, s) for s, shards in self.dataset.splits.items() if shards}

    @property
    def bytes(self) -> int:
        """What the arrays of all splits take."""
        return sum(plan.record.itemsize * self.dataset.samples(split) for split, plan in self.plans().items())

    def run(self, progress: Progress = lambda done, total: None) -> dict[str, Any]:
        """Make what is missing; the report as plain data, on each rank.

        Raises RunError where values do not fit float16, and where the disk is full: what was made is kept.
        """
        rank, world = self.fabric.global_rank, self.fabric.world_size
        self._check_room()
        self.to_device()
        began, done = time.monotonic(), 0
        todo = {s: unfinished(plan, self.dataset.splits[s], rank, world) for s, plan in self.plans().items()}
        total = sum(int((runs[:, 1] - runs[:, 0]).sum()) for runs in todo.values())
        for split, plan in self.plans().items():
            with EmbeddingWriter(plan, self.dataset.splits[split]) as writer:
                for batch, values in self.values(split, todo[split]):
                    done += self._write(writer, batch, values, int(plan.about["views"]))
                    progress(done, total)
                writer.finish(range(rank, len(self.dataset.splits[split]), world))
        if world > 1:  # which waits for all, too
            of_all: Any = self.fabric.all_reduce(torch.tensor(done, device=self.fabric.device), reduce_op="sum")
            done = int(of_all)
        seconds = time.monotonic() - began
        return {**self._report(), "embedded": done, "seconds": seconds, "images_per_second": done / max(seconds, 1e-9)}

    def to_device(self) -> None:
        self.model = self.fabric.to_device(self.model)

    def _check_room(self) -> None:
        root = self.dataset.root if isinstance(self.dataset.root, Path) else cache_folder()
        missing = sum(
            plan.record.itemsize * shard.samples
            for split, plan in self.plans().items()
            for shard in self.dataset.splits[split]
            if not (plan.open(shard) or plan.left(shard))
        )
        with suppress(OSError):
            if missing > (free := shutil.disk_usage(root).free):
                raise InputError(
                    f"what the network makes of {self.dataset.root} takes {in_bytes(missing)}, and the disk has"
                    f" {in_bytes(free)} left: make room, or choose a network with fewer features"
                )

    def _report(self) -> dict[str, Any]:
        splits = {}
        for split, plan in self.plans().items():
            files = [plan.open(shard) for shard in self.dataset.splits[split]]
            if not all(files):
                raise RunError(f"arrays of {split} are missing: run the same command again")
            lacking = sum(int((file.there == IN_TAR).sum()) for file in files if file)
            splits[split] = {"samples": self.dataset.samples(split), "lacking": lacking}
        if self.fabric.is_global_zero:
            self.embedding.save(self.dataset)
            if self._before not in (None, self.embedding):
                self._before.remove(self.dataset, self.embedding)
        one = self.embedding
        about = {"dataset": str(self.dataset.root), "name": one.name, "network": dict(one.network)}
        return {**about, "length": one.length, "views": one.views, "bytes": self.bytes, "splits": splits}

    def values(self, split: str, runs: NDArray[np.int64]) -> Iterator[tuple[Batch, Tensor]]:
        """The batches of the samples of `runs`, int64 (R, 2), and what the network makes of them, float16 (B, F)."""
        look, views = self.look, self.look.views if split == "train" else 1
        ids = RunsOfIds(runs, max(1, look.batch_size // views) * views, views)
        if not len(ids):
            return
        processes, threads = processes_and_threads(self.dataset, split, look.workers, find_ranks().here)
        cache = (cache_folder(), None)
        spec = WorkerSpec(
            self.dataset,
            split,
            look.crop,
            ids.micro,
            look.seed if views > 1 else None,
            threads,
            cache,
            self._fields,
            self._transform,
        )
        loader = EpochLoader(spec, ids, SkipLog(None, float("inf")), self.fabric.device, processes)
        try:
            for batch in loader:
                yield batch, self.look_at(batch["image"])
        finally:
            loader.close()

    def look_at(self, images: Tensor) -> Tensor:
        """What the network makes of images, float16 (B, F) on its device."""
        with torch.inference_mode(), self.fabric.autocast():
            values: Tensor = getattr(self.model, self._method)(images.to(self.fabric.device)).half()
        return values

    def _write(self, writer: EmbeddingWriter, batch: Batch, values: Tensor, views: int) -> int:
        """Hand on the records of a batch; how many samples they are of."""
        ids = batch.ids[::views].cpu().numpy()
        count = int((ids >= 0).sum())
        valid = batch.valid.view(-1, views).all(dim=1).cpu().numpy()[:count]
        records = np.zeros(count, writer.record)
        records[VALUES] = values.view(-1, views, self.embedding.length)[:count].cpu().numpy()
        if not np.isfinite(records[VALUES][valid]).all():
            raise RunError("the network makes values that float16 cannot hold: scale them in the model's features()")
        records[VALUES][~valid] = 0
        for name in self.embedding.others:
            records[name] = batch[name][::views][:count].cpu().numpy()
        records["there"] = np.where(valid, HERE, IN_TAR)
        writer.put(ids[:count], records)
        return count


def weights_hash(model: nn.Module, scores: bool) -> str:
    """Of the names and values of all that a model computes its features with, or its scores."""
    digest, beside = hashlib.sha256(), fitted_values(model)
    for name, value in sorted(model.state_dict().items()):
        if name in beside and (not scores or value == 1):  # as in checkpoints that have none
            continue
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def name_of(transform: Transform) -> str:
    """What tells a transform from another: its name, and the settings that its `repr` shows."""
    if inspect.isroutine(transform):
        return f"{transform.__module__}.{transform.__qualname__}"
    text = repr(transform)
    return f"{type(transform).__module__}.{type(transform).__qualname__}" if " at 0x" in text else text
