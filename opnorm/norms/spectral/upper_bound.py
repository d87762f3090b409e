"""A certified interval for the ℓ2 norm of a zero-padded convolution.

From above: the convolution is a block of a convolution on a circle of N ≥ n + overhang places, for any N of that kind and
any phase φ (a diagonal unitary map turns one into the other), whose norm is the largest of the small matrices A(ω) at the
N frequencies ω_j = (2π j + φ) / N. That none exceeds θ is proved by a Cholesky factorization of θ² I - G(ω_j), rounding
included. When N is large, the frequencies are not tested one by one: the plane is covered by cells, and

    ‖A(ω_c)‖ ≤ θ cos(η)  at the center of every cell, η = Σ_axes degree · half width,

proves ‖A(ω)‖ ≤ θ everywhere: if the maximum S > θ were attained at ω* in a cell, then t ↦ Re uᴴ A(ω) v, a trigonometric
polynomial bounded by S, could not fall from ω* to the center below S cos(η) (M. Riesz; Bernstein and Szegő). Cells that
fail are split. So a bound for every image size costs a few hundred small factorizations.

From below: see ``lower_bound.py``. The two meet by raising the lower end: wherever a factorization
(``positive_definite.py``) fails, the matrix there yields a better wave.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from opnorm._core.frequencies import half_grid
from opnorm._core.layers import Shape
from opnorm._core.rounding import PRODUCT
from opnorm.norms.spectral.frequency_response import Polyphase, gram
from opnorm.norms.spectral.positive_definite import DOUBLE, SINGLE
from opnorm.norms.spectral.symbol_search import (
    CHUNK_BYTES,
    SearchOnCircle,
    SymbolSearch,
    every_group,
    top_vectors,
)

__all__ = ["Interval", "bound_above", "bound_by_cells", "certify", "certify_on_circle", "interval_of"]

FIRST_CELL = 0.25  # η of the first cells: cos is 0.969, so they settle all but the top 3 % of frequencies
EXACT_WORK = 2e7  # up to so many operations, all singular values are computed outright
SAFE_EXPONENT = 16  # of the largest weight: from 2^-16 to 2^16, float32 has room for all sums of products
FINE, FINEST = (
    4,
    64,
)  # frequencies of a circle for each cell: beyond them cells are less work, and the circle has all peaks
AVERAGED = 1200  # the largest map, in places, whose scalar Toeplitz matrix is diagonalized
AVERAGING_WORK = 5e9  # and the most work, in points n³, that goes into its symbol


@dataclass
class Interval:
    """lower <= ‖M‖_2 <= upper, and its cost.

    Attributes:
        lower: a value that is attained.
        upper: a value that is not exceeded.
        factorizations: small matrices that were factorized or diagonalized.
        method: how the upper end was proved.
    """

    lower: float
    upper: float
    factorizations: int
    method: str


def certify(t: Polyphase, relative_width: float = 5e-3) -> Interval:
    """The interval for one convolution, as narrow as asked for where the bound allows it.

    Args:
        t: the convolution in its polyphase form.
        relative_width: upper / lower - 1 to aim at. The result can be wider on small maps, where a circle is a poor
            replacement for the border.
    """
    scaled, exponent = _scaled(t)
    if exponent is None:
        return Interval(0.0, 0.0, 0, "all weights are zero")
    result = interval_of(SymbolSearch(scaled, gram(scaled), relative_width))
    result.lower, result.upper = math.ldexp(result.lower, exponent), math.ldexp(result.upper, exponent)
    return result


def _scaled(t: Polyphase) -> tuple[Polyphase, int | None]:
    """By a power of two, exactly, where squares might overflow or underflow in float32. And its exponent, None for zeros."""
    largest = max(abs(float(end)) for end in torch.aminmax(t.matrices))
    if largest == 0:
        return t, None
    exponent = math.frexp(largest)[1]
    if abs(exponent) <= SAFE_EXPONENT:
        return t, 0
    return replace(t, matrices=torch.ldexp(t.matrices, torch.tensor(-exponent))), exponent


def certify_on_circle(t: Polyphase, size: Shape, relative_width: float = 5e-3) -> Interval:
    """The interval for a convolution with circular padding, a block circulant map.

    Its norm is the largest ‖A(ω)‖ at the frequencies of its own circle; of a large one, all frequencies are bounded, by
    cells, whose number does not depend on its size.

    Args:
        t: the convolution in its polyphase form; its own sizes do not matter.
        size: of the circle, per axis.
        relative_width: upper / lower - 1 to aim at.
    """
    scaled, exponent = _scaled(t)
    if exponent is None:
        return Interval(0.0, 0.0, 0, "all weights are zero")
    s = SearchOnCircle(scaled, gram(scaled), relative_width, size)
    cells, places = _cells(s), math.prod(size)
    upper = bound_by_cells(s, cells) if places > FINE * math.prod(cells) else math.inf
    if upper > s.target() and places <= FINEST * math.prod(cells):
        s.theta = s.target()
        upper = min(upper, _bound_on_points(s, *every_group(half_grid(size)[0], len(s.g.even))))
    lower, upper = (math.ldexp(end, exponent) for end in (s.lower, max(upper, s.lower)))
    return Interval(lower, upper, s.count + s.test.count, f"circle of {'x'.join(map(str, size))}")


def bound_above(t: Polyphase, least: float, relative_width: float = 5e-3) -> float:
    """An upper bound for the ℓ2 norm of a convolution, made no smaller than a given number.

    Args:
        t: the convolution in its polyphase form.
        least: the number.
        relative_width: relative steps in which the bound grows, about.
    """
    scaled, exponent = _scaled(t)
    if exponent is None:
        return 0.0
    s = SymbolSearch(scaled, gram(scaled), relative_width, fixed_lower=math.ldexp(least, -exponent))
    s.lower /= s.target() / s.lower  # so that the number itself is the target
    return math.ldexp(interval_of(s).upper, exponent)


def interval_of(s: SymbolSearch) -> Interval:
    """The interval for one convolution, by the search's own settings."""
    t, n, groups = s.t, s.g.n, len(s.g.even)
    period = tuple(N if d else 1 for N, d in zip(t.period(), t.degree, strict=True))
    if n == 1:
        upper, method = _of_one_channel(s, period), "frequency response of every channel"
    else:
        cells = _cells(s)
        exactly = groups * math.prod(period) / 2 * 10 * n**3 <= EXACT_WORK
        s.begin(period)
        if exactly or math.prod(period) <= (4 if _first_cell(s) == FIRST_CELL else 1) * math.prod(cells):
            upper, method = _on_circles(s, period, exactly)
        else:
            upper, method = bound_by_cells(s, cells), "frequency cells, any input size"
    return Interval(s.lower, max(upper, s.lower), s.count + s.test.count, method)


