"""Norms of one layer and of every layer: what they are, whatever the data."""

from opnorm.norms.exact import conv_l1, conv_linf, l1, linear_l1, linear_linf, linf
from opnorm.norms.spectral import Norm, power_iteration, spectral
from opnorm.norms.table import LayerNorms, NormTable, Visit, measure, operator_norm, trace

__all__ = [
    "LayerNorms",
    "Norm",
    "NormTable",
    "Visit",
    "conv_l1",
    "conv_linf",
    "l1",
    "linear_l1",
    "linear_linf",
    "linf",
    "measure",
    "operator_norm",
    "power_iteration",
    "spectral",
    "trace",
]
