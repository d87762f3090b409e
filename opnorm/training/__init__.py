"""The training loop and what it needs: settings, optimizers, schedules, averages, several processes."""

from opnorm.training._weight_metrics import weight_metrics
from opnorm.training.loop import train
from opnorm.training.metrics import TrainingProgress
from opnorm.training.training_settings import TrainingSettings

__all__ = ["TrainingProgress", "TrainingSettings", "train", "weight_metrics"]
