"""What `train.py` does, step by step: settings become data, a model, a trainer and a run; train; test; sum up.

Nothing is written before all settings are checked. Where they come from is in `settings`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from ..cost.prices import Prices
from ..errors import InputError, RunError
from ..runs.checkpoints import load, state
from ..runs.files import earlier_metrics
from ..terminal import say
from . import cluster, contract, hardware, loggers, own_callbacks, resume_settings
from .checkpoint_io import DurableCheckpointIO, unwritten
from .checkpoints import Checkpoints
from .config_safety import check_config
from .cost_tracker import Budget, CostTracker
from .datamodule import ShardDataModule
from .ema import WeightEMA
from .eval_metrics import EvalPass
from .gallery import Gallery
from .ledger import Ledger
from .module import Compile, LearningRate, ShardModule
from .nan_guard import NanGuard
from .progress import AnyBar, progress_bar
from .rank_watchdog import RankWatchdog
from .run import Run
from .run_name import choose, give_back
from .settings import Parser, check, shorten, value_of, with_files
from .stop import Stopped, StopRequest
from .throughput import Throughput
from .trained_model import KeepSettings
from .wandb_logger import Wandb

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

    Args:
        model_class: any LightningModule; `ShardModule` says what one may offer beyond that.
        fields: the fields of a sample by name, or a function that makes them of the dataset; None: what the dataset
            says.
        transform: what is done to each sample's fields in the decoding processes.
        callbacks, loggers: beside those of the config and of the engine.
        args: in place of the command line's.

    Attributes: `trainer`, `model`, `data`, `run`, `meter`, `spending`.
    """

    data_class = ShardDataModule

    def __init__(
        self,
        model_class: type[LightningModule],
        fields: Mapping[str, Any] | Callable[..., Mapping[str, Any]] | None = None,
        transform: Callable[..., None] | None = None,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
        args: list[str] | None = None,
    ) -> None:
        if not issubclass(self.data_class, ShardDataModule):
            raise InputError(
                f"the datamodule {self.data_class.__name__} keeps no place to go on from: make it a subclass of"
                " lightning_shards.train.datamodule.ShardDataModule, or train it with Lightning's own Trainer"
            )
        hardware.quiet()
        contract.check_class(model_class)
        self._callbacks, self._loggers = list(callbacks), list(loggers)
        arguments, self.resumed = with_files(sys.argv[1:] if args is None else args)
        if self.resumed:
            check_config(self.resumed / "config.yaml", model_class.__module__)
        self._flags = {name: value_of(arguments, f"--trainer.{name}") for name in ("devices", "num_nodes")}
        self._folder: Path | None = None  # of the run, once it has a name
        self._metrics: dict[str, float] = {}
        super().__init__(
            model_class,
            contract.data_class(self.data_class, fields, transform),
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
        known = {action.dest for action in parser._actions}
        if "model.image_size" in known:
            parser.link_arguments("data.image_size", "model.image_size")
        for name, source in contract.HANDED_OVER.items():
            if f"model.{name}" in known:
                parser.link_arguments(f"data.{source}", f"model.{name}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Keep what was asked for, then decide what was left to the hardware."""
        check(self.config)
        c, file = self.config, Path(self.config.prices)
        prices = Prices.read(file) if file.exists() or file != PRICES else None
        self.spending = CostTracker(prices, Budget(c.max_hours, c.max_kwh, c.max_cost))
        self.meter = Throughput(self.spending)
        asked = yaml.safe_load(self.parser.dump(self.config, format="yaml", skip_unset=False))
        self.asked = {name: value for name, value in asked.items() if name not in ("config", "run", "resume")}
        goes_on = self.resumed and any((self.resumed / "checkpoints").glob("*.ckpt"))
        if goes_on and "weights" in (self.config.get("model") or {}):  # a model may have no settings
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
        """As LightningCLI's, by the call of jsonargparse that stays in its version 5."""
        self.config_init = self.parser.instantiate(self.config)
        self.datamodule, self.model = self._get(self.config_init, "data"), self._get(self.config_init, "model")
        contract.check_instance(self.model)
        self.compiles = self.decide_compile(self.config.trainer.max_epochs * len(self.datamodule.order))
        try:
            self.trainer = self.instantiate_trainer()
            self._settle()
        except BaseException:
            if self._folder:
                give_back(self._folder)
            raise

    def _settle(self) -> None:
        """Decide what hangs on the trainer: meters, micro-batch, accumulation."""
        self.spending.attach(self.trainer, self.device)
        micro, accumulation = self.datamodule.split_batch(self.trainer.world_size)
        if accumulation > 1 and not self.model.automatic_optimization:
            raise InputError(
                "the model steps its optimizers itself, so gradients cannot be accumulated for it: set"
                f" data.global_batch_size to data.micro_batch_size x devices ({micro * self.trainer.world_size})"
            )
        self.trainer.accumulate_grad_batches = accumulation
        hardware.tune(self.trainer.strategy, accumulation)
        self.resolved = {
            "accelerator": self.device,
            "precision": str(self.trainer.precision),
            "micro_batch_size": micro,
            "accumulation": accumulation,
            "workers": math.prod(self.datamodule.decoders(self.trainer.num_devices)),
            "compile": self.compiles,
            **{name: self.model.hparams[name] for name in ("channels_last", "fused") if name in self.model.hparams},
            "window_bytes": self.datamodule.order.settings["window_bytes"],
        }

    def decide_compile(self, images: int) -> bool:
        """Whether a run over so many images is compiled: as the model's setting says, else where it earns it."""
        asked = contract.setting(self.model, "compile")
        some = isinstance(self.model, ShardModule) and any(True for _ in self.model.compiled())
        return some and bool(hardware.compiles(self.device, images) if asked is None else asked)

    def model_callbacks(self) -> list[Callback]:
        """What does for a model what it says, in each of its trainings."""
        return [LearningRate(), *([Compile()] if self.compiles else [])]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        folder, goes_on = (self.resumed, True) if self.resumed else choose(self.config.run)
        self._folder = folder
        if goes_on:
            self._metrics = earlier_metrics(folder)
        own, stop = self._get(self.config_init, "trainer"), StopRequest(self.spending.spent)
        given = [*_listed(own["callbacks"]), *self._callbacks]
        own_callbacks.check(given, folder, self.config.ema_decay)
        trainer = self.build_trainer(
            default_root_dir=str(folder),
            logger=loggers.build(self.config_init["log"], folder, own["logger"], self._loggers),
            callbacks=[*given, *self._engine_callbacks(own, stop)],
            plugins=[*_listed(own["plugins"]), *cluster.cluster(), DurableCheckpointIO()],
        )
        loggers.keep_profile(trainer, folder)
        text = yaml.safe_dump(self.asked, sort_keys=False, allow_unicode=True)
        self.run = Run(folder, text, goes_on, self.facts, stop)
        self.watch = RankWatchdog(self.run.fail)
        self.checkpoints = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))  # type: ignore[attr-defined]
        if checkpoint := self.run.last_checkpoint:
            place = state(checkpoint)
            self.datamodule.take_order(place)
            best = self.run.best_checkpoint or checkpoint
            resume_settings.check(
                self.model, load(checkpoint), place, self.run.changed(), trainer.max_epochs or 0, best
            )
        return trainer

    def _model_settings(self) -> dict[str, Any]:
        """What the model's constructor got, as plain values."""
        known = {action.dest for action in self.parser._actions}
        handed = {name: source for name, source in contract.HANDED_OVER.items() if f"model.{name}" in known}
        return self.asked.get("model", {}) | {name: getattr(self.datamodule, source) for name, source in handed.items()}

    def _engine_callbacks(self, own: Any, stop: StopRequest) -> list[Callback]:
        monitor, mode = contract.goal(self.model)
        own_bar = any(isinstance(one, AnyBar) for one in (*_listed(own["callbacks"]), *self._callbacks))
        return [
            *self.model_callbacks(),
            self.meter,
            *([progress_bar(self.meter)] if own["enable_progress_bar"] is not False and not own_bar else []),
            NanGuard(),
            *([WeightEMA(self.config.ema_decay)] if self.config.ema_decay else []),
            EvalPass(),
            Gallery(),
            KeepSettings(self._model_settings()),
            *([Ledger()] if self.config.ledger else []),
            Checkpoints(
                monitor,
                mode,
                self.config.save_every_minutes,
                self.config.keep_checkpoints,
                self.config.patience,
                stop,
            ),
        ]

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
        for logger in self.trainer.loggers:
            if isinstance(logger, Wandb):
                logger.begin({**self.asked, "resolved": self.resolved})
        with self._explained():
            self.trainer.fit(self.model, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        self._note_metrics()
        self.run.outcome = self.checkpoints.outcome(self.trainer)
        if self.run.outcome == "budget":
            raise Stopped("budget")

    @rank_zero_only
    def _announce(self) -> None:
        """What will happen, in two lines or three."""
        r, data = self.resolved, self.data
        parameters = sum(p.numel() for p in self.model.parameters())
        lines = (
            f"{self.run.folder}: {contract.title(self.model)} ({parameters / 1e6:.2g} million parameters),"
            f" {len(data.order):,} images of {data.crop.size} pixels, {self.trainer.max_epochs} epochs,"
            f" global batch {data.global_batch_size}"
            f"\n{self.trainer.world_size} x {hardware.device_name(self.device)}: {r['precision']},"
            f" micro-batch {r['micro_batch_size']} x {r['accumulation']}, {r['workers']} decoding threads,"
            f" compile {'on' if r['compile'] else 'off'}",
            *filter(None, (data.note, self.spending.note)),
        )
        say("\n".join(lines))

    def test(self) -> None:
        """Measure the best weights on the test split, if there is one and the model has a test_step."""
        if not self.data.dataset.splits.get("test") or not is_overridden("test_step", self.model):
            return
        best = self.run.best_checkpoint
        assert best is not None
        self.model.load_state_dict(load(best)["state_dict"])
        with self._explained():
            self.trainer.test(self.model, datamodule=self.data, verbose=False)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Too little memory, a full disk and the loss of another rank become a sentence."""
        try:
            yield
        except BaseException as error:
            self.watch.stand_down()
            if isinstance(error, torch.OutOfMemoryError):
                raise RunError(self._smaller_batch()) from None
            if isinstance(error, RuntimeError) and (sentence := self.watch.explain(error)):
                raise RunError(f"{sentence}. {self.run.how_to_go_on}") from None
            if full := unwritten(error):
                raise RunError(f"{full}. {self.run.how_to_go_on}") from None
            raise

    def facts(self) -> dict[str, Any]:
        """What `summary.json` says of the run so far."""
        self._note_metrics()
        spent, expected = self.spending.total, self.spending.expected
        monitor, mode = contract.goal(self.model)
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
            "model": contract.title(self.model),
            "monitor": monitor.removeprefix("val/"),
            "mode": mode,
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


def _listed(given: Any) -> list[Any]:
    """What a setting that takes one or several has: none, one or several."""
    return list(given) if isinstance(given, (list, tuple)) else [given] if given else []
