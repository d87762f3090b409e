"""The training loop and what it needs: settings, optimizers, schedules, averages, several processes."""

from opnorm.training.loop import train
from opnorm.training.metrics import TrainingProgress
from opnorm.training.training_settings import TrainingSettings
from opnorm.training.weight_metrics import weight_metrics

__all__ = ["TrainingProgress", "TrainingSettings", "train", "weight_metrics"]
