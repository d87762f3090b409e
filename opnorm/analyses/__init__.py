"""Analyses: functions (model, data) -> rows."""

from opnorm.analyses.attacks import (
    autoattack_accuracy,
    liu_robust_accuracy,
    loss_variation,
    robustness_curve,
    wen_robust_accuracy,
)
from opnorm.analyses.basic import Analysis as Analysis
from opnorm.analyses.basic import Row as Row
from opnorm.analyses.basic import accuracy, margins, norm_table, robust_accuracy
from opnorm.analyses.jacobian import lipschitz_bracket, robust_radius
from opnorm.analyses.layers import singular_spread, weight_energy
from opnorm.analyses.predictions import generalization_gap, input_gradients, predictions
from opnorm.analyses.roth import (
    jacobian_spectrum,
    local_linearity,
    power_method_agreement,
    relu_cells,
    singular_alignment,
)

__all__ = [
    "accuracy",
    "autoattack_accuracy",
    "generalization_gap",
    "input_gradients",
    "jacobian_spectrum",
    "lipschitz_bracket",
    "liu_robust_accuracy",
    "local_linearity",
    "loss_variation",
    "margins",
    "norm_table",
    "power_method_agreement",
    "predictions",
    "relu_cells",
    "robust_accuracy",
    "robust_radius",
    "robustness_curve",
    "singular_alignment",
    "singular_spread",
    "weight_energy",
    "wen_robust_accuracy",
]
