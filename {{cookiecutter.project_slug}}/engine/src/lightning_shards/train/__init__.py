"""Training with Lightning: settings, the run, checkpoints, meters. The model is the team's."""

from .cli import TrainingCLI

__all__ = ["TrainingCLI"]
