"""The configured training in parts, on this machine: the loader alone, the model alone, both together, validation.

Each is measured by the clock, on one device, with its warm-up outside. Nothing is logged, saved or left behind.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

from ..cost.energy import EnergyMeter
from ..cost.prices import Prices
from ..data.batch import Batch
from ..errors import InputError
from ..train import hardware
from ..train.cli import TrainingCLI
from ..train.contract import inputs
from ..train.datamodule import ShardDataModule
from ..train.stop import StopRequest
from .step_timer import Clock, Enough

Rate = tuple[float, float | None]  # images/s, and watts where they are known


class Replay:
    """A loader that hands out one batch, which stays in memory, again and again."""

    batch_sampler = sampler = None  # Lightning looks for them
    wait_seconds = 0.0

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1 << 40

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch


class Bench(TrainingCLI):
    """train.py's settings, data, model and trainer; the trainers here run on one device, with its share of the data.

    Args:
        model_class: the team's.
        args: as for train.py.
        scratch: a folder for what data and trainer write, to be thrown away.
        whole: images of each split of the whole dataset, where the settings name a sample of it.
        datamodule_class: as for TrainingCLI.

    Attributes: `world`, the devices of the configured training; `nodes`, its machines; `images` of an epoch and
        `held_out` ones of a validation, and how many times the dataset at hand they are, `scale`; `flops` to train on
        an image, None for a model that has no `scores` of an image alone; `sizes`, the share of the epochs of each
        side of the squares.
    """

    def __init__(
        self,
        model_class: type[LightningModule],
        args: list[str],
        scratch: str,
        whole: Mapping[str, int],
        datamodule_class: type[ShardDataModule] = ShardDataModule,
    ) -> None:
        self._scratch, self._whole = scratch, whole
        super().__init__(model_class, args=args, datamodule_class=datamodule_class)

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        if self.resumed:
            raise InputError(
                f"--resume goes on with a run, and a forecast is of a whole training: give {self.resumed}/config.yaml"
                " by --config"
            )
        if self.config.trainer.fast_dev_run:
            raise InputError("trainer.fast_dev_run tries a training out and leaves nothing to forecast: set it false")
        self.prices = Prices.read(self.config.prices)

    def instantiate_trainer(self, **_: Any) -> Trainer:
        """The trainer of all devices: it says how many there are, and trains nothing."""
        return self._trainer()

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        self.world, self.nodes = self.trainer.world_size, self.trainer.num_nodes
        device = self.trainer.device_ids[0]
        self._one = {"devices": [device] if self.device == "cuda" else 1, "num_nodes": 1, "strategy": "auto"}
        self.gpus = hardware.gpu_uuids([device]) if self.device == "cuda" else []
        micro, data = self.resolved["micro_batch_size"], self.datamodule
        sides = data.sides or [data.crop.size]
        self.sizes = {side: sides.count(side) / len(sides) for side in sides}
        flops = [(share, training_flops(self.model, side)) for side, share in self.sizes.items()]
        self.flops = None if any(one is None for _, one in flops) else sum(share * (one or 0) for share, one in flops)
        here = {split: data.dataset.samples(split) for split, shards in data.dataset.splits.items() if shards}
        whole = {**here, **self._whole}
        self.scale, self.held_out = whole["train"] / here["train"], whole.get("val", 0)
        self.images = round(self.scale * len(data.order))
        self.compiles = self.resolved["compile"] = self.decide_compile((self.trainer.max_epochs or 1) * self.images)
        data.workers, data.micro_batch_size = self.resolved["workers"], micro
        data.global_batch_size = micro * self.resolved["accumulation"]
        data.trainer = self._trainer(**self._one)

    def over_sizes(self, measure: Callable[[float], Rate], seconds: float) -> Rate:
        """Images/s and watts over all epochs of the training: each size of a schedule is measured by itself, for its
        share of the time; `measure` gives both for the size that the data has then."""
        took, joules, known = 0.0, 0.0, True
        for side, share in self.sizes.items():
            if self.data.sides:
                self.data.sides = [side]
            rate, watts = measure(share * seconds)
            took += share / rate
            joules += (watts or 0.0) * share / rate
            known &= watts is not None
        return 1 / took, joules / took if known else None

    def loader(self, seconds: float) -> float:
        """Images/s of the loader of one device, from the page cache: the same samples are loaded twice."""
        for measured in (False, True):
            batches, images, began = self._batches(), 0, 0.0
            for number, batch in enumerate(batches):
                images += len(batch.ids) if began else 0
                now = time.perf_counter()
                if number == self.data.made_ahead:
                    began = now
                if images and now - began > seconds:
                    break
            batches.close()
            if measured:
                return images / (now - began)  # the decoding processes have had to end since
        raise AssertionError

    def model_alone(self, seconds: float) -> float:
        """Images/s of the training loop on one device with one batch that stays in memory."""
        batches = self._batches()
        replay = Replay(next(batches))
        batches.close()
        vars(self.data)["train_dataloader"] = lambda: replay  # found before the method of the class
        try:
            return self._train(Clock(seconds)).rate
        finally:
            del vars(self.data)["train_dataloader"]

    def both(self, seconds: float) -> Rate:
        """Images/s of loader and model together on one device; watts of all of them at it, None where not known."""
        self.energy = EnergyMeter(self.prices, self.gpus, hardware.device_name(self.device), self.world, self.nodes)
        clock = self._train(Clock(seconds, self.energy))
        return clock.rate, None if clock.joules is None else clock.joules / clock.seconds

    def validation(self, seconds: float) -> float | None:
        """Images/s of validation on one device; None where there are too few images to tell."""
        clock = Clock(seconds)
        trainer = self._trainer(**self._one, callbacks=[clock])
        with suppress(Enough), _interruptible():
            trainer.validate(self.model, datamodule=self.data, verbose=False)
        return clock.rate or None

    def _train(self, clock: Clock) -> Clock:
        trainer = self._trainer(
            **self._one, callbacks=[*self.model_callbacks(), clock], max_epochs=-1, limit_val_batches=0
        )
        with _interruptible():
            trainer.fit(self.model, datamodule=self.data)
        if not clock.rate:
            raise InputError("the trainer's settings end the training before it can be measured")
        return clock

    def _trainer(self, **changes: Any) -> Trainer:
        silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        scratch = {"default_root_dir": self._scratch, "callbacks": []}
        trainer = self.build_trainer(**{**silent, **scratch, **changes})
        StopRequest.take_over(trainer)
        trainer.accumulate_grad_batches = self.resolved["accumulation"] if hasattr(self, "resolved") else 1
        return trainer

    def _batches(self) -> Generator[Batch, None, None]:
        """Training batches, epoch after epoch."""
        loader = self.data.train_dataloader()
        try:
            for epoch in itertools.count():
                loader.sampler.set_epoch(epoch)
                yield from loader
        finally:
            loader.close()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lightning turns a Ctrl-C into an exit with status 1: turned back."""
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None


def training_flops(model: LightningModule, size: int) -> float | None:
    """Floating point operations to train on one image, three times those of its scores.

    None for a model that has no scores of images alone.
    """
    try:
        if inputs(model, "counted") != ("image",):
            return None
    except InputError:
        return None
    was, scores = model.training, model.scores
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()
        scores(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=model.device))  # type: ignore[operator]
    model.train(was)
    return 3.0 * counter.get_total_flops()  # backward: twice the forward
