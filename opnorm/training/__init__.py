"""The training loop and what it needs: optimizers, schedules, averages, several processes."""

from opnorm.training.loop import train

__all__ = ["train"]
