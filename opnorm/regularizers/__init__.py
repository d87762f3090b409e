"""Regularizers: functions returning Hooks that any training loop can call."""

from opnorm.regularizers.hooks import Hooks as Hooks
from opnorm.regularizers.hooks import Regularizer as Regularizer
from opnorm.regularizers.hooks import chain as chain
from opnorm.regularizers.norm_decay import norm_decay
from opnorm.regularizers.weight_decay import weight_decay

__all__ = ["norm_decay", "weight_decay"]
