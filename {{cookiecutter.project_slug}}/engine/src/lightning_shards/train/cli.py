"""What `train.py` does, step by step: settings become data, a model, a trainer and a run; train; test; sum up.

Nothing is written before all settings are checked. Where they come from is in `settings`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities.model_helpers import is_overridden

from ..cost.prices import Prices
from ..errors import InputError
from ..runs.checkpoints import load, state
from ..runs.files import earlier_metrics
from . import cluster, contract, flags, hardware, knn, loggers, own_callbacks, resume_settings, summary, trainer_checks
from .checkpoint_io import DurableCheckpointIO
from .checkpoints import Checkpoints
from .config_safety import check_config, check_names
from .cost_tracker import Budget, CostTracker
from .datamodule import ShardDataModule
from .dry_run import DryRun
from .engine_callbacks import engine_callbacks
from .explain import explained, refused_by_a_class, refused_by_lightning, smaller_batch
from .freezing import Freezing, check_thaw
from .module import Compile, LearningRate, ShardModule
from .parser import PRICES, Parser, add_settings, plain, write_down_image_size
from .rank_watchdog import RankWatchdog
from .run import Run
from .run_name import choose
from .settings import check, check_linked, set_to_null, value_of, with_files
from .stop import Stopped, StopRequest
from .throughput import Throughput
from .trained_model import check_head, is_source


class TrainingCLI(LightningCLI):
    """Parses, checks and builds; `run` is the context in which to train.

    Args:
        model_class: any LightningModule; `ShardModule` says what one may offer beyond that.
        fields: the fields of a sample by name, or a function that makes them of the dataset; None: what the dataset
            says.
        transform: what is done to each sample's fields in the decoding processes.
        callbacks, loggers: beside those of the config and of the engine.
        args: in place of the command line's.
        datamodule_class: an own subclass of ShardDataModule, which may have settings of its own.

    Attributes: `trainer`, `model`, `data`, `run`, `meter`, `spending`.
    """

    def __init__(
        self,
        model_class: type[LightningModule],
        fields: Mapping[str, Any] | Callable[..., Mapping[str, Any]] | None = None,
        transform: Callable[..., None] | None = None,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
        args: list[str] | None = None,
        datamodule_class: type[ShardDataModule] = ShardDataModule,
    ) -> None:
        hardware.quiet()
        contract.check_class(model_class)
        data_class = contract.data_class(datamodule_class, fields, transform)
        self._callbacks, self._loggers = list(callbacks), list(loggers)
        arguments, self.resumed = with_files(sys.argv[1:] if args is None else args)
        if self.resumed:
            file, left_out = self.resumed / "config.yaml", set_to_null(arguments)
            content = check_config(file, model_class.__module__, left_out)
            if left_out:  # a callback that is no longer wanted need not be there, either
                arguments[arguments.index(str(file))] = yaml.safe_dump(content)
        self._flags = {name: value_of(arguments, f"--trainer.{name}") for name in ("devices", "num_nodes")}
        self._metrics: dict[str, float] = {}
        super().__init__(
            model_class,
            data_class,
            args=arguments,
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults=flags.DEFAULTS,
            parser_kwargs={"description": None, "allow_abbrev": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
        self.data: ShardDataModule = self.datamodule

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        self.parser_class = Parser
        return super().init_parser(**kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        check_linked(args, self._linked)
        self.config = plain(parser.parse_args(args))
        check(self.config)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        self._linked = add_settings(parser)

    def before_instantiate_classes(self) -> None:
        """Keep what was asked for, then decide what was left to the hardware."""
        if self.config.trainer.fast_dev_run and (self.resumed or self.config.run):
            what = "it goes on with no run: leave out --resume" if self.resumed else "leave out --run"
            raise InputError(f"trainer.fast_dev_run writes nothing, so {what}")
        flags.check(self.config.trainer)
        c, file = self.config, Path(self.config.prices)
        prices = Prices.read(file) if file.exists() or file != PRICES else None
        self.spending = CostTracker(prices, Budget(c.max_hours, c.max_kwh, c.max_cost))
        self.meter = Throughput(self.spending)
        write_down_image_size(c, self.resumed)
        asked = yaml.safe_load(self.parser.dump(self.config, format="yaml", skip_unset=False))
        self.asked = {name: value for name, value in asked.items() if name not in ("config", "run", "resume")}
        goes_on = self.resumed and any((self.resumed / "checkpoints").glob("*.ckpt"))
        of_model: Any = c.get("model") or {}  # one without settings
        if not goes_on:
            check_thaw(of_model)
        if self.resumed and goes_on and "weights" in of_model:
            of_model.weights = (
                None if is_source(of_model.weights) else of_model.weights
            )  # the checkpoint has newer ones
            resume_settings.pretrained(of_model, self.resumed)
        if found := cluster.layout():  # whoever started the ranks has decided, whatever the configs say
            cluster.check_flags(found, self._flags["devices"], self._flags["num_nodes"])
            self.config.trainer.num_nodes, self.config.trainer.devices = found
        device = hardware.accelerator(self.config.trainer.accelerator)
        hardware.prepare(device)
        self.device = device
        if self.config.trainer.sync_batchnorm and device != "cuda":
            raise InputError("trainer.sync_batchnorm works on NVIDIA GPUs only: set it false")

    def instantiate_classes(self) -> None:
        """As LightningCLI's, by the call of jsonargparse that stays in its version 5."""
        with refused_by_a_class():
            self.config_init = self.parser.instantiate(self.config)
        self.datamodule, self.model = self._get(self.config_init, "data"), self._get(self.config_init, "model")
        contract.check_instance(self.model)
        check_head((self.config.get("model") or {}).get("weights"), self.datamodule)
        contract.weigh_classes(self.model, self.datamodule)
        flags.shorten(self.datamodule, self.config.trainer)
        self.datamodule.plan_sizes(self.config.trainer.max_epochs)
        contract.check_sizes(self.model, self.datamodule)
        self.compiles = self.decide_compile(self.config.trainer.max_epochs * len(self.datamodule.order))
        self.trainer = self.instantiate_trainer()
        self._settle()

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
        trainer_checks.check_lengths(self.trainer, self.datamodule)
        trainer_checks.check_averages(self.trainer)
        measured = bool(self.datamodule.dataset.splits.get("val")) and is_overridden("validation_step", self.model)
        measured = measured and trainer_checks.validates(self.trainer, self.datamodule)
        own_callbacks.check_measured(self.trainer, self.config.patience, measured)
        trainer_checks.check_patience(self.trainer, self.datamodule, self.config.patience)
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
            **knn.settings(self.datamodule),
        }

    def decide_compile(self, images: int) -> bool:
        """Whether a run over so many images is compiled: as the model's setting says, else where it earns it."""
        asked = contract.setting(self.model, "compile")
        some = isinstance(self.model, ShardModule) and any(True for _ in self.model.compiled())
        return some and bool(hardware.compiles(self.device, images) if asked is None else asked)

    def model_callbacks(self) -> list[Callback]:
        """What does for a model what it says, in each of its trainings."""
        return [LearningRate(), Freezing(), *([Compile()] if self.compiles else [])]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        own, stop = self._get(self.config_init, "trainer"), StopRequest(self.spending.spent)
        self.run = self._choose_run(stop)
        folder, plugins = self.run.folder, listed(own["plugins"])
        given = [*listed(own["callbacks"]), *self._callbacks]
        own_callbacks.check(given, folder, self.config.ema_decay, self.config.trainer.max_time)
        check_names(self.asked, "the settings", type(self.model).__module__)
        c = self.config
        self.checkpoints = Checkpoints(
            *contract.goal(self.model), c.save_every_minutes, c.keep_checkpoints, c.patience, stop, self._begin
        )
        engine = [*self.model_callbacks(), *engine_callbacks(c, given, self.meter, self._model_settings())]
        trainer_checks.check_plugins(plugins)
        cluster.check_nodes(self.config.trainer.num_nodes)
        dry = self.config.trainer.fast_dev_run
        trainer = self.build_trainer(
            default_root_dir=str(folder),
            logger=loggers.build(self.config_init["log"], folder, False if dry else own["logger"], self._loggers),
            callbacks=[self.checkpoints, *given, *engine],  # checkpoints: set up before those of the user
            plugins=[*plugins, *trainer_checks.clusters(plugins, cluster.cluster()), DurableCheckpointIO()],
            fast_dev_run=dry,
        )
        trainer_checks.keep_lengths(trainer)
        loggers.keep_profile(trainer, folder)
        self.watch = RankWatchdog(self.run.fail)
        if checkpoint := self.run.last_checkpoint:
            place = state(checkpoint)
            self.datamodule.take_order(place)
            best = self.run.best_checkpoint or checkpoint
            resume_settings.check(
                self.model, load(checkpoint), place, self.run.changed(), trainer.max_epochs or 0, best
            )
        return trainer

    def _choose_run(self, stop: StopRequest) -> Run:
        if self.config.trainer.fast_dev_run:
            return DryRun(int(self.config.trainer.fast_dev_run), self.describe, stop)
        folder, goes_on = (self.resumed, True) if self.resumed else choose(self.config.run)
        if goes_on:
            self._metrics = earlier_metrics(folder)
        config = yaml.safe_dump(self.asked, sort_keys=False, allow_unicode=True)
        return Run(folder, config, goes_on, self.describe, stop, with_report=self.config.log.report)

    def _model_settings(self) -> dict[str, Any]:
        """What the model's constructor got, as plain values."""
        known = {action.dest for action in self.parser._actions}
        handed = {name: source for name, source in contract.HANDED_OVER.items() if f"model.{name}" in known}
        linked = {"image_size": self.config.model.image_size} if "model.image_size" in known else {}
        given = {name: getattr(self.datamodule, source) for name, source in handed.items()}
        return self.asked.get("model", {}) | linked | given

    def build_trainer(self, **changes: Any) -> Trainer:
        """The trainer of the settings, with `changes`."""
        own = self._get(self.config_init, "trainer")
        chosen = own["precision"] or any(isinstance(one, Precision) for one in listed(own["plugins"]))
        precision = own["precision"] if chosen else hardware.precision(self.device)
        with refused_by_lightning():
            trainer = super().instantiate_trainer(
                **{"precision": precision, **flags.for_trainer(self.config.trainer), **changes}
            )
        trainer_checks.check_strategy(trainer)
        trainer_checks.check_precision(trainer, own["precision"])
        return trainer

    def start(self) -> None:
        """Train, from the begin or from where the run was left."""
        summary.announce(self)
        if checkpoint := self.run.last_checkpoint:
            loggers.begin_late(self.trainer)
        with self._explained():
            self.trainer.fit(self.model, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        self._note_metrics()
        timer_of = "the callback Timer" if self.config.trainer.max_time is None else "trainer.max_time"
        self.run.outcome = self.checkpoints.outcome(self.trainer, timer_of)
        if self.run.outcome == "budget":
            raise Stopped("budget")

    def _begin(self) -> None:
        """Nothing can be refused any more."""
        self.run.note_start(self.run.last_checkpoint)
        loggers.begin(self.trainer, {**self.asked, "resolved": self.resolved})

    def test(self) -> None:
        """Measure the best weights on the test split, if there is one and the model has a test_step."""
        if not self.data.dataset.splits.get("test") or not is_overridden("test_step", self.model):
            return
        with self._explained():
            self.trainer.strategy.barrier()  # the first rank may be giving the best checkpoint its name
            if best := self.run.best_checkpoint:
                content = load(best)
                self.model.on_load_checkpoint(content)
                self.model.load_state_dict(content["state_dict"], strict=self.model.strict_loading)
            self.trainer.test(self.model, datamodule=self.data, verbose=False)

    def _explained(self) -> Any:
        return explained(
            self.watch,
            lambda: smaller_batch(self.resolved["micro_batch_size"], self.trainer.world_size, self.data),
            lambda: self.run.how_to_go_on,
            lambda: self.checkpoints.saved,
            lambda: bool(self.run.last_checkpoint) and not self.data.has_moved,
        )

    def describe(self) -> dict[str, Any]:
        self._note_metrics()
        return summary.to_dict(self, self._metrics)

    def _note_metrics(self) -> None:
        self._metrics |= {name: float(value) for name, value in self.trainer.callback_metrics.items()}


def listed(given: Any) -> list[Any]:
    """What a setting that takes one or several has: none, one or several."""
    return list(given) if isinstance(given, (list, tuple)) else [given] if given else []
