"""Training with Lightning: settings, the run, checkpoints, meters. The model is the team's."""

from .cli import TrainingCLI
from .eval_metrics import EvalMetrics
from .module import ShardModule
from .trained_model import load_model

__all__ = ["EvalMetrics", "ShardModule", "TrainingCLI", "load_model"]
