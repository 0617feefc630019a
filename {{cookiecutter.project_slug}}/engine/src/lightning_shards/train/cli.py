"""What `train.py` does, step by step: settings become data, a model, a trainer and a run; train; test; sum up.

Nothing is written before all settings are checked. Where they come from is in `settings`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..cost.prices import Prices
from ..errors import InputError, RunError
from ..runs.checkpoints import load, state
from ..runs.files import earlier_metrics
from . import cluster, hardware, loggers
from .checkpoints import Checkpoints, DurableCheckpointIO
from .cost_tracker import Budget, CostTracker
from .datamodule import ShardDataModule
from .ema import WeightEMA
from .gallery import Gallery
from .ledger import Ledger
from .nan_guard import NanGuard
from .rank_watchdog import RankWatchdog
from .run import Run, choose
from .settings import Parser, check, shorten, value_of, with_files
from .stop import StopRequest
from .throughput import ProgressBar, Throughput

PRICES = Path("prices.yaml")
TRAINER_DEFAULTS = {
    "max_epochs": 10,
    "max_steps": -1,
    "devices": 1,
    "benchmark": True,
    "log_every_n_steps": 50,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,  # its metrics could become the best ones
    "use_distributed_sampler": False,  # the datamodule gives each rank its share
}


class TrainingCLI(LightningCLI):
    """Parses, checks and builds; `run` is the context in which to train.

    Attributes: `trainer`, `model`, `data`, `run`, `meter`, `spending`.
    """

    data_class = ShardDataModule

    def __init__(self, model_class: type[LightningModule], args: list[str] | None = None) -> None:
        if not issubclass(self.data_class, ShardDataModule):
            raise InputError(
                f"the datamodule {self.data_class.__name__} keeps no place to go on from: make it a subclass of"
                " lightning_shards.train.datamodule.ShardDataModule, or train it with Lightning's own Trainer"
            )
        hardware.quiet()
        arguments, self.resumed = with_files(sys.argv[1:] if args is None else args)
        self._flags = {name: value_of(arguments, f"--trainer.{name}") for name in ("devices", "num_nodes")}
        self._metrics: dict[str, float] = {}
        super().__init__(
            model_class,
            self.data_class,
            args=arguments,
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_kwargs={"description": None},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
        self.data: ShardDataModule = self.datamodule

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        self.parser_class = Parser
        return super().init_parser(**kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, kind, default, text in (
            ("run", str | None, None, "Name of the run's folder; null: the date and time."),
            ("resume", str | None, None, "Go on with this run; `last` is the newest."),
            ("ledger", bool, False, "Write down which samples each step was made of."),
            ("save_every_minutes", float, 10.0, "Time between checkpoints within an epoch."),
            ("keep_checkpoints", int, 2, "How many of the last checkpoints stay, beside the best one."),
            ("patience", int | None, None, "End after so many epochs in which validation did not get better."),
            ("ema_decay", float | None, None, "Evaluate a moving average of the weights: 0.999 is usual; null: off."),
            ("max_hours", float | None, None, "Stop, with everything saved, after so long in all attempts."),
            ("max_kwh", float | None, None, "The same by energy."),
            ("max_cost", float | None, None, "The same by money, in the currency of the prices."),
            ("prices", str, str(PRICES), "File of prices and watts, by which energy and money are counted."),
        ):
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)
        parser.add_class_arguments(loggers.LogSettings, "log")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("data.image_size", "model.image_size")
        parser.link_arguments("data.targets", "model.targets", apply_on="instantiate")
        parser.link_arguments("data.task", "model.task", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Keep what was asked for, then decide what was left to the hardware."""
        check(self.config)
        c, file = self.config, Path(self.config.prices)
        prices = Prices.read(file) if file.exists() or file != PRICES else None
        self.spending = CostTracker(prices, Budget(c.max_hours, c.max_kwh, c.max_cost))
        self.meter = Throughput(self.spending)
        asked = yaml.safe_load(self.parser.dump(self.config, format="yaml", skip_unset=False))
        self.asked = {name: value for name, value in asked.items() if name not in ("config", "run", "resume")}
        if self.resumed and any((self.resumed / "checkpoints").glob("*.ckpt")):
            self.config.model.weights = None  # the checkpoint has newer ones
        if found := cluster.layout():  # whoever started the ranks has decided, whatever the configs say
            cluster.check_flags(found, **self._flags)
            self.config.trainer.num_nodes, self.config.trainer.devices = found
        device = hardware.accelerator(self.config.trainer.accelerator)
        hardware.prepare(device)
        self.device = device
        if self.config.trainer.sync_batchnorm and device != "cuda":
            raise InputError("trainer.sync_batchnorm works on NVIDIA GPUs only: set it false")
        self.config.trainer.precision = self.config.trainer.precision or hardware.precision(device)

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        self.spending.attach(self.trainer, self.device)
        world = self.trainer.world_size
        micro, accumulation = self.datamodule.split_batch(world)
        self.trainer.accumulate_grad_batches = accumulation
        hardware.tune(self.trainer.strategy, accumulation)
        hparams = self.model.hparams
        if hparams["compile"] is None:
            hparams["compile"] = hardware.compiles(
                self.device, (self.trainer.max_epochs or 1) * len(self.datamodule.order)
            )
        if checkpoint := self.run.last_checkpoint:
            self.datamodule.check_order(state(checkpoint))
        self.resolved = {
            "accelerator": self.device,
            "precision": str(self.trainer.precision),
            "micro_batch_size": micro,
            "accumulation": accumulation,
            "workers": math.prod(self.datamodule.decoders(self.trainer.num_devices)),
            "compile": hparams["compile"],
            "channels_last": hparams["channels_last"],
            "fused": hparams["fused"],
            "window_bytes": self.datamodule.order.settings["window_bytes"],
        }

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        folder, goes_on = (self.resumed, True) if self.resumed else choose(self.config.run)
        if goes_on:
            self._metrics = earlier_metrics(folder)
        objective = self.model.objective
        own, stop = self._get(self.config_init, "trainer"), StopRequest(self.spending.spent)
        callbacks = [
            self.meter,
            *([ProgressBar(self.meter)] if own["enable_progress_bar"] is not False else []),
            NanGuard(),
            *([WeightEMA(self.config.ema_decay)] if self.config.ema_decay else []),
            Gallery(),
            *([Ledger()] if self.config.ledger else []),
            Checkpoints(
                objective.monitor,
                objective.mode,
                self.config.save_every_minutes,
                self.config.keep_checkpoints,
                self.config.patience,
                stop,
            ),
        ]
        trainer = self.build_trainer(
            default_root_dir=str(folder),
            logger=loggers.build(self.config_init["log"], folder),
            callbacks=[*(own["callbacks"] or []), *callbacks],
            plugins=[*(own["plugins"] or []), *cluster.cluster(), DurableCheckpointIO()],
        )
        text = yaml.safe_dump(self.asked, sort_keys=False, allow_unicode=True)
        self.run = Run(folder, text, goes_on, self.facts, stop)
        self.watch = RankWatchdog(self.run.fail)
        return trainer

    def build_trainer(self, **changes: Any) -> Trainer:
        """The trainer of the settings, with `changes`."""
        try:
            return super().instantiate_trainer(**changes)
        except (MisconfigurationException, ValueError) as error:  # a setting that this machine or Lightning refuses
            raise InputError(f"trainer: {shorten(str(error))}") from None

    def start(self) -> None:
        """Train, from the begin or from where the run was left."""
        self._announce()
        checkpoint = self.run.last_checkpoint
        self.run.note_start(checkpoint)
        loggers.keep_identity(self.trainer.loggers, self.run.folder, {**self.asked, "resolved": self.resolved})
        with self._explained():
            self.trainer.fit(self.model, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        self._note_metrics()

    @rank_zero_only
    def _announce(self) -> None:
        """What will happen, in two lines or three."""
        r, data = self.resolved, self.data
        parameters = sum(p.numel() for p in self.model.parameters())
        print(
            f"{self.run.folder}: {self.model.hparams['backbone']} ({parameters / 1e6:.2g} million parameters),"
            f" {len(data.order):,} images of {data.crop.size} pixels, {self.trainer.max_epochs} epochs,"
            f" global batch {data.global_batch_size}"
            f"\n{self.trainer.world_size} x {hardware.device_name(self.device)}: {r['precision']},"
            f" micro-batch {r['micro_batch_size']} x {r['accumulation']}, {r['workers']} decoding threads,"
            f" compile {'on' if r['compile'] else 'off'}" + (f"\n{self.spending.note}" if self.spending.note else ""),
            flush=True,
        )

    def test(self) -> None:
        """Measure the best weights on the test split, if there is one."""
        if not self.data.dataset.splits.get("test"):
            return
        best = self.run.best_checkpoint
        assert best is not None
        self.model.load_state_dict(load(best)["state_dict"])
        with self._explained():
            self.trainer.test(self.model, datamodule=self.data, verbose=False)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Too little memory and the loss of another rank become a sentence."""
        try:
            yield
        except BaseException as error:
            self.watch.stand_down()
            if isinstance(error, torch.OutOfMemoryError):
                raise RunError(self._smaller_batch()) from None
            if isinstance(error, RuntimeError) and (sentence := self.watch.explain(error)):
                raise RunError(f"{sentence}. {self.run.how_to_go_on}") from None
            raise

    def facts(self) -> dict[str, Any]:
        """What `summary.json` says of the run so far."""
        self._note_metrics()
        spent, expected = self.spending.total, self.spending.expected
        return {
            "images_seen": self.data.images_seen,
            "steps": self.trainer.fit_loop.epoch_loop._batches_that_stepped,
            "epochs": self.data.epoch,
            "metrics": self._metrics,
            "images_per_second": self.meter.images_per_second,
            "data_wait_fraction": self.meter.data_wait_fraction,
            "seconds": round(spent.seconds, 3),
            "kwh": spent.kwh,
            "cost": spent.cost,
            "currency": spent.currency,
            "energy_source": self.spending.source,
            "expected": expected.facts() if expected else None,
            "skipped": self.run.skipped,
            "monitor": self.model.objective.monitor,
            "mode": self.model.objective.mode,
            "dataset": {"path": str(self.data.dataset.root), "fingerprint": self.data.dataset.fingerprint},
            "devices": self.trainer.world_size,
            "precision": str(self.trainer.precision),
            "hardware": hardware.device_name(self.device),
            "resolved": self.resolved,
            "versions": hardware.versions(),
            "git": hardware.git_state(Path.cwd()),
        }

    def _note_metrics(self) -> None:
        self._metrics |= {name: float(value) for name, value in self.trainer.callback_metrics.items()}

    def _smaller_batch(self) -> str:
        micro, world = self.resolved["micro_batch_size"], self.trainer.world_size
        share = self.data.global_batch_size // world
        smaller = next((m for m in range(micro // 2, 0, -1) if share % m == 0), None)
        if smaller is None:
            return "the device has no memory left even for one image; take a smaller model.backbone or data.image_size"
        return (
            f"the device has no memory left with a micro-batch of {micro}: try --data.micro_batch_size {smaller}"
            f" (the global batch stays {self.data.global_batch_size}, gradients are accumulated)"
        )
