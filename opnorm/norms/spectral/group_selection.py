"""Of a convolution of many groups, those that may have the largest norm.

The norm is the largest of the groups' norms. A bound of each is quick to get at many frequencies at once: the largest
eigenvalue of a Hermitian matrix (n x n) with mean eigenvalue m = tr G / n is at most

    m + sqrt((n - 1) (‖G‖_F² / n - m²)),

with equality for n = 1 and 2. The groups whose bound is below what another one attains need no search of their own. The
grid gets finer, for those that are left, as in ``upper_bound.py``.

Source: Wolkowicz & Styan 1980, Theorem 2.1.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from opnorm._core.frequencies import half_grid
from opnorm._core.rounding import PRODUCT, unit_roundoff
from opnorm.norms.spectral.frequency_response import Gram, Polyphase, gram
from opnorm.norms.spectral.symbol_search import SymbolSearch

__all__ = ["leading_groups"]

FEW = 4  # fewer groups are searched together
ETAS = 0.7, 0.3, 0.12  # of the cells of the grids: the cosine is 0.76, 0.955, 0.993
LAST_WORK = 2e7  # most entries of the matrices on the finest grid
ENTRIES = 5e5  # of the matrices that are made at once
SMALL = 4  # channels, up to which the matrices are not squared
TRIES = 3  # groups whose norm is bounded from below, on one grid


def leading_groups(t: Polyphase, relative_width: float) -> tuple[Polyphase, float, float]:
    """The groups that may have the largest norm; a lower bound of that, and an upper bound of the others'.

    Args:
        t: the convolution, with weights whose squares are in range.
        relative_width: groups may be left out if their norms exceed the largest one by no more than this, relatively.
    """
    count = len(t.matrices)
    largest = float(t.matrices.abs().max())
    if count < FEW or largest == 0:
        return t, 0.0, 0.0
    unit = math.ldexp(1.0, math.frexp(largest)[1])
    scaled = replace(t, matrices=t.matrices / unit)
    s = SymbolSearch(scaled, gram(scaled), relative_width)
    left, rest = np.arange(count), 0.0
    for points, factor in _grids(t, s.g.n):
        if factor > 0.99 and len(left) * len(points) * s.g.n**2 > LAST_WORK:
            break
        tops, places = _tops(s.g, left, points)
        rounding = np.array(s.test.rounding(torch.complex128, s.g.n * tops))
        bounds = np.sqrt(tops + rounding) / factor * (1 + PRODUCT)
        for at in np.argsort(-tops)[:TRIES]:
            s.improve(math.sqrt(tops[at]), points[places[at]], int(left[at]))
        keep = bounds > s.target()
        keep[bounds.argmax()] = True
        rest = max(rest, float(bounds[~keep].max(initial=0.0)))
        left = left[keep]
        if len(left) == 1:
            break
    return replace(t, matrices=t.matrices[left]), s.lower * unit, rest * unit


def _grids(t: Polyphase, n: int) -> Iterator[tuple[np.ndarray, float]]:
    """Frequencies, and by which factor the largest norm at one of them may be below that of the convolution."""
    degree = np.array(t.degree)
    period = tuple(N if d else 1 for N, d in zip(t.period(), t.degree, strict=True))
    for eta in ETAS:
        cells = tuple(max(1, math.ceil(math.pi * d * (degree > 0).sum() / eta)) for d in t.degree)
        if math.prod(period) <= math.prod(cells):
            yield half_grid(period)[0], 1.0
            return
        yield half_grid(cells)[0], math.cos(float((math.pi * degree / cells).sum()))


def _tops(g: Gram, groups: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest bound of λ_max(G(ω)) of each group on all points, and at which: (groups,) and (groups,)."""
    even, odd = (H[torch.from_numpy(groups)].movedim(0, 1).flatten(1) for H in (g.even, g.odd))
    best = np.zeros(len(groups))
    where = np.zeros(len(groups), dtype=int)
    size = max(1, int(ENTRIES / even.shape[1]))
    for first in range(0, len(points), size):
        angles = torch.from_numpy(points[first : first + size] @ g.offsets.T).to(even.device)
        bounds = _bound(
            *((w @ H).unflatten(1, (-1, g.n, g.n)) for w, H in ((angles.cos(), even), (angles.sin(), odd)))
        )
        values, places = (x.cpu().numpy() for x in bounds.max(0))
        where = np.where(values > best, places + first, where)
        best = np.maximum(best, values)
    return best, where


def _bound(real: Tensor, imag: Tensor) -> Tensor:
    """The bound of Hermitian matrices (..., n, n) by their real and imaginary parts; of larger ones by that of G²."""
    n = real.shape[-1]
    squares = (real.square().sum((-2, -1)) + imag.square().sum((-2, -1))) / n
    if n <= SMALL:
        return _of_moments(real.diagonal(dim1=-2, dim2=-1).sum(-1) / n, squares, n)
    G = torch.complex(real, imag)
    fourth = torch.view_as_real(G @ G).square().sum((-3, -2, -1)) / n
    return _of_moments(squares, fourth, n).sqrt()


def _of_moments(mean: Tensor, squares: Tensor, n: int) -> Tensor:
    """At most so large is the largest of n numbers with this mean and mean of squares, rounding included."""
    # of sums of n² products, and of products of matrices
    error = 16 * (n**2 + 2) * unit_roundoff(torch.float64) * squares
    return mean + ((n - 1) * ((squares - mean.square()).clamp(min=0) + error)).sqrt()
