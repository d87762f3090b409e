"""Norms of one layer and of every layer: what they are, whatever the data."""

from opnorm._core.batch_norm import fold_batch_norm, folded
from opnorm._core.linear_map import LinearMap, linear_map
from opnorm.norms._operator_norm import operator_norm
from opnorm.norms.comparison import Change, Comparison, Summary, compare
from opnorm.norms.exact.by_layer import l1, linf
from opnorm.norms.exact.functional import (
    conv_l1,
    conv_linf,
    conv_transpose_l1,
    conv_transpose_linf,
    linear_l1,
    linear_linf,
)
from opnorm.norms.induced import induced_norm
from opnorm.norms.layer_table import measure
from opnorm.norms.matrix_norms import WeightNorms
from opnorm.norms.network.lipschitz import NetworkBound, NodeBound, lipschitz_bound, spectral_complexity
from opnorm.norms.network.trace import LayerCall, trace
from opnorm.norms.nonlinear import lipschitz
from opnorm.norms.norm import Norm, Product
from opnorm.norms.spectral.cheap_bounds import BOUNDS, bound, sgl_norm, vs_norm
from opnorm.norms.spectral.interval import spectral_norm
from opnorm.norms.spectral.iterations import lanczos, power_iteration
from opnorm.norms.spectral.singular_value_spread import Spread, singular_value_spread
from opnorm.norms.spectral.singular_values import Spectrum, singular_values
from opnorm.norms.spectral.smallest_singular_value import smallest_singular_value
from opnorm.norms.table import LayerNorms, NormTable
from opnorm.norms.weight_table import Move, MoveTable, WeightTable

__all__ = [
    "BOUNDS",
    "Change",
    "Comparison",
    "LayerCall",
    "LayerNorms",
    "LinearMap",
    "Move",
    "MoveTable",
    "NetworkBound",
    "NodeBound",
    "Norm",
    "NormTable",
    "Product",
    "Spectrum",
    "Spread",
    "Summary",
    "WeightNorms",
    "WeightTable",
    "bound",
    "compare",
    "conv_l1",
    "conv_linf",
    "conv_transpose_l1",
    "conv_transpose_linf",
    "fold_batch_norm",
    "folded",
    "induced_norm",
    "l1",
    "lanczos",
    "linear_l1",
    "linear_linf",
    "linear_map",
    "linf",
    "lipschitz",
    "lipschitz_bound",
    "measure",
    "operator_norm",
    "power_iteration",
    "sgl_norm",
    "singular_value_spread",
    "singular_values",
    "smallest_singular_value",
    "spectral_complexity",
    "spectral_norm",
    "trace",
    "vs_norm",
]