# ---------------------------------------------------------------- circles, frequency by frequency


def _on_circles(s: SymbolSearch, period: tuple[int, ...], exactly: bool) -> tuple[float, str]:
    """The best of a few phases; the first is chosen so that the highest peak falls between two grid points."""
    upper, tried = math.inf, 0
    phases = _phases(s, period)
    for phase in phases[: len(phases) if exactly or s.g.n <= 32 else 2]:
        points, groups = every_group(half_grid(period, phase)[0], len(s.g.even))
        tried += 1
        if exactly:
            top = s.largest(points, groups)
            s.improve(*top)
            upper = min(upper, s.above(top[0]))
        else:
            s.theta = s.target()
            upper = min(upper, _bound_on_points(s, points, groups))
        if upper <= s.lower * (1 + s.relative_width * (0.1 if exactly else 1)):
            break
    method = f"circle of {'x'.join(map(str, period))}, {tried} phase{'s' * (tried > 1)}"
    if math.prod(s.t.reach) <= AVERAGED:
        for finer in (1, 2):
            circle = tuple(finer * N if N > 1 else 1 for N in period)
            work = len(s.g.even) * math.prod(circle) / 2 * s.g.n**3
            if upper <= s.lower * (1 + s.relative_width) or work > AVERAGING_WORK:
                break
            upper, method = min(upper, _averaged(s, circle)), "frequency response averaged over the map"
    return upper, method


