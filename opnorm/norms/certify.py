"""A certified interval for the ℓ2 norm of a zero-padded convolution.

From above: the convolution is a block of a convolution on a circle of N ≥ n + overhang places, for any N of that kind and
any phase φ (a diagonal unitary map turns one into the other), whose norm is the largest of the small matrices A(ω) at the
N frequencies ω_j = (2π j + φ) / N. That none exceeds θ is shown by a Cholesky factorization of θ² I - G(ω_j), rounding
included. When N is large, the frequencies are not looked at one by one: the plane is covered by cells, and

    ‖A(ω_c)‖ ≤ θ cos(η)  at the center of every cell, η = Σ_axes degree · half width,

shows ‖A(ω)‖ ≤ θ everywhere: if the maximum S > θ were attained at ω* in a cell, then t ↦ Re uᴴ A(ω) v, a trigonometric
polynomial bounded by S, could not fall from ω* to the center below S cos(η) (M. Riesz; Bernstein and Szegő). Cells that
fail are split. So a bound for every image size costs a few hundred small factorizations.

From below: see ritz.py. The two meet by raising the lower end: wherever a factorization fails, the matrix there shows a
better wave to try.
"""

import itertools
import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from opnorm.norms.ritz import krylov, ritz
from opnorm.norms.symbol import Gram, Taps, apply, gram

__all__ = ["Interval", "certify"]

SINGLE, DOUBLE = torch.complex64, torch.complex128
CHUNK_BYTES, CACHE_BYTES = 16e6, 4e6  # what is made at once, and what is worked on at once
FIRST_CELL = 0.25  # η of the first cells: cos is 0.969, so they settle all but the top 3 % of frequencies
EXACT_WORK = 2e7  # up to so many operations, all singular values are computed outright
AVERAGED = 1200  # the largest map, in places, whose scalar Toeplitz matrix is diagonalized
AVERAGING_WORK = 5e9  # and the most work, in points n³, that goes into its symbol


@dataclass
class Interval:
    """lower <= ‖M‖_2 <= upper, and what it cost.

    Attributes:
        lower: a value that is attained.
        upper: a value that is not exceeded.
        factorizations: small matrices that were factorized or diagonalized.
        note: how the upper end was shown.
    """

    lower: float
    upper: float
    factorizations: int
    note: str


@dataclass
class _Search:
    """What is known so far about one convolution."""

    t: Taps
    g: Gram
    width: float
    lower: float = 0.0
    theta: float = 0.0  # nothing checked so far exceeds it
    best: tuple[int, np.ndarray] | None = None
    vector: Tensor | None = None
    count: int = 0
    single: Gram | None = None
    slack: dict[torch.dtype, float] = field(default_factory=dict)


def certify(t: Taps, width: float = 5e-3) -> Interval:
    """The interval for one convolution, of relative width ``width`` where the bound allows it.

    Args:
        t: the convolution, reduced to stride 1 by :func:`opnorm.norms.symbol.taps`.
        width: upper / lower - 1 to aim at. What is reached can be wider on small maps, where the circle is a poor stand-in
            for the border.
    """
    largest = float(t.matrices.abs().max())
    if largest == 0:
        return Interval(0.0, 0.0, 0, "all taps are zero")
    exponent = math.frexp(largest)[
        1
    ]  # by a power of two, exactly: squares must neither overflow nor underflow in float32
    scaled = replace(t, matrices=torch.ldexp(t.matrices, torch.tensor(-exponent)), kernels={})
    found = _certify(_Search(scaled, gram(scaled), width))
    found.lower, found.upper = math.ldexp(found.lower, exponent), math.ldexp(found.upper, exponent)
    return found


def _certify(s: _Search) -> Interval:
    t, g = s.t, s.g
    period = tuple(N if d else 1 for N, d in zip(t.period(), t.degree, strict=True))
    cells = tuple(max(1, math.ceil(2 * math.pi * d * _moving(t) / (2 * FIRST_CELL))) for d in t.degree)
    work = len(g.even) * math.prod(period) / 2 * 10 * g.n**3
    if g.n == 1:
        return _scalar(s, period)
    _begin(s, period)
    if work <= EXACT_WORK or math.prod(period) <= 4 * math.prod(cells):
        return _on_grids(s, period, exactly=work <= EXACT_WORK)
    upper = _by_cells(s, cells)
    s.lower = _proven(s)
    return Interval(s.lower, max(upper, s.lower), s.count, "frequency cells, any input size")


