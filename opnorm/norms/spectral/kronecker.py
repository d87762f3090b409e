"""The ℓ2 norm of Kronecker products of maps of one axis each: average pooling, padding, resizing, unfolding, folding.

It is the product of the norms of the axes. The Gram matrix G of an axis, on its shorter side, is banded, and whether
θ² I - G is positive definite is known from one Cholesky factorization of bands: O(n b²) for n places and b bands.
Bisection of θ² gives the largest eigenvalue to rounding, on lines of any length.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from opnorm._core.layers import Shape
from opnorm._core.rounding import unit_roundoff
from opnorm.norms.exact.separable import Axis, axis_maps, axis_matrix
from opnorm.norms.norm import Norm

__all__ = ["kronecker_norm"]

UNIT = unit_roundoff(torch.float64)
TOLERANCE = 1e-13  # relative, at which bisection ends


def kronecker_norm(layer: nn.Module, in_shape: Shape) -> Norm:
    """The ℓ2 norm of a layer among ``SEPARABLE``, to rounding, and exact where no two entries share a row or a column.

    Raises:
        NormError: the layer does not take such inputs.
    """
    axes, divisor = axis_maps(layer, in_shape)
    lower, upper = 1.0, 1.0
    for low, high in (_squared_norm(*axis) for axis in axes):
        lower, upper = lower * low, upper * high
    if lower == upper and divisor == 1:
        norm = math.sqrt(upper)
        return Norm.of(norm, norm, "exact: every entry is copied or added to others once an axis")
    slack = 8 * len(axes) * UNIT
    ends = math.sqrt(lower) / divisor * (1 - slack), math.sqrt(upper) / divisor * (1 + slack)
    return Norm.of(*ends, "product of the norms of its axes, to rounding")


def _squared_norm(apply: Axis, n: int) -> tuple[float, float]:
    """‖A‖_2² of one axis between two numbers; equal ones where A copies entries, or adds entries that it uses once."""
    A = axis_matrix(apply, n)
    in_rows, in_columns = np.diff(A.indptr), np.bincount(A.indices, minlength=A.shape[1])
    if (A.data == 1).all() and min(in_rows.max(), in_columns.max()) <= 1:
        count = float(max(in_rows.max(), in_columns.max()))
        return count, count
    return _largest_eigenvalue(A if A.shape[0] <= A.shape[1] else A.T.tocsr())


def _largest_eigenvalue(A: Any) -> tuple[float, float]:
    """That of G = A Aᵀ between two numbers, by bisection; for sparse A whose rows overlap only with rows nearby."""
    from scipy.linalg.lapack import dpbtrf

    G, absolute = (A @ A.T).tocoo(), abs(A)
    n, width = len(G.diagonal()), int((G.row - G.col).max())
    bands = np.zeros((width + 1, n), order="F")
    for k in range(width + 1):
        bands[k, : n - k] = -G.diagonal(-k)
    high = float(absolute.sum(0).max() * absolute.sum(1).max()) * (1 + 8 * UNIT)  # at least ‖|A|‖_2²
    # of sums of products; of the factorization, as ‖|L| |L|ᵀ‖ ≤ (2 width + 1) θ² (Higham 2002, Thm 10.3)
    error = 4 * UNIT * high * (np.diff(A.indptr).max() + 2 + (width + 3) * (2 * width + 1))
    low = float(G.diagonal().max())
    while high - low > max(TOLERANCE * high, error):
        middle = (low + high) / 2
        shifted = bands.copy(order="F")
        shifted[0] += middle
        definite = dpbtrf(shifted, lower=1, overwrite_ab=1)[1] == 0
        low, high = (low, middle) if definite else (middle, high)
    return max(low - error, 0.0), high + error
