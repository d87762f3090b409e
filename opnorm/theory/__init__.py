"""The papers' theorems: their constructions as networks, and their bounds with every term."""

from opnorm.theory.liang import ACTIVATIONS, large_norms_zero_lipschitz, memorizer, memorizer_of
from opnorm.theory.liu import BoundFactor, GradientBound, input_gradient_bound
from opnorm.theory.wen import Covering, GeneralizationBound, generalization_bound

__all__ = [
    "ACTIVATIONS",
    "BoundFactor",
    "Covering",
    "GeneralizationBound",
    "GradientBound",
    "generalization_bound",
    "input_gradient_bound",
    "large_norms_zero_lipschitz",
    "memorizer",
    "memorizer_of",
]