def _moving(t: Taps) -> int:
    return sum(d > 0 for d in t.degree)


# ---------------------------------------------------------------- the circle, frequency by frequency


def _on_grids(s: _Search, period: tuple[int, ...], exactly: bool) -> Interval:
    """The best of a few phases; the first is chosen so that the highest peak falls between two grid points."""
    upper, tried = math.inf, 0
    phases = _phases(s, period)
    for phase in phases[: len(phases) if exactly or s.g.n <= 32 else 2]:
        points, groups = _grid(period, phase, len(s.g.even))
        tried += 1
        if exactly:
            top = _largest(s, points, groups)
            _raise(s, *top)
            upper = min(upper, _above(s, top[0]))
        else:
            s.theta = s.lower * (1 + 0.995 * s.width)
            upper = min(upper, _check_all(s, points, groups))
        if upper <= s.lower * (1 + s.width * (0.1 if exactly else 1)):
            break
    note = f"circle of {'x'.join(map(str, period))}, {tried} phase{'s' * (tried > 1)}"
    if upper > s.lower * (1 + s.width) and math.prod(s.t.reach) <= AVERAGED:
        for finer in (1, 2):
            circle = tuple(finer * N if N > 1 else 1 for N in period)
            if len(s.g.even) * math.prod(circle) / 2 * s.g.n**3 > AVERAGING_WORK:
                break
            upper = min(upper, _averaged(s, circle))
            note = "frequency response averaged over the map"
            if upper <= s.lower * (1 + s.width):
                break
    s.lower = _proven(s)
    return Interval(s.lower, max(upper, s.lower), s.count, note)


def _averaged(s: _Search, circle: tuple[int, ...]) -> float:
    """What the best frequency is worth on a small map, where no wave is pure.

    ‖M x‖² is the mean of ‖A(ω_j) X(ω_j)‖² over the circle, X the transform of x; so at most the mean of f_j ‖X(ω_j)‖² with
    f_j = λ_max(G(ω_j)), and that is Σ_channels x_cᵀ T x_c for the scalar Toeplitz matrix T of the map with symbol f. Its top
    eigenvalue bounds ‖M‖². What is lost is only that the best channels differ from one frequency to the next.
    """
    phase = (0.0,) * len(circle)
    points = _half(circle, phase)
    places = np.round(points * np.array(circle) / (2 * math.pi)).astype(int)
    best = 0.0
    for group in range(len(s.g.even)):
        f = np.zeros(circle)
        f[tuple(places.T)] = _every_top(s, points, group) ** 2
        f[tuple((-places % np.array(circle)).T)] = f[tuple(places.T)]
        coefficients = np.fft.ifftn(f).real
        here = np.indices(s.t.reach).reshape(len(circle), -1).T
        T = torch.from_numpy(
            coefficients[tuple(np.moveaxis((here[:, None] - here) % np.array(circle), -1, 0))]
        )
        best = max(best, float(torch.linalg.eigvalsh(T)[-1]) + 1e-12 * float(np.abs(f).max()))
    return math.sqrt(best)


def _every_top(s: _Search, points: np.ndarray, group: int) -> np.ndarray:
    """An upper bound of ‖A(ω)‖ at every point: all eigenvalues of small matrices, estimates that are checked for others."""
    found = np.zeros(len(points))
    groups = np.full(len(points), group)
    for chunk in _chunks(s, len(points)):
        G = _symbols(s, points[chunk], groups[chunk], DOUBLE)
        s.count += len(G)
        tops = torch.linalg.eigvalsh(G)[:, -1] if s.g.n <= 64 else _top_vectors(G, 1, 14)[1][:, 0]
        found[chunk] = [_above(s, math.sqrt(max(top, 0.0))) for top in tops.tolist()]
    margin, left = 2.5e-4, np.arange(len(points)) if s.g.n > 64 else np.arange(0)
    while len(left):
        tried = found[left] * (1 + margin)
        bad = _exceed(s, points[left], groups[left], tried / s.theta)
        found[left] = tried
        left, margin = left[bad], 2 * margin
    return found


