"""Of a convolution of many groups, those that may have the largest norm.

The norm is the largest of the groups' norms, and a group whose norm is below what another one attains needs no search of its
own. That is proved for all groups in one batch, on a grid of N points an axis: if

    ‖A(ω)‖ ≤ θ ∏_axes cos(π degree / N)  at every point,

then ‖A(ω)‖ ≤ θ everywhere (M. Riesz, one axis after the other; see ``upper_bound.py``). From each grid to the next finer one
fewer groups are left. The lower bound grows at the points that exceed it. On the smallest circle
of a small map, all phases are tried.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from opnorm._core.frequencies import between, half_grid
from opnorm._core.rounding import PRODUCT
from opnorm.norms.spectral.frequency_response import Polyphase, gram
from opnorm.norms.spectral.iterations import lanczos
from opnorm.norms.spectral.positive_definite import DOUBLE, SINGLE
from opnorm.norms.spectral.symbol_search import SymbolSearch, every_group

__all__ = ["FEW", "exceeding", "leading_groups"]

FEW = 4  # fewer groups are searched together
FIRST = 3  # points an axis, at which all groups are compared for a first lower bound
HALF_WIDTHS = (
    0.35,
    0.22,
    0.13,
    0.05,
)  # of cells, in units of the symbol's change: cos² is 0.88, 0.95, 0.983, 0.9975
LAST_WORK = 2e7  # most entries of the matrices on the finest grid
ENTRIES = 5e5  # of the matrices that are made at once
TRIES = 50  # points at which ‖A(ω)‖ is estimated, before those are sought that exceed it
DIAGONALIZED = 512  # rows or columns, up to which the groups that are left have exact norms
MEASURED = 8192  # rows or columns of the map of one group, up to which its norm is found by an iteration
MANY = 1000  # steps of an iteration that runs until it has converged
ROUGH = 1e-3  # of θ²: where single precision may err by more than this, it is not tried


def leading_groups(t: Polyphase, relative_width: float) -> tuple[Polyphase, float, float]:
    """The groups that may have the largest norm; a lower bound of that, and an upper bound of the others'.

    Args:
        t: the convolution, with weights whose squares are in range.
        relative_width: groups may be left out if their norms exceed the largest one by no more than this, relatively.
    """
    largest = float(t.matrices.abs().max())
    if len(t.matrices) < FEW or largest == 0:
        return t, 0.0, 0.0
    # a blur, for one, has the same filter in every channel
    t = replace(t, matrices=t.matrices.unique(dim=0))
    count = len(t.matrices)
    unit = math.ldexp(1.0, math.frexp(largest)[1])
    scaled = replace(t, matrices=t.matrices / unit)
    s = SymbolSearch(scaled, gram(scaled), relative_width)
    first = half_grid([FIRST if d else 1 for d in t.degree])[0]
    value, omega, leader = s.estimate(*every_group(first, count), SINGLE, 6)
    s.improve(value, omega, leader)
    left, rest, tried = np.arange(count), 0.0, [leader]
    for size, factor, last in _grids(t):
        points = half_grid(size)[0]
        if len(left) == 1 or (last and factor > 1 and len(left) * len(points) * s.g.n**2 > LAST_WORK):
            break
        high = exceeding(s, left, points, s.lower / factor)
        while len(new := np.argwhere(high & ~np.isin(left, tried)[:, None])):
            value, omega, group = _highest(s, points[new[:, 1]], left[new[:, 0]])
            tried.append(group)
            if not s.improve(value, omega, group):
                break
            # of what exceeded the bound that was smaller, some does not exceed the new one
            leader, (which, where) = group, high.nonzero()
            theta2 = np.full(len(which), (s.lower / factor) ** 2)
            still = s.test.exceeding(points[where], left[which], theta2)
            high[:] = False
            high[which[still], where[still]] = True
        left, rest = left[high.any(1)], s.lower
        if last and len(left) > 1:
            high = exceeding(s, left, points, s.target() / factor)
            keep = high.any(1) | (left == leader)
            left, rest = left[keep], s.lower if keep.all() else s.target()
            if factor == 1 and len(left) > 1 and min(t.shape) > DIAGONALIZED:
                left, rest = _other_phases(s, left, leader, size, rest)
    return replace(t, matrices=t.matrices[left]), s.lower * unit, rest * unit * (1 + PRODUCT)


def _other_phases(
    s: SymbolSearch, left: np.ndarray, leader: int, period: tuple[int, ...], rest: float
) -> tuple[np.ndarray, float]:
    """Those groups, the leader first of all, that other phases of the same circle do not show to be small enough."""
    if math.prod(s.t.shape) <= MEASURED**2:
        alone = replace(s.t, matrices=s.t.matrices[[leader]])
        s.lower = max(s.lower, lanczos(alone.as_map(), MANY, tolerance=s.relative_width / 50))
    for phase in itertools.product(*((0.0, 0.5) if N > 1 else (0.0,) for N in period)):
        high = exceeding(s, left, half_grid(period, phase)[0], s.target())
        keep = high.any(1) | (left == leader)
        left, rest = left[keep], rest if keep.all() else s.target()
        if len(left) == 1:
            break
    return left, rest


def _highest(s: SymbolSearch, omega: np.ndarray, groups: np.ndarray) -> tuple[float, np.ndarray, int]:
    """About the largest ‖A(ω)‖ among some points, its frequency and group: most points are only shown to be below it."""
    best, left = (0.0, omega[0], int(groups[0])), np.random.default_rng(0).permutation(len(omega))
    while len(left):
        some, left = left[:TRIES], left[TRIES:]
        best = max(best, s.estimate(omega[some], groups[some], SINGLE), key=lambda found: found[0])
        left = left[s.test.exceeding(omega[left], groups[left], np.full(len(left), best[0] ** 2))]
    return best


def _grids(t: Polyphase) -> Iterator[tuple[tuple[int, ...], float, bool]]:
    """Grids, by which factor the largest norm may be above that on the grid, and whether no finer one follows."""
    period = tuple(N if d else 1 for N, d in zip(t.period(), t.degree, strict=True))
    for half_width in HALF_WIDTHS:
        size = tuple(max(1, math.ceil(math.pi * d / half_width)) for d in t.degree)
        if math.prod(period) <= math.prod(size):
            yield period, 1.0, True
            return
        yield size, between(t.degree, size), half_width == HALF_WIDTHS[-1]


def exceeding(s: SymbolSearch, groups: np.ndarray, points: np.ndarray, theta: float) -> np.ndarray:
    """Where ‖A(ω)‖ ≤ θ is not proved: of some groups at all points, (groups, points)."""
    n, square = s.g.n, theta**2
    error = {dtype: float(s.test.rounding(dtype, n * square)) for dtype in (SINGLE, DOUBLE)}
    dtype = SINGLE if error[SINGLE] <= ROUGH * square else DOUBLE
    g = s.test.gram(dtype)
    angles = torch.from_numpy(points @ g.offsets.T).to(g.even.device)
    at_once = max(1, int(ENTRIES / (len(points) * n**2)))
    step = max(1, int(ENTRIES / (at_once * n**2)))
    waves = [(some.cos().to(g.even.dtype), some.sin().to(g.even.dtype)) for some in angles.split(step)]
    rows = []
    for some in torch.from_numpy(groups).to(g.even.device).split(at_once):
        even, odd = (H[some].movedim(0, 1).flatten(1) for H in (g.even, g.odd))
        parts = []
        for cos, sin in waves:
            M = torch.complex(cos @ even, sin @ odd).neg_().unflatten(1, (-1, n, n))
            M.diagonal(dim1=-2, dim2=-1).add_(square - error[dtype])
            parts.append(torch.linalg.cholesky_ex(M).info != 0)
        rows.append(torch.cat(parts).T)
    return torch.cat(rows).cpu().numpy()