def _averaged(s: SymbolSearch, circle: tuple[int, ...]) -> float:
    """A bound for small maps, where no wave is pure.

    ‖M x‖² is the mean of ‖A(ω_j) X(ω_j)‖² over the circle, X the transform of x; so at most the mean of f_j ‖X(ω_j)‖² with
    f_j = λ_max(G(ω_j)), and that is Σ_channels x_cᵀ T x_c for the scalar Toeplitz matrix T of the map with symbol f. Its top
    eigenvalue bounds ‖M‖². The bound is too large only as far as the best channels differ between frequencies.
    """
    points = half_grid(circle)[0]
    places = np.round(points * np.array(circle) / (2 * math.pi)).astype(int)
    best = 0.0
    for group in range(len(s.g.even)):
        f = np.zeros(circle)
        f[tuple(places.T)] = _tops(s, points, group) ** 2
        f[tuple((-places % np.array(circle)).T)] = f[tuple(places.T)]
        coefficients = np.fft.ifftn(f).real
        here = np.indices(s.t.reach).reshape(len(circle), -1).T
        T = torch.from_numpy(
            coefficients[tuple(np.moveaxis((here[:, None] - here) % np.array(circle), -1, 0))]
        )
        best = max(best, float(torch.linalg.eigvalsh(T)[-1]) + 1e-12 * float(np.abs(f).max()))
    return math.sqrt(best)


def _tops(s: SymbolSearch, points: np.ndarray, group: int) -> np.ndarray:
    """An upper bound of ‖A(ω)‖ at every point: all eigenvalues of small matrices, estimates that are checked for others."""
    found = np.zeros(len(points))
    groups = np.full(len(points), group)
    for chunk in s.chunks(len(points)):
        G = s.g.at(points[chunk], group)
        s.count += len(G)
        tops = torch.linalg.eigvalsh(G)[:, -1] if s.g.n <= 64 else top_vectors(G, 1, 14)[1][:, 0]
        found[chunk] = [s.above(math.sqrt(max(top, 0.0))) for top in tops.tolist()]
    margin, left = 2.5e-4, np.arange(len(points)) if s.g.n > 64 else np.arange(0)
    while len(left):
        tried = found[left] * (1 + margin)
        bad = s.test.exceeding(points[left], groups[left], tried**2)
        found[left] = tried
        left, margin = left[bad], 2 * margin
    return found


def _phases(s: SymbolSearch, period: tuple[int, ...]) -> list[tuple[float, ...]]:
    """Phases 0 and ½ on each axis (they keep the symmetry ω -> -ω), those first whose grids avoid the peak."""
    choices = [(0.0, 0.5) if N > 1 else (0.0,) for N in period]
    place = s.best * np.array(period) / (2 * math.pi)

    def distance(phase: tuple[float, ...]) -> float:
        return -sum(
            abs((p - f + 0.5) % 1 - 0.5) for p, f, N in zip(place, phase, period, strict=True) if N > 1
        )

    return sorted(itertools.product(*choices), key=distance)


def _bound_on_points(s: SymbolSearch, points: np.ndarray, groups: np.ndarray) -> float:
    """A bound θ that no point exceeds; it grows only where a point exceeds it."""
    for some in s.portions(len(points)):
        _settle(s, points[some], groups[some])
    return s.theta


def _settle(s: SymbolSearch, omega: np.ndarray, groups: np.ndarray) -> None:
    """Raise the lower end, or else θ, until no point exceeds θ."""
    margin, bad = min(s.relative_width, 5e-3) / 20, s.exceeding(omega, groups)
    while len(bad):
        value, where, group = s.estimate(
            omega[bad], groups[bad], SINGLE if s.relative_width > 1e-3 else DOUBLE
        )
        if not s.improve(value, where, group):
            if s.g.n <= 64 or s.relative_width < 1e-4:
                value = s.above(s.largest(omega[bad], groups[bad])[0])
            s.theta = max(s.theta * (1 + 1e-9), value * (1 + margin))
            margin *= 2  # the estimate is from below, and can be short of the truth
        bad = bad[s.exceeding(omega[bad], groups[bad])]