def _phases(s: _Search, period: tuple[int, ...]) -> list[tuple[float, ...]]:
    """Phases 0 and ½ on each axis (they keep the symmetry ω -> -ω), those first whose grids avoid the peak."""
    choices = [(0.0, 0.5) if N > 1 else (0.0,) for N in period]
    peak = s.best[1] if s.best is not None else np.zeros(len(period))
    place = peak * np.array(period) / (2 * math.pi)

    def distance(phase: tuple[float, ...]) -> float:
        return -sum(
            abs((p - f + 0.5) % 1 - 0.5) for p, f, N in zip(place, phase, period, strict=True) if N > 1
        )

    return sorted(itertools.product(*choices), key=distance)


def _grid(period: tuple[int, ...], phase: tuple[float, ...], groups: int) -> tuple[np.ndarray, np.ndarray]:
    """The frequencies of a circle, one of each pair ±ω, in random order; every one for every group."""
    return _every_group(_half(period, phase), groups)


def _half(sizes: tuple[int, ...], phase: tuple[float, ...]) -> np.ndarray:
    """The frequencies 2π (j + phase) / size, one of each pair ±ω (the phases are 0 or ½)."""
    places = np.indices(sizes).reshape(len(sizes), -1).T
    mirrored = (-places - np.round(2 * np.array(phase)).astype(int)) % np.array(sizes)
    rank = np.array([math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))])
    first = places @ rank <= mirrored @ rank
    return (places[first] + np.array(phase)) * 2 * math.pi / np.array(sizes)


