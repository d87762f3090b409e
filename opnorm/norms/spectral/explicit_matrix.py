"""The ℓ2 norm of small layers from one whole Gram matrix: diagonalized, or factorized once to show an upper bound.

A convolution's Gram matrix is put together from the products A_σᵀ A_τ of its taps, of which there are few; that of any other
linear map from products with unit vectors.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from opnorm._core.layers import Shape
from opnorm._core.linear_map import LinearMap
from opnorm.norms.spectral.frequency_response import Taps

__all__ = ["diagonalized", "gram_of_taps", "least_shown", "side_of"]

UNIT = 2.0**-53


def side_of(t: Taps) -> int:
    """Rows of the smaller Gram matrix of one group."""
    c_out, c_in = t.matrices.shape[-2:]
    return min(math.prod(t.reach) * c_in, math.prod(t.out_size) * c_out)


@torch.no_grad()
def diagonalized(linear: LinearMap) -> tuple[float, float]:
    """‖M‖_2 as an interval as narrow as rounding, from all eigenvalues of the smaller Gram matrix in float64."""
    G = _gram_of_map(linear)
    top, hidden = float(torch.linalg.eigvalsh(G)[-1]), _hidden(G, _terms(linear.in_shape, linear.out_shape))
    return math.sqrt(max(top - hidden, 0.0)), math.sqrt(max(top + hidden, 0.0))


@torch.no_grad()
def least_shown(M: LinearMap | Taps, tries: list[float]) -> float:
    """The first of some numbers θ, in rising order, that a Cholesky factorization of θ² I - MᵀM shows not to be exceeded.

    Args:
        M: the map; of a convolution, each group by itself.
        tries: the numbers. Only the first that works costs little more than one factorization.

    Returns:
        That number, infinite if none works.
    """
    if isinstance(M, Taps):
        terms = _terms((M.matrices.shape[-1], *M.reach), (M.matrices.shape[-2], *M.out_size))
        grams = (gram_of_taps(M, group) for group in range(len(M.matrices)))
    else:
        terms, grams = _terms(M.in_shape, M.out_shape), (G for G in [_gram_of_map(M)])
    left = list(tries)
    for G in grams:
        hidden, shift = _hidden(G, terms), 0.0
        G.neg_()
        while left:
            G.diagonal().add_(left[0] ** 2 - hidden - shift)
            # adding and taking away on the diagonal rounds by a unit of the numbers themselves, far less than is hidden
            shift = left[0] ** 2 - hidden
            if int(torch.linalg.cholesky_ex(G)[1]) == 0:
                break
            left.pop(0)
    return left[0] if left else math.inf


def _terms(in_shape: Shape, out_shape: Shape) -> int:
    return math.prod(in_shape) + math.prod(out_shape)


def _hidden(G: Tensor, terms: int) -> float:
    """What rounding can hide in an eigenvalue of a Gram matrix: a few n u trace, u the unit roundoff."""
    return 8 * terms * UNIT * float(G.diagonal().abs().sum())


def _gram_of_map(linear: LinearMap) -> Tensor:
    """M Mᵀ or Mᵀ M, whichever is smaller, without the matrix M: its columns by one product with each."""
    rows, columns = linear.shape
    shape = linear.out_shape if rows <= columns else linear.in_shape
    first, second = (linear.T, linear) if rows <= columns else (linear, linear.T)
    n = math.prod(shape)
    G = torch.empty(n, n, dtype=torch.float64, device=linear.device)
    step = max(1, 2**22 // max(rows, columns))
    for i in range(0, n, step):
        basis = torch.zeros(min(step, n - i), n, dtype=torch.float64, device=linear.device)
        basis[torch.arange(len(basis)), torch.arange(i, i + len(basis))] = 1
        G[i : i + len(basis)] = (second @ (first @ basis.view(-1, *shape))).flatten(1)
    return G


def gram_of_taps(t: Taps, group: int) -> Tensor:
    """The lower triangle of MᵀM, or of M Mᵀ where that is smaller, for one group; what lies above it means nothing.

    Rows are ordered by position, then channel. Output o reads x = o + σ and y = o + τ, so block (x, y) of MᵀM is the sum of
    A_σᵀ A_τ over all o. Places that a short phase does not have are rows of zeros there, and not summed over in M Mᵀ.
    """
    A, axes = t.matrices[group], len(t.reach)
    inputs, outputs = (np.indices(size).reshape(axes, -1).T for size in (t.reach, t.out_size))
    ends = inputs == np.array(t.reach) - 1
    short = np.zeros((A.shape[-1], axes), dtype=bool) if t.short is None else t.short
    if len(inputs) * A.shape[-1] <= len(outputs) * A.shape[-2]:
        G = A.new_zeros(len(inputs), A.shape[-1], len(inputs), A.shape[-1])
        _add_products(G, A, t.offsets, outputs, t.reach)
        G = G.flatten(2).flatten(0, 1)
        gone = torch.from_numpy((ends[:, None] & short).any(-1).ravel())
        if gone.any():
            G[gone], G[:, gone] = 0, 0
        return G
    G = A.new_zeros(len(outputs), A.shape[-2], len(outputs), A.shape[-2])
    where = ends & short.any(0)  # at which ends a place is says which columns it has
    for at in np.unique(where, axis=0):
        here = (where == at).all(1)
        columns = torch.from_numpy(~(short & at).any(1)).to(A.device)
        _add_products(G, A[..., columns].mT, -t.offsets, inputs[here], t.out_size)
    return G.flatten(2).flatten(0, 1)


def _add_products(G: Tensor, A: Tensor, offsets: np.ndarray, places: np.ndarray, size: Shape) -> None:
    """G[o + σ, :, o + τ, :] += A_σᵀ A_τ for the given places o and all σ not before τ, as far as both are in the map."""
    in_order = sorted(range(len(offsets)), key=lambda i: tuple(offsets[i]))
    for first, second in itertools.combinations_with_replacement(in_order, 2):
        x, y = places + offsets[second], places + offsets[first]
        there = ((x >= 0) & (x < size) & (y >= 0) & (y < size)).all(1)
        if there.any():
            product = A[second].mT @ A[first]
            rows, columns = (np.ravel_multi_index(tuple(p[there].T), size).tolist() for p in (x, y))
            for row, column in zip(rows, columns, strict=True):
                G[row, :, column] += product
