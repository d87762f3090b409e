"""The ℓ2 norm of small layers from one whole Gram matrix: diagonalized, or factorized once to prove an upper bound.

A convolution's Gram matrix is put together from the products A_σᵀ A_τ of its polyphase matrices, of which there are few;
that of any other linear map from products with unit vectors.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from opnorm._core.linear_map import LinearMap
from opnorm._core.rounding import unit_roundoff
from opnorm.norms.spectral.frequency_response import Polyphase

__all__ = ["diagonalized", "first_upper_bound", "gram_matrix", "side_of"]


def side_of(t: Polyphase) -> int:
    """Rows of the smaller Gram matrix of one group."""
    c_out, c_in = t.matrices.shape[-2:]
    return min(math.prod(t.reach) * c_in, math.prod(t.out_size) * c_out)


@torch.no_grad()
def diagonalized(linear: LinearMap) -> tuple[float, float]:
    """‖M‖_2 as an interval as narrow as rounding, from all eigenvalues of the smaller Gram matrix in float64."""
    G = _gram_of_map(linear)
    top, error = float(torch.linalg.eigvalsh(G)[-1]), _rounding(G, sum(linear.shape))
    return math.sqrt(max(top - error, 0.0)), math.sqrt(max(top + error, 0.0))


@torch.no_grad()
def first_upper_bound(M: LinearMap | Polyphase, candidates: list[float]) -> float:
    """The first of some numbers θ, in rising order, with ‖M‖_2 ≤ θ by a Cholesky factorization of θ² I - MᵀM.

    Args:
        M: the map; of a convolution, each group by itself.
        candidates: the numbers. If the first is a bound, the cost is little more than one factorization.

    Returns:
        That number, infinite if none is a bound.
    """
    if isinstance(M, Polyphase):
        terms = M.matrices.shape[-1] * math.prod(M.reach) + M.matrices.shape[-2] * math.prod(M.out_size)
        grams = (gram_matrix(M, group) for group in range(len(M.matrices)))
    else:
        terms, grams = sum(M.shape), (G for G in [_gram_of_map(M)])
    left = list(candidates)
    for G in grams:
        error, shift = _rounding(G, terms), 0.0
        G.neg_()
        while left:
            G.diagonal().add_(left[0] ** 2 - error - shift)
            # the sums on the diagonal round by a unit of the numbers themselves, far less than ``error``
            shift = left[0] ** 2 - error
            if int(torch.linalg.cholesky_ex(G)[1]) == 0:
                break
            left.pop(0)
    return left[0] if left else math.inf


def _rounding(G: Tensor, terms: int) -> float:
    """A bound of the rounding error in an eigenvalue of a Gram matrix: a few n u trace, u the unit roundoff."""
    return 8 * terms * unit_roundoff(torch.float64) * float(G.diagonal().abs().sum())


def _gram_of_map(linear: LinearMap) -> Tensor:
    """The smaller of M Mᵀ and Mᵀ M, without the matrix M: its columns by one product with each."""
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


def gram_matrix(t: Polyphase, group: int) -> Tensor:
    """The lower triangle of MᵀM, or of M Mᵀ where that is smaller, for one group; the entries above it are not set.

    Rows are ordered by position, then channel. Output o reads x = o + σ and y = o + τ, so block (x, y) of MᵀM is the sum of
    A_σᵀ A_τ over all o. Places that a short phase does not have are rows of zeros there, and not summed over in M Mᵀ.
    """
    A, axes = t.matrices[group], len(t.reach)
    short = np.zeros((A.shape[-1], axes), dtype=bool) if t.short is None else t.short
    if math.prod(t.reach) * A.shape[-1] <= math.prod(t.out_size) * A.shape[-2]:
        G = A.new_zeros(*t.reach, A.shape[-1], *t.reach, A.shape[-1])
        _add_products(G, A, t.offsets, [(0, m) for m in t.out_size])
        G = G.flatten(axes + 1).flatten(0, axes)
        ends = np.array(t.reach) - 1 == np.indices(t.reach).reshape(axes, -1).T
        missing = torch.from_numpy((ends[:, None] & short).any(-1).ravel())
        if missing.any():
            G[missing], G[:, missing] = 0, 0
        return G
    G = A.new_zeros(*t.out_size, A.shape[-2], *t.out_size, A.shape[-2])
    # the last place on an axis has fewer columns where phases are short there
    lacking = [bool(short[:, axis].any()) for axis in range(axes)]
    parts = [[(0, n - 1), (n - 1, n)] if lack else [(0, n)] for n, lack in zip(t.reach, lacking, strict=True)]
    for box in itertools.product(*parts):
        last = np.array([first == n - 1 for (first, _), n in zip(box, t.reach, strict=True)])
        columns = torch.from_numpy(~(short & last).any(1)).to(A.device)
        _add_products(G, A[..., columns].mT, -t.offsets, list(box))
    return G.flatten(axes + 1).flatten(0, axes)


def _add_products(G: Tensor, A: Tensor, offsets: np.ndarray, box: list[tuple[int, int]]) -> None:
    """G[o + σ, :, o + τ, :] += A_σᵀ A_τ for the places o of a box and all σ not before τ, as far as both are in the map.

    Args:
        G: (*size, channels, *size, channels).
        A: (T, ..., channels).
        offsets: (T, axes).
        box: from which place o to which, per axis.
    """
    axes = len(box)
    in_order = sorted(range(len(offsets)), key=lambda i: tuple(offsets[i]))
    for first, second in itertools.combinations_with_replacement(in_order, 2):
        x, y = offsets[second].tolist(), offsets[first].tolist()
        each = list(zip(box, x, y, G.shape[:axes], strict=True))
        low = [max(a, -i, -j) for (a, _), i, j, _ in each]
        counts = [min(b, n - i, n - j) - a for a, ((_, b), i, j, n) in zip(low, each, strict=True)]
        if min(counts) <= 0:
            continue
        strides = G.stride()
        along, across, channels = strides[:axes], strides[axes + 1 : -1], (strides[axes], strides[-1])
        start = sum((a + i) * s + (a + j) * r for a, i, j, s, r in zip(low, x, y, along, across, strict=True))
        blocks = G.as_strided(
            (*counts, *(A.shape[-1],) * 2), (*map(sum, zip(along, across, strict=True)), *channels), start
        )
        blocks += A[second].mT @ A[first]
