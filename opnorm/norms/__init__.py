"""Norms of one layer and of every layer: what they are, whatever the data."""

from opnorm.norms.compare import Change, Comparison, Summary, compare
from opnorm.norms.exact import conv_l1, conv_linf, l1, linear_l1, linear_linf, linf
from opnorm.norms.network import NetworkBound, Part, lipschitz_bound, spectral_complexity
from opnorm.norms.nonlinear import lipschitz
from opnorm.norms.spectral import Norm, power_iteration, spectral
from opnorm.norms.table import LayerNorms, NormTable, Product, Visit, measure, operator_norm, trace

__all__ = [
    "Change",
    "Comparison",
    "LayerNorms",
    "NetworkBound",
    "Norm",
    "NormTable",
    "Part",
    "Product",
    "Summary",
    "Visit",
    "compare",
    "conv_l1",
    "conv_linf",
    "l1",
    "linear_l1",
    "linear_linf",
    "linf",
    "lipschitz",
    "lipschitz_bound",
    "measure",
    "operator_norm",
    "power_iteration",
    "spectral",
    "spectral_complexity",
    "trace",
]
