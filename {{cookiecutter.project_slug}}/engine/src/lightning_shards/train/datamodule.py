"""The LightningDataModule: turns settings into loaders that start at the place in the training (`place`)."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from .. import machine
from ..data.cache import Cache
from ..data.checks import check_settings
from ..data.class_numbers import class_counts, classes_of, numbers_file
from ..data.crop import CROP_SETTINGS, Crop
from ..data.decoded import DecodedPlan
from ..data.embedding import FEATURES, Embedded, Embedding, embedded_fields
from ..data.fields.base import in_plane, row_shape
from ..data.fields.resolve import resolve_fields
from ..data.loader import EpochLoader, SkipLog
from ..data.order import Order
from ..data.ranks import Ranks, find_ranks
from ..data.repeats import Repeated
from ..data.sampler import EvalSampler, TrainSampler
from ..data.shortened import Shortened
from ..data.sizes import check_sizes, sides_of_epochs
from ..data.spread import processes_and_threads, small_images
from ..data.training_order import OrderRecipe, check_cache, describe, open_mixture
from ..data.transform import Transform
from ..data.trial import try_fields
from ..data.worker import RING_SIZE, WorkerSpec
from ..errors import InputError
from ..terminal import say
from ..vision.pretrained import USUAL_SIZE
from .place import PlaceInOrder


class ShardDataModule(PlaceInOrder, L.LightningDataModule):
    """Images and targets of a packed dataset.

    Args:
        path: folder that `pack` wrote, or its URL (https, s3, gs, hf or any other that fsspec reads).
        global_batch_size: images in one optimizer step, over all devices.
        micro_batch_size: images in one forward on one device; null: the global batch divided by the devices.
            Where it is smaller, gradients are accumulated.
        image_size: side of the squares that the model sees, in pixels; null: that of the weights, or 224.
        size_schedule: smaller squares for the first epochs of the training, with their shares of it, such as
            {128: 0.4, 160: 0.3}; image_size comes last, and is what validation and test look at. null: always that.
        workers: decoding threads a device, in up to four processes; null: CPU cores / devices.
        seed: of the order and of all random crops.
        fraction: share of the training samples to use; the same samples in every epoch.
        mixture: datasets to train on with their shares, such as {data/mine: 0.7, data/other: 0.3}; null: `path` alone.
            `path` is one of them, and its val and test are the ones to measure on.
        balance: how far to even out the classes: 0 as they are, 1 all equally often, without a longer epoch; or
            how many times an epoch shows the images of some classes, such as {owl: 5}; or the name of a field with
            how many times it shows each image; null: each image once.
        repeats: how many times each image comes in one global batch, cropped anew each time; an epoch stays as long.
        window_samples: samples that are mixed with each other at a time.
        window_bytes: the same in bytes; null: 4 GiB, at most a quarter of the memory where the run began.
        crop_scale: share of the image that a training crop covers, from and to.
        crop_ratio: width / height of a training crop before it is made square, from and to; [1, 1] distorts nothing.
        flip: probability of a mirrored image in training.
        eval_crop: share of the shorter side that validation and test look at, from the centre.
        max_skipped_fraction: end the run when more samples than this share of a split cannot be decoded.
        cache: folder on this node's own disk for the shards of a URL; null: lightning-shards in ~/.cache, on Slurm
            in $TMPDIR.
        cache_bytes: bytes it may hold, at least two windows and some batches; null: half of what is free on its disk.
        decoded_bytes: of images of 96 pixels at most, decoded pixels that may be kept beside the tars, from which
            later epochs read; null: half of the disk that is free, and of the memory; 0 decodes them in each epoch.
        features: what `embed` has made under this name, in place of the images: the field `features`.
        teacher: what `embed` has made under this name, beside the images: the field `teacher`.

    Attributes that a subclass may set, on the class, or in its constructor before it calls this one:
        fields: what a sample holds: a mapping from names to fields, or a function of the dataset that gives one. None:
            what the dataset says.
        transform: changes each decoded sample of the training, in the decoding processes.
    """

    fields: Any = None  # not typed: a plain function in a class would be taken for a method
    transform: Any = None

    def __init__(
        self,
        path: str = "data/sample",
        global_batch_size: int = 256,
        micro_batch_size: int | None = None,
        image_size: int | None = None,
        size_schedule: dict[int, float] | None = None,
        workers: int | None = None,
        seed: int = 0,
        fraction: float = 1.0,
        mixture: dict[str, float] | None = None,
        balance: float | dict[str, float] | str | None = None,
        repeats: int = 1,
        window_samples: int = 1 << 20,
        window_bytes: int | None = None,
        crop_scale: tuple[float, float] = (0.25, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        eval_crop: float = 0.875,
        max_skipped_fraction: float = 0.01,
        cache: str | None = None,
        cache_bytes: int | None = None,
        decoded_bytes: int | None = None,
        features: str | None = None,
        teacher: str | None = None,
    ) -> None:
        super().__init__()
        check_settings(locals(), "data.")
        image_size = image_size or USUAL_SIZE
        self.dataset, shares = open_mixture(path, mixture)
        resolved = resolve_fields(self.dataset, as_set(self, "fields"))
        self.sample_fields = embedded_fields(self.dataset, resolved, features, teacher)
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.workers, self.seed = workers, seed
        self.max_skipped_fraction = max_skipped_fraction
        scale, ratio = (crop_scale[0], crop_scale[1]), (crop_ratio[0], crop_ratio[1])
        self.crop = Crop(image_size, scale, ratio, flip, center=eval_crop)
        if features:
            self._check_features(repeats)
        if size_schedule is not None:
            check_sizes(size_schedule, image_size)
            if features or not any(in_plane(field) for field in self.sample_fields.values()):
                raise InputError("data.size_schedule is for images: the samples have features or arrays in their place")
        self.size_schedule = size_schedule
        self.sides: list[int] | None = None  # of each epoch's squares; None: always the crop's
        self._transform: Transform | None = as_set(self, "transform")
        for part, _ in self.dataset.parts("train"):
            try_fields(part, "train", self.sample_fields, self.crop, seed, self._transform)
        self._recipe = OrderRecipe(
            self.dataset,
            "train",
            shares,
            balance,
            seed,
            fraction,
            window_samples,
            window_bytes,
            repeats=repeats,
        )
        self.order = self._recipe.make()
        if isinstance(self.order, Repeated) and global_batch_size % self.order.unit:
            unit, below = self.order.unit, global_batch_size // self.order.unit * self.order.unit
            raise InputError(
                f"data.global_batch_size {global_batch_size} is no multiple of 2 x data.repeats, {unit}:"
                f" {f'{below} or ' if below else ''}{below + unit} would do"
            )
        self.note = describe(self.order, self.dataset, shares)  # for the run's first lines
        if features and self._transform:
            self._add_note("the transform plays no part: features are read as `embed` made them")
        if global_batch_size > len(self.order):
            raise InputError(
                f"data.global_batch_size {global_batch_size} is larger than the training set"
                f" ({len(self.order)} samples): lower it, and model.learning_rate with it"
            )
        self._cache = (Path(cache) if cache else machine.cache_folder(), cache_bytes)
        self._check_cache()
        self.decoded_bytes = decoded_bytes
        self._plans: dict[str, DecodedPlan | None] = {}  # of each split that was loaded, what is kept of it
        self._loaders: dict[str, EpochLoader] = {}

    @property
    def task(self) -> str:
        return self.dataset.task

    @property
    def model_task(self) -> str:
        """The same for a model that takes it. Raises InputError where the samples have no target."""
        if not self.task:
            raise InputError(
                f"{self.dataset.root} has no target, by which this model is trained, only"
                f" {', '.join(self.sample_fields)}: give TrainingCLI a model for these"
            )
        return self.task

    @property
    def targets(self) -> list[str]:
        """Class names, or the names of the numbers."""
        return list(self.dataset.targets)

    def class_counts(self, setting: str) -> list[int]:
        """Training images of each class, (T,). Raises InputError, for the `setting` that asks, where there are none."""
        counts = np.zeros(len(self.targets), np.int64)
        for part, shards in self.dataset.parts("train"):
            file = numbers_file(part, "train", classes_of(part, setting))
            counts += class_counts(file, part, "train", range(len(shards)))
        return counts.tolist()

    def each_once(self) -> Order:
        """An order of the training's samples in which each comes once, whatever data.balance and data.repeats say."""
        length, same = self._recipe.length, self._recipe.same
        whole = replace(self._recipe, balance=None, repeats=1, length=None).make(self.order.settings["window_bytes"])
        return whole if length is None or length >= len(whole) else Shortened(whole, length, same)

    @property
    def features(self) -> Embedding | None:
        """What takes the place of the images, if anything does."""
        field = self.sample_fields.get(FEATURES)
        return field.embedding if isinstance(field, Embedded) else None

    @property
    def inputs(self) -> str:
        """What the model looks at, for a person."""
        one = self.features
        smallest = f"{min(self.size_schedule)} to " if self.size_schedule else ""
        return f"{one.length} features ({one.name})" if one else f"{smallest}{self.crop.size} pixels"

    @property
    def field_shapes(self) -> dict[str, list[int] | None]:
        """Shape of a row of each field, as the model gets it: channels first. None for ragged ones."""
        return self.shapes_at(self.crop.size)

    def shapes_at(self, side: int) -> dict[str, list[int] | None]:
        """The same with squares of `side` pixels."""
        shapes: dict[str, list[int] | None] = {}
        for name, field in self.sample_fields.items():
            shape = list(row_shape(field, side))
            shapes[name] = None if field.shape is None else shape
            if in_plane(field) and len(shape) == 3:
                shapes[name] = [shape[2], *shape[:2]]
        return shapes

    def plan_sizes(self, epochs: int) -> None:
        """Decide which size each of `epochs` has. Raises InputError where that leaves one without an epoch."""
        if self.size_schedule is not None:
            self.sides = sides_of_epochs(self.size_schedule, self.crop.size, epochs)

    @property
    def side(self) -> int:
        """Of the training's squares in this epoch, in pixels."""
        return self.sides[min(self.epoch, len(self.sides) - 1)] if self.sides else self.crop.size

    def split_batch(self, world: int) -> tuple[int, int]:
        """(micro-batch, accumulation steps) for `world` devices. Raises InputError, with the sizes that would do."""
        total, micro = self.global_batch_size, self.micro_batch_size
        unit = world * (micro or 1)
        if total % unit:
            sizes = " or ".join(str(size) for size in (total // unit * unit, (total // unit + 1) * unit) if size)
            of = f"{world} devices" + (f" x data.micro_batch_size {micro}" if micro else "")
            raise InputError(f"data.global_batch_size {total} is no multiple of {of}: {sizes} would do")
        micro = micro or total // world
        return micro, total // (micro * world)

    def decoders(self, devices: int) -> tuple[int, int]:
        """(processes, threads of each) that decode for each of `devices` on this host."""
        return processes_and_threads(self.dataset, "train", self.workers, devices)

    def train_dataloader(self) -> EpochLoader:
        ranks = self._ranks
        micro, accumulation = self.split_batch(ranks.world)
        if self.size_schedule is not None and self.sides is None:
            raise InputError("data.size_schedule follows from the number of epochs: call plan_sizes(epochs) first")
        sampler = TrainSampler(self.order, ranks.rank, ranks.world, micro, accumulation, self._start, sides=self.sides)
        sampler.set_epoch(self.epoch)  # Lightning announces the first epoch after a resume too late
        return self._loader("train", sampler, self.seed)

    def val_dataloader(self) -> EpochLoader | list[EpochLoader]:
        return self._eval_loader("val")

    def test_dataloader(self) -> EpochLoader | list[EpochLoader]:
        return self._eval_loader("test")

    def teardown(self, stage: str) -> None:
        for loader in self._loaders.values():
            loader.close()

    @property
    def made_ahead(self) -> int:
        """Training batches at most that are there, or in the making, before the trainer asks."""
        return self._loaders["train"].made_ahead if "train" in self._loaders else 0

    @property
    def wait_seconds(self) -> float:
        """Time that this process has waited for training batches."""
        return self._loaders["train"].wait_seconds if "train" in self._loaders else 0.0

    def _check_features(self, repeats: int) -> None:
        if repeats > 1 and self.features and self.features.views == 1:
            raise InputError(
                "data.repeats shows an image several times, cropped anew, and data.features has one view of each:"
                " leave it out, or embed with --views"
            )
        usual = Crop(self.crop.size)
        for setting, name in CROP_SETTINGS.items():
            if getattr(self.crop, name) != getattr(usual, name):
                raise InputError(f"data.{setting} changes images, and data.features takes their place: leave it out")

    def _check_cache(self) -> None:
        held_out = [s for split, shards in self.dataset.splits.items() if split != "train" for s in shards]
        samples = (RING_SIZE + 1) * self.global_batch_size
        order = self.order.whole if isinstance(self.order, Shortened) else self.order
        check_cache(self.dataset, "train", order, self._cache, samples, held_out)

    def _eval_loader(self, split: str) -> EpochLoader | list[EpochLoader]:
        if not self.dataset.splits.get(split):
            return []
        ranks = self._ranks
        return self._loader(split, self.held_out(split, ranks.rank, ranks.world), None)

    def held_out(self, split: str, rank: int, world: int) -> EvalSampler:
        """Which samples of a split to measure on are this rank's, batch by batch."""
        samples = self.dataset.samples(split)
        return EvalSampler(samples, rank, world, min(self.split_batch(world)[0], samples))

    def new_cache(self) -> Cache | None:
        """Where the shards of the first dataset behind a URL are kept; None where all are in folders."""
        roots = [part.root for part, _ in self.dataset.parts("train")]
        return next((Cache(root, *self._cache) for root in roots if isinstance(root, str)), None)

    def _loader(self, split: str, sampler: TrainSampler | EvalSampler, seed: int | None) -> EpochLoader:
        ranks = self._ranks
        processes, threads = self.decoders(ranks.here)
        if split != "train":  # it is read once in a while, and each process has memory of its own
            processes, threads = 1, 1 if small_images(self.dataset) else processes * threads
        log = device = None  # in a script without a trainer
        if self.trainer:
            log = Path(self.trainer.default_root_dir) / "skipped" / f"rank-{ranks.rank}.jsonl"
            device = self.trainer.strategy.root_device
        skipped = SkipLog(log, self.max_skipped_fraction * self.dataset.samples(split) / ranks.world)
        job = WorkerSpec(
            self.dataset,
            split,
            self.crop,
            sampler.micro,
            seed,
            threads,
            self._cache,
            self.sample_fields,
            self._transform,
        )
        if split not in self._plans:
            self._plans[split], said = job.plan(self.decoded_bytes)
            if said and split == "train" and ranks.rank == 0:
                say(said)
        job = replace(job, decoded=self._plans[split])
        before = self._loaders.get(split)
        loader = self._loaders[split] = EpochLoader(job, sampler, skipped, device, processes)
        if before:  # the trainer asks for another one every trainer.reload_dataloaders_every_n_epochs epochs
            before.close()
            loader.wait_seconds = before.wait_seconds
        return loader

    @property
    def _ranks(self) -> Ranks:
        """The trainer's; in a script without one, those of whatever else started it."""
        trainer = self.trainer
        return Ranks(trainer.global_rank, trainer.world_size, trainer.num_devices) if trainer else find_ranks()


def evaluation_transform(datamodule_class: type[ShardDataModule]) -> Transform | None:
    """What the class does to the samples that it measures on, too; None: nothing."""
    found: Transform | None = as_set(datamodule_class, "transform")
    return found if getattr(found, "evaluation", False) else None


def as_set(module: ShardDataModule | type[ShardDataModule], name: str) -> Any:
    """An attribute as it was set: a function of the class, too, and not a method."""
    found = inspect.getattr_static(module, name)
    return found.__func__ if isinstance(found, staticmethod) else found
