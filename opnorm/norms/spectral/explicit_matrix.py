"""The ℓ2 norm of small layers from one whole Gram matrix: diagonalized, or factorized once to prove an upper bound.

A convolution's Gram matrix is put together from the products A_σᵀ A_τ of its polyphase matrices, of which there are few;
that of any other linear map from products with unit vectors.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from opnorm._core.linear_map import LinearMap
from opnorm._core.rounding import unit_roundoff
from opnorm.norms.spectral.frequency_response import Polyphase

__all__ = ["diagonalized", "first_upper_bound", "gram_matrices"]

ENTRIES = 2**25  # of the Gram matrices that are held at once
MANY_ENTRIES = 150  # of a kernel, above which M itself is multiplied instead of all pairs of entries


@torch.no_grad()
def diagonalized(M: LinearMap | Polyphase) -> tuple[float, float]:
    """‖M‖_2 as an interval as narrow as rounding, from all eigenvalues of the smaller Gram matrices in float64."""
    top = error = 0.0
    for G in _grams(M):
        top, error = max(top, float(torch.linalg.eigvalsh(G).max())), max(error, _rounding(M, G))
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
    left = list(candidates)
    for G in _grams(M):
        error, shift = _rounding(M, G), 0.0
        G.neg_()
        while left:
            G.diagonal(dim1=1, dim2=2).add_(left[0] ** 2 - error - shift)
            # the sums on the diagonal round by a unit of the numbers themselves, far less than ``error``
            shift = left[0] ** 2 - error
            if not torch.linalg.cholesky_ex(G).info.any():
                break
            left.pop(0)
    return left[0] if left else math.inf


def _grams(M: LinearMap | Polyphase) -> Iterator[Tensor]:
    """The smaller Gram matrices of some groups at a time, (groups, n, n); the upper triangles may not be set."""
    if isinstance(M, LinearMap):
        yield _gram_of_map(M)[None]
        return
    step = max(1, ENTRIES // min(M.shape) ** 2)
    for i in range(0, len(M.matrices), step):
        yield gram_matrices(replace(M, matrices=M.matrices[i : i + step]))


def _rounding(M: LinearMap | Polyphase, G: Tensor) -> float:
    """A bound of the rounding error in an eigenvalue of a Gram matrix: a few n u trace, u the unit roundoff."""
    terms = sum(M.shape)
    return 8 * terms * unit_roundoff(torch.float64) * float(G.diagonal(dim1=1, dim2=2).abs().sum(1).max())


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


def gram_matrices(t: Polyphase) -> Tensor:
    """The lower triangles of MᵀM, or of M Mᵀ where that is smaller, for each group; the entries above are not set.

    Rows are ordered by position, then channel. Output o reads x = o + σ and y = o + τ, so block (x, y) of MᵀM is the sum of
    A_σᵀ A_τ over all o. Places that a short phase does not have are rows of zeros there, and not summed over in M Mᵀ.
    """
    A, axes = t.matrices, len(t.reach)
    rows, columns = t.shape
    short = np.zeros((A.shape[-1], axes), dtype=bool) if t.short is None else t.short
    ends = np.array(t.reach) - 1 == np.indices(t.reach).reshape(axes, -1).T
    missing = torch.from_numpy((ends[:, None] & short).any(-1).ravel())
    if A.shape[1] > MANY_ENTRIES:
        M = A.new_zeros(len(A), *t.out_size, A.shape[-2], *t.reach, A.shape[-1])
        for offset, block in zip(t.offsets.tolist(), A.unbind(1), strict=True):
            _add_blocks(M, [0] * axes, offset, [(0, m) for m in t.out_size], block)
        M = M.view(len(A), rows, columns)
        M[:, :, missing] = 0
        return M.mT @ M if columns <= rows else M @ M.mT
    if columns <= rows:
        G = A.new_zeros(len(A), *t.reach, A.shape[-1], *t.reach, A.shape[-1])
        _add_products(G, A, t.offsets, [(0, m) for m in t.out_size])
        G = G.view(len(A), columns, columns)
        G[:, missing], G[:, :, missing] = 0, 0
        return G
    G = A.new_zeros(len(A), *t.out_size, A.shape[-2], *t.out_size, A.shape[-2])
    # the last place on an axis has fewer columns where phases are short there
    lacking = [bool(short[:, axis].any()) for axis in range(axes)]
    parts = [[(0, n - 1), (n - 1, n)] if lack else [(0, n)] for n, lack in zip(t.reach, lacking, strict=True)]
    for box in itertools.product(*parts):
        last = np.array([first == n - 1 for (first, _), n in zip(box, t.reach, strict=True)])
        there = torch.from_numpy(~(short & last).any(1)).to(A.device)
        _add_products(G, A[..., there].mT, -t.offsets, list(box))
    return G.view(len(A), rows, rows)


def _add_products(G: Tensor, A: Tensor, offsets: np.ndarray, box: list[tuple[int, int]]) -> None:
    """G[:, o + σ, :, o + τ, :] += A_σᵀ A_τ for the places o of a box and all σ not before τ."""
    in_order = sorted(range(len(offsets)), key=lambda i: tuple(offsets[i]))
    for first, second in itertools.combinations_with_replacement(in_order, 2):
        block = A[:, second].mT @ A[:, first]
        _add_blocks(G, offsets[second].tolist(), offsets[first].tolist(), box, block)


def _add_blocks(G: Tensor, x: list[int], y: list[int], box: list[tuple[int, int]], block: Tensor) -> None:
    """G[:, o + x, :, o + y, :] += block for the places o of a box, as far as both are in the map.

    Args:
        G: (groups, *size, channels, *size, channels).
        x: offset per axis.
        y: offset per axis.
        box: from which place o to which, per axis.
        block: (groups, channels, channels).
    """
    axes, strides = len(box), G.stride()
    along, across = strides[1 : axes + 1], strides[axes + 2 : -1]
    each = list(zip(box, x, y, G.shape[1 : axes + 1], G.shape[axes + 2 : -1], strict=True))
    low = [max(a, -i, -j) for (a, _), i, j, _, _ in each]
    counts = [min(b, n - i, m - j) - a for a, ((_, b), i, j, n, m) in zip(low, each, strict=True)]
    if min(counts) <= 0:
        return
    start = sum((a + i) * s + (a + j) * r for a, i, j, s, r in zip(low, x, y, along, across, strict=True))
    steps = strides[0], *map(sum, zip(along, across, strict=True)), strides[axes + 1], strides[-1]
    blocks = G.as_strided((len(G), *counts, *block.shape[1:]), steps, start)
    blocks += block[(slice(None), *[None] * axes)]
