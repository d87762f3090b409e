"""Analyses: functions (model, data) -> rows."""

from opnorm.analyses.basic import Analysis as Analysis
from opnorm.analyses.basic import Row as Row
from opnorm.analyses.basic import accuracy, margins, norm_table, robust_accuracy

__all__ = ["accuracy", "margins", "norm_table", "robust_accuracy"]
