"""Theorems that can be run: the papers' constructions as networks, and their bounds with every term."""

from opnorm.theory.liang import ACTIVATIONS, large_norms_zero_lipschitz, memorizer
from opnorm.theory.liu import GradientBound, Step, input_gradient_bound
from opnorm.theory.wen import GeneralizationBound, generalization_bound

__all__ = [
    "ACTIVATIONS",
    "GeneralizationBound",
    "GradientBound",
    "Step",
    "generalization_bound",
    "input_gradient_bound",
    "large_norms_zero_lipschitz",
    "memorizer",
]