def _every_group(points: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    all_points, all_groups = np.tile(points, (groups, 1)), np.repeat(np.arange(groups), len(points))
    order = np.random.default_rng(0).permutation(len(all_points))
    return all_points[order], all_groups[order]


def _check_all(s: _Search, points: np.ndarray, groups: np.ndarray) -> float:
    """A bound θ that no point exceeds; it grows only where a point proves that it must."""
    for chunk in _chunks(s, len(points)):
        omega, group = points[chunk], groups[chunk]
        _settle(s, omega, group, _exceed(s, omega, group, np.ones(len(omega))))
    return s.theta


def _settle(s: _Search, omega: np.ndarray, groups: np.ndarray, bad: np.ndarray) -> None:
    """Raise the lower end, or else θ, until none of the ``bad`` points exceeds θ."""
    margin = min(s.width, 5e-3) / 20
    while len(bad):
        value, where, group = _estimate(s, omega[bad], groups[bad])
        if not _raise(s, value, where, group):
            if s.g.n <= 64 or s.width < 1e-4:
                value = _above(s, _largest(s, omega[bad], groups[bad])[0])
            s.theta = max(s.theta * (1 + 1e-9), value * (1 + margin))
            margin *= 2  # the estimate came from below, and can be short of the truth
        bad = bad[_exceed(s, omega[bad], groups[bad], np.ones(len(bad)))]


# ---------------------------------------------------------------- cells


def _by_cells(s: _Search, cells: tuple[int, ...]) -> float:
    """A bound θ that ‖A(ω)‖ exceeds nowhere."""
    degree = np.array(s.t.degree)
    half = np.where(degree > 0, math.pi / np.array(cells), 0.0)
    points, groups = _every_group(_half(cells, (0.5,) * len(cells)), len(s.g.even))
    halves = np.tile(half, (len(points), 1))
    s.theta = s.lower * (1 + 0.995 * s.width)
    while len(points):
        keep_points, keep_groups, keep_halves = [], [], []
        for chunk in _chunks(s, len(points)):
            omega, group, width = points[chunk], groups[chunk], halves[chunk]
            bad = _exceed(s, omega, group, np.cos(width @ degree))
            if not len(bad):
                continue
            value, where, in_group = _estimate(s, omega[bad], group[bad])
            _raise(s, value, where, in_group)
            # a cell settles only below θ cos η, so θ must clear the peak by enough to be shown with cells of some size
            s.theta = max(s.theta, value * (1 + s.width / 4))
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


# ---------------------------------------------------------------- small matrices


def _chunks(s: _Search, count: int) -> list[slice]:
    size = max(8, int(CHUNK_BYTES / (8 * s.g.n**2)))
    return [slice(i, i + size) for i in range(0, count, size)]


def _symbols(
    s: _Search, omega: np.ndarray, groups: np.ndarray, dtype: torch.dtype, theta2: np.ndarray | None = None
) -> Tensor:
    """G at pairs (ω, group), (F, n, n); or θ² I - G with a θ² for each pair."""
    if s.single is None and dtype is SINGLE:
        s.single = s.g.single()
    g = s.single if dtype is SINGLE and s.single is not None else s.g
    angles = torch.from_numpy(omega @ g.offsets.T).to(g.even.device)
    cos, sin = angles.cos().to(g.even.dtype), angles.sin().to(g.even.dtype)
    if theta2 is not None:
        cos, sin = cos.neg_(), sin.neg_()
    if len(g.even) == 1:
        real, imag = cos @ g.even[0], sin @ g.odd[0]
    else:
        which = torch.from_numpy(groups).to(g.even.device)
        real, imag = torch.bmm(cos[:, None], g.even[which])[:, 0], torch.bmm(sin[:, None], g.odd[which])[:, 0]
    if theta2 is not None:
        real[:, :: g.n + 1] += torch.from_numpy(theta2).to(real)[:, None]
    return torch.complex(real, imag).view(len(omega), g.n, g.n)


def _exceed(s: _Search, omega: np.ndarray, groups: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The indices at which ‖A(ω)‖ ≤ θ·factor is not shown, first in single precision, then in double."""
    left = np.arange(len(omega))
    for dtype in (SINGLE, DOUBLE):
        absolute, relative = _rounding(s, dtype)
        if dtype is SINGLE and relative + absolute / s.theta**2 > 0.06:
            continue  # too blunt to settle anything
        scaled = s.theta**2 * (factor[left] ** 2 - relative) - absolute
        s.count += len(left)
        left = left[_indefinite(_symbols(s, omega[left], groups[left], dtype, scaled)).cpu().numpy()]
        if not len(left):
            break
    return left


def _indefinite(A: Tensor, block: int = 32) -> Tensor:
    """Whether each Hermitian matrix of a batch (F, n, n) is not shown to be positive definite.

    Left-looking Cholesky factorization by block columns, a few matrices at a time: the library's own takes them one by one,
    without matrix products, at less than half the speed.
    """
    n = A.shape[-1]
    if n <= 64:
        return torch.linalg.cholesky_ex(A)[1] != 0
    few = max(4, int(CACHE_BYTES / (8 * n * n)))
    return torch.cat([_indefinite_few(some, block) for some in A.split(few)])


def _indefinite_few(A: Tensor, block: int) -> Tensor:
    n = A.shape[-1]
    L, bad = torch.empty_like(A), torch.zeros(len(A), dtype=torch.bool, device=A.device)
    for j in range(0, n, block):
        k = min(j + block, n)
        column = A[:, j:, j:k]
        if j:
            column = torch.baddbmm(column, L[:, j:, :j], L[:, j:k, :j].mH, alpha=-1)
        D, info = torch.linalg.cholesky_ex(column[:, : k - j])
        bad |= info != 0
        L[:, j:k, j:k] = D
        if k < n:
            L[:, k:, j:k] = torch.linalg.solve_triangular(D.mH, column[:, k - j :], upper=True, left=False)
    return bad


def _rounding(s: _Search, dtype: torch.dtype) -> tuple[float, float]:
    """What float errors can hide in an eigenvalue λ = σ² of G(ω): an absolute part, and a relative one of θ².

    With unit roundoff u, D taps, and 2√2 for complex products: the sums over taps err by (D + 6) u Σ_δ ‖H_δ‖_F, the taps
    themselves by γ ‖K‖_F² in double; the factorization or diagonalization by γ_n trace ≤ n u · n θ² (Higham 2002, Thm 10.3).
    """
    u, double = (2.0**-24 if dtype is SINGLE else 2.0**-53), 2.0**-53
    if dtype not in s.slack:
        parts = torch.linalg.vector_norm(s.g.even, dim=-1).sum(1) + torch.linalg.vector_norm(
            s.g.odd, dim=-1
        ).sum(1)
        A = s.t.matrices
        terms = len(s.t.offsets) * max(A.shape[-2:]) + 8
        squares = float(A.square().flatten(1).sum(1).max())
        s.slack[dtype] = 2.83 * ((len(s.g.offsets) + 6) * u * float(parts.max()) + terms * double * squares)
    return s.slack[dtype], 2.83 * (s.g.n + 8) * u * s.g.n


def _above(s: _Search, value: float) -> float:
    """An upper bound of a norm that was computed as ``value`` in double precision."""
    absolute, relative = _rounding(s, DOUBLE)
    return math.sqrt(value**2 * (1 + relative) + absolute)


def _largest(s: _Search, omega: np.ndarray, groups: np.ndarray) -> tuple[float, np.ndarray, int]:
    """The largest ‖A(ω)‖ among some points, and where it is: all eigenvalues, in double precision."""
    best, place = -1.0, 0
    for chunk in _chunks(s, len(omega)):
        top = torch.linalg.eigvalsh(_symbols(s, omega[chunk], groups[chunk], DOUBLE))[:, -1]
        s.count += len(top)
        value, i = top.max(0)
        if float(value) > best:
            best, place = float(value), chunk.start + int(i)
    return math.sqrt(max(best, 0.0)), omega[place], int(groups[place])


# ---------------------------------------------------------------- from below


def _begin(s: _Search, period: tuple[int, ...]) -> None:
    """A first lower bound from a few frequencies: corners of the plane and some at random."""
    corners = np.array(list(itertools.product(*((0.0, math.pi) if N > 1 else (0.0,) for N in period))))
    some = np.random.default_rng(1).uniform(0, math.pi, (20, len(period))) * (np.array(period) > 1)
    points = np.unique(np.concatenate([corners, some]), axis=0)
    _raise(s, *_estimate(s, *_every_group(points, len(s.g.even)), dtype=SINGLE))


def _estimate(
    s: _Search, omega: np.ndarray, groups: np.ndarray, dtype: torch.dtype = DOUBLE
) -> tuple[float, np.ndarray, int]:
    """About the largest ‖A(ω)‖ among some points, never above it but for rounding, and where it is."""
    best, place = -1.0, 0
    for chunk in _chunks(s, len(omega)):
        _, values = _top_vectors(
            _symbols(s, omega[chunk], groups[chunk], dtype), 1, 6 if dtype is SINGLE else 12
        )
        value, i = values[:, 0].max(0)
        if float(value) > best:
            best, place = float(value), chunk.start + int(i)
    return math.sqrt(max(best, 0.0)), omega[place], int(groups[place])


def _raise(s: _Search, value: float, omega: np.ndarray, group: int) -> bool:
    """Climb from a promising frequency to the peak, and try the waves there; whether θ has grown."""
    if value <= s.lower:
        return False
    omega, vectors = _climb(s, omega, group)
    lower, wave = ritz(s.t, group, omega, _inputs(s, vectors, omega, group))
    vector = None
    if s.lower < lower * (1 + 2 * s.width):
        better, vector = krylov(s.t, group, wave())
        lower = max(lower, better)
    if lower <= s.lower:
        return False
    s.lower, s.best, s.vector = lower, (group, omega), vector
    before, s.theta = s.theta, max(s.theta, s.lower * (1 + 0.995 * s.width))
    return s.theta > before


def _proven(s: _Search) -> float:
    """The lower end measured in double precision; until here it was good to about 1e-6."""
    if s.vector is None or s.best is None:
        return s.lower
    v = s.vector.double()
    value = torch.linalg.vector_norm(apply(s.t, s.best[0], v)) / torch.linalg.vector_norm(v)
    return float(value) * (1 - 1e-9)


def _climb(s: _Search, omega: np.ndarray, group: int, rounds: int = 5) -> tuple[np.ndarray, Tensor]:
    """To a local maximum of ‖A(ω)‖: with the top vector v held, vᴴ G(ω) v is a scalar polynomial, easily climbed.

    Returns the frequency and (n, J) vectors: the top two there and at a step to each side on every axis, which span how
    the top vector turns with the frequency.
    """
    moving = [axis for axis, d in enumerate(s.t.degree) if d > 0]
    steps = np.array([math.pi / (n + 1) for n in s.t.reach])
    offsets = s.g.offsets
    for _ in range(rounds if moving else 0):
        V, _ = _top_vectors(_symbols(s, omega[None], np.array([group]), DOUBLE), 1, 10)
        v = V[0, :, :1]
        even = (v.mH @ s.g.even[group].view(-1, s.g.n, s.g.n).to(DOUBLE) @ v).real.flatten().cpu().numpy()
        odd = (v.mH @ s.g.odd[group].view(-1, s.g.n, s.g.n).to(DOUBLE) @ v).imag.flatten().cpu().numpy()
        before = omega
        for scale in (1.0, 0.3, 0.1):
            around = np.array(
                list(
                    itertools.product(*([-2, -1, 0, 1, 2] if a in moving else [0] for a in range(len(steps))))
                )
            )
            tries = omega + around * steps * scale / 2
            angles = tries @ offsets.T
            omega = tries[(np.cos(angles) @ even - np.sin(angles) @ odd).argmax()]
        if np.abs(omega - before).max() < 1e-3 * steps.max():
            break
    sides = [omega] + [
        omega + sign * steps * (np.arange(len(steps)) == axis) for axis in moving for sign in (-1, 1)
    ]
    V, _ = _top_vectors(_symbols(s, np.array(sides), np.full(len(sides), group), DOUBLE), 2, 14)
    return omega, torch.cat(list(V), dim=1)


def _top_vectors(G: Tensor, count: int, steps: int) -> tuple[Tensor, Tensor]:
    """Top eigenvectors (F, n, count) and values (F, count): outright for small matrices, by block Lanczos for others.

    The start is fixed, so that the same layer always gives the same digits.
    """
    n = G.shape[-1]
    count = min(count, n)
    if n <= max(32, 2 * steps):
        values, vectors = torch.linalg.eigh(G)
        return vectors.flip(-1)[..., :count], values.flip(-1)[..., :count]
    start = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    block = torch.linalg.qr(start)[0].to(G.device, G.dtype).expand(len(G), -1, -1)
    Q, GQ = block, G @ block
    for _ in range(steps - 1):
        block = GQ[..., -2:]
        for _ in range(2):  # twice is enough
            block = block - Q @ (Q.mH @ block)
        block = torch.linalg.qr(block)[0]
        Q, GQ = torch.cat([Q, block], -1), torch.cat([GQ, G @ block], -1)
    values, turn = torch.linalg.eigh(Q.mH @ GQ)
    return Q @ turn.flip(-1)[..., :count], values.flip(-1)[..., :count]


def _inputs(s: _Search, vectors: Tensor, omega: np.ndarray, group: int) -> Tensor:
    """Input-channel vectors (c_in, J) from eigenvectors of G, which may live on the output side."""
    A = s.t.matrices[group]
    if A.shape[-1] <= A.shape[-2]:
        return vectors
    phase = torch.from_numpy(np.exp(1j * (s.t.offsets @ omega))).to(A.device)
    symbol = (phase.view(-1, 1, 1) * A).sum(0)
    return symbol.mH @ vectors.conj()


# ---------------------------------------------------------------- one channel


def _scalar(s: _Search, period: tuple[int, ...]) -> Interval:
    """Depthwise convolutions: ‖A(ω)‖ is the modulus of a scalar polynomial, tabulated finely enough."""
    slack = math.acos(1 / (1 + s.width / 4)) / max(_moving(s.t), 1)
    fine = tuple(math.ceil(math.pi * d / slack) if d else 1 for d in s.t.degree)
    circle = math.prod(period) <= math.prod(fine)
    size = period if circle else fine
    factor = 1.0 if circle else math.cos(sum(math.pi * d / M for d, M in zip(s.t.degree, fine, strict=True)))
    points, _ = _grid(size, (0.0,) * len(size), 1)
    best, where, group = -1.0, points[0], 0
    step = max(1, int(CHUNK_BYTES / (8 * max(len(s.g.even), len(s.g.offsets)))))
    for i in range(0, len(points), step):
        angles = torch.from_numpy(points[i : i + step] @ s.g.offsets.T).to(s.g.even.device)
        values = s.g.even[..., 0] @ angles.cos().T  # (groups, F)
        top, place = values.flatten().max(0)
        if float(top) > best:
            row, column = divmod(int(place), values.shape[1])
            best, where, group = float(top), points[i + column], row
    s.count = len(points) * len(s.g.even)
    value = math.sqrt(max(best, 0.0))
    _raise(s, value, where, group)
    upper = _above(s, value) / factor * (1 + 1e-12)
    s.lower = _proven(s)
    return Interval(s.lower, max(upper, s.lower), s.count, "frequency response of every channel")