# ---------------------------------------------------------------- cells


def _first_cell(s: SymbolSearch) -> float:
    """Half the width of the first cells, in units of the symbol's change: wide where no cell then need be split."""
    return max(FIRST_CELL, math.acos(1 / (1 + 0.9 * s.relative_width)))


def _cells(s: SymbolSearch) -> tuple[int, ...]:
    """How many cells a search begins with, per axis; it does not depend on the size of the map."""
    moving = sum(d > 0 for d in s.t.degree)
    return tuple(max(1, math.ceil(math.pi * d * moving / _first_cell(s))) for d in s.t.degree)


def bound_by_cells(s: SymbolSearch, cells: tuple[int, ...]) -> float:
    """A bound θ that ‖A(ω)‖ exceeds nowhere."""
    degree = np.array(s.t.degree)
    half = np.where(degree > 0, math.pi / np.array(cells), 0.0)
    points, groups = every_group(half_grid(cells, 0.5)[0], len(s.g.even))
    halves = np.tile(half, (len(points), 1))
    s.theta = s.target()
    while len(points):
        keep_points, keep_groups, keep_halves = [], [], []
        for some in s.portions(len(points)):
            omega, group, width = points[some], groups[some], halves[some]
            bad = s.exceeding(omega, group, np.cos(width @ degree))
            if not len(bad):
                continue
            value, where, in_group = s.estimate(omega[bad], group[bad])
            s.improve(value, where, in_group)
            # a cell passes only below θ cos η, so θ must clear the peak by enough for cells of some size
            s.theta = max(s.theta, value * (1 + s.relative_width / 4))
            for child in _split(omega[bad], width[bad], degree):
                keep_points.append(child[0])
                keep_halves.append(child[1])
                keep_groups.append(group[bad])
        if not keep_points:
            break
        points, halves = np.concatenate(keep_points), np.concatenate(keep_halves)
        groups = np.concatenate(keep_groups)
    return s.theta


def _split(omega: np.ndarray, half: np.ndarray, degree: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every cell into two, across the axis on which it is longest in units of the symbol's change."""
    axis = (half * degree).argmax(1)
    rows = np.arange(len(omega))
    smaller = half.copy()
    smaller[rows, axis] /= 2
    children = []
    for sign in (-1, 1):
        center = omega.copy()
        center[rows, axis] += sign * smaller[rows, axis]
        children.append((center, smaller.copy()))
    return children


# ---------------------------------------------------------------- one channel


def _of_one_channel(s: SymbolSearch, period: tuple[int, ...]) -> float:
    """Depthwise convolutions: ‖A(ω)‖ is the modulus of a scalar polynomial, tabulated finely enough."""
    degree = np.array(s.t.degree)
    slack = math.acos(1 / (1 + s.relative_width / 4)) / max((degree > 0).sum(), 1)
    fine = tuple(math.ceil(math.pi * d / slack) if d else 1 for d in s.t.degree)
    on_circle = math.prod(period) <= math.prod(fine)
    factor = 1.0 if on_circle else math.cos(float((math.pi * degree / fine).sum()))
    points, _ = half_grid(period if on_circle else fine)
    best, where, group = -1.0, points[0], 0
    step = max(1, int(CHUNK_BYTES / (8 * max(len(s.g.even), len(s.g.offsets)))))
    for some in np.array_split(points, -(-len(points) // step)):
        angles = torch.from_numpy(some @ s.g.offsets.T).to(s.g.even.device)
        values, places = (s.g.even[..., 0, 0] @ angles.cos().T).max(1)  # (groups, F)
        i = int(values.argmax())
        if float(values[i]) > best:
            best, where, group = float(values[i]), some[int(places[i])], i
    s.count = len(points) * len(s.g.even)
    top = math.sqrt(max(best, 0.0))
    s.improve(top, where, group)
    return s.above(top) / factor * (1 + PRODUCT)
