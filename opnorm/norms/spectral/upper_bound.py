"""A certified interval for the ℓ2 norm of a zero-padded convolution.

From above: the convolution is a block of a convolution on a circle of N ≥ n + overhang places, for any N of that kind and
any phase φ (a diagonal unitary map turns one into the other), whose norm is the largest of the small matrices A(ω) at the
N frequencies ω_j = (2π j + φ) / N. That none exceeds θ is shown by a Cholesky factorization of θ² I - G(ω_j), rounding
included. When N is large, the frequencies are not looked at one by one: the plane is covered by cells, and

    ‖A(ω_c)‖ ≤ θ cos(η)  at the center of every cell, η = Σ_axes degree · half width,

shows ‖A(ω)‖ ≤ θ everywhere: if the maximum S > θ were attained at ω* in a cell, then t ↦ Re uᴴ A(ω) v, a trigonometric
polynomial bounded by S, could not fall from ω* to the center below S cos(η) (M. Riesz; Bernstein and Szegő). Cells that
fail are split. So a bound for every image size costs a few hundred small factorizations.

From below: see ritz.py. The two meet by raising the lower end: wherever a factorization (definite.py) fails, the matrix
there shows a better wave to try.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from opnorm._core.layers import Shape
from opnorm.norms.spectral.frequency_response import Gram, Taps, gram
from opnorm.norms.spectral.lower_bound import attained, ritz
from opnorm.norms.spectral.positive_definite import DOUBLE, SINGLE, Definite, lines

__all__ = ["Interval", "certify", "circular", "half_grid"]

CHUNK_BYTES = 16e6  # the matrices that are looked at between two looks at what they showed
FIRST_CELL = 0.25  # η of the first cells: cos is 0.969, so they settle all but the top 3 % of frequencies
WIDE = 0.02  # intervals that seldom need a better lower end than one wave gives
EXACT_WORK = 2e7  # up to so many operations, all singular values are computed outright
SAFE_EXPONENT = 16  # of the largest weight: from 2^-16 to 2^16, float32 has room for all sums of products
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
    best: np.ndarray | None = None  # the frequency behind the lower end
    rough: bool = False  # the lower end need not be the best
    still: bool = False  # the lower end is given, and stays
    count: int = 0  # small matrices looked at, beside those of ``definite``
    definite: Definite = field(init=False)
    grams: dict[torch.dtype, Gram] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.definite = Definite(self.t, self.g)
        self.grams[DOUBLE] = self.g

    def found(self, upper: float, note: str) -> Interval:
        """The interval with this upper end."""
        return Interval(self.lower, max(upper, self.lower), self.count + self.definite.count, note)


def certify(t: Taps, width: float = 5e-3) -> Interval:
    """The interval for one convolution, of relative width ``width`` where the bound allows it.

    Args:
        t: the convolution, reduced to stride 1 by :func:`opnorm.norms.spectral.frequency_response.taps`.
        width: upper / lower - 1 to aim at. What is reached can be wider on small maps, where the circle is a poor stand-in
            for the border.
    """
    scaled, exponent = _scaled(t)
    if exponent is None:
        return Interval(0.0, 0.0, 0, "all taps are zero")
    g, rough = gram(scaled), width >= WIDE
    found = _certify(_Search(scaled, g, width, rough=rough))
    if rough and found.upper > found.lower * (1 + width):
        found = _certify(_Search(scaled, g, width))
    found.lower, found.upper = math.ldexp(found.lower, exponent), math.ldexp(found.upper, exponent)
    return found


def _scaled(t: Taps) -> tuple[Taps, int | None]:
    """By a power of two, exactly, where squares might overflow or underflow in float32. And its exponent, None for zeros."""
    largest = max(abs(float(end)) for end in torch.aminmax(t.matrices))
    if largest == 0:
        return t, None
    exponent = math.frexp(largest)[1]
    if abs(exponent) <= SAFE_EXPONENT:
        return t, 0
    return replace(t, matrices=torch.ldexp(t.matrices, torch.tensor(-exponent)), kernels={}), exponent


def circular(t: Taps, size: Shape, lower: float, width: float = 5e-3) -> float:
    """An upper bound for the ℓ2 norm of a convolution with circular padding, a block circulant map.

    Its norm is the largest ‖A(ω)‖ at the frequencies of its own circle.

    Args:
        t: the convolution, reduced to stride 1; its own sizes do not matter.
        size: of the circle, per axis.
        lower: a lower bound of the norm.
        width: how far above it the bound may be, relatively, before it is made any smaller.
    """
    scaled, exponent = _scaled(t)
    if exponent is None:
        return 0.0
    s = _Search(scaled, gram(scaled), width, lower=math.ldexp(lower, -exponent), still=True)
    s.theta = s.lower * (1 + 0.995 * width)
    return math.ldexp(_check_all(s, *_grid(size, (0.0,) * len(size), len(s.g.even))), exponent)


def _certify(s: _Search) -> Interval:
    t, g = s.t, s.g
    period = tuple(N if d else 1 for N, d in zip(t.period(), t.degree, strict=True))
    eta = max(FIRST_CELL, math.acos(1 / (1 + 0.9 * s.width)))  # wide intervals: so that no cell need be split
    cells = tuple(max(1, math.ceil(math.pi * d * _moving(t) / eta)) for d in t.degree)
    work = len(g.even) * math.prod(period) / 2 * 10 * g.n**3
    if g.n == 1:
        return _scalar(s, period)
    _begin(s, period)
    if work <= EXACT_WORK or math.prod(period) <= (4 if eta == FIRST_CELL else 1) * math.prod(cells):
        return _on_grids(s, period, exactly=work <= EXACT_WORK)
    return s.found(_by_cells(s, cells), "frequency cells, any input size")


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
    return s.found(upper, note)


def _averaged(s: _Search, circle: tuple[int, ...]) -> float:
    """What the best frequency is worth on a small map, where no wave is pure.

    ‖M x‖² is the mean of ‖A(ω_j) X(ω_j)‖² over the circle, X the transform of x; so at most the mean of f_j ‖X(ω_j)‖² with
    f_j = λ_max(G(ω_j)), and that is Σ_channels x_cᵀ T x_c for the scalar Toeplitz matrix T of the map with symbol f. Its top
    eigenvalue bounds ‖M‖². What is lost is only that the best channels differ from one frequency to the next.
    """
    phase = (0.0,) * len(circle)
    points = half_grid(circle, phase)
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
        bad = s.definite.exceeding(points[left], groups[left], tried**2)
        found[left] = tried
        left, margin = left[bad], 2 * margin
    return found


def _phases(s: _Search, period: tuple[int, ...]) -> list[tuple[float, ...]]:
    """Phases 0 and ½ on each axis (they keep the symmetry ω -> -ω), those first whose grids avoid the peak."""
    choices = [(0.0, 0.5) if N > 1 else (0.0,) for N in period]
    peak = s.best if s.best is not None else np.zeros(len(period))
    place = peak * np.array(period) / (2 * math.pi)

    def distance(phase: tuple[float, ...]) -> float:
        return -sum(
            abs((p - f + 0.5) % 1 - 0.5) for p, f, N in zip(place, phase, period, strict=True) if N > 1
        )

    return sorted(itertools.product(*choices), key=distance)


def _grid(period: tuple[int, ...], phase: tuple[float, ...], groups: int) -> tuple[np.ndarray, np.ndarray]:
    """The frequencies of a circle, one of each pair ±ω; every one for every group."""
    return _every_group(half_grid(period, phase), groups)


def half_grid(sizes: tuple[int, ...], phase: tuple[float, ...]) -> np.ndarray:
    """The frequencies 2π (j + phase) / size, one of each pair ±ω (the phases are 0 or ½)."""
    places = np.indices(sizes).reshape(len(sizes), -1).T
    mirrored = (-places - np.round(2 * np.array(phase)).astype(int)) % np.array(sizes)
    rank = np.array([math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))])
    first = places @ rank <= mirrored @ rank
    return (places[first] + np.array(phase)) * 2 * math.pi / np.array(sizes)


def _every_group(points: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    return np.tile(points, (groups, 1)), np.repeat(np.arange(groups), len(points))


def _check_all(s: _Search, points: np.ndarray, groups: np.ndarray) -> float:
    """A bound θ that no point exceeds; it grows only where a point proves that it must."""
    for some in _portions(s, points, groups):
        omega, group = points[some], groups[some]
        _settle(s, omega, group, _exceed(s, omega, group, sure=False))
    return s.theta


def _settle(s: _Search, omega: np.ndarray, groups: np.ndarray, bad: np.ndarray) -> None:
    """Raise the lower end, or else θ, until none of the ``bad`` points exceeds θ."""
    margin = min(s.width, 5e-3) / 20
    while len(bad):
        value, where, group = _estimate(s, omega[bad], groups[bad], SINGLE if s.width > 1e-3 else DOUBLE)
        if value <= s.theta:  # or else rounding alone hid that they do not exceed it
            bad = bad[_exceed(s, omega[bad], groups[bad])]
            if not len(bad):
                return
        if not _raise(s, value, where, group):
            if s.g.n <= 64 or s.width < 1e-4:
                value = _above(s, _largest(s, omega[bad], groups[bad])[0])
            s.theta = max(s.theta * (1 + 1e-9), value * (1 + margin))
            margin *= 2  # the estimate came from below, and can be short of the truth
        bad = bad[_exceed(s, omega[bad], groups[bad])]


# ---------------------------------------------------------------- cells


def _by_cells(s: _Search, cells: tuple[int, ...]) -> float:
    """A bound θ that ‖A(ω)‖ exceeds nowhere."""
    degree = np.array(s.t.degree)
    half = np.where(degree > 0, math.pi / np.array(cells), 0.0)
    points, groups = _every_group(half_grid(cells, (0.5,) * len(cells)), len(s.g.even))
    halves = np.tile(half, (len(points), 1))
    s.theta = s.lower * (1 + 0.995 * s.width)
    while len(points):
        keep_points, keep_groups, keep_halves = [], [], []
        for some in _portions(s, points, groups):
            omega, group, width = points[some], groups[some], halves[some]
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


def _portions(s: _Search, points: np.ndarray, groups: np.ndarray) -> Iterator[np.ndarray]:
    """The points' indices, some lines at a time, in random order: the peak's neighborhood is met early."""
    found = lines(s.g, points, groups)
    some: list[np.ndarray] = []
    for i in np.random.default_rng(0).permutation(len(found)):
        some.append(found[i])
        if sum(map(len, some)) * 8 * s.g.n**2 >= CHUNK_BYTES:
            yield np.concatenate(some)
            some = []
    if some:
        yield np.concatenate(some)


def _symbols(s: _Search, omega: np.ndarray, groups: np.ndarray, dtype: torch.dtype) -> Tensor:
    """G at pairs (ω, group), (F, n, n)."""
    if dtype not in s.grams:
        s.grams[dtype] = s.g.single()
    return s.grams[dtype].at(omega, groups)


def _exceed(
    s: _Search, omega: np.ndarray, groups: np.ndarray, factor: np.ndarray | float = 1.0, sure: bool = True
) -> np.ndarray:
    """The indices at which ‖A(ω)‖ ≤ θ·factor is not shown."""
    return s.definite.exceeding(omega, groups, (s.theta * factor * np.ones(len(omega))) ** 2, sure)


def _above(s: _Search, value: float) -> float:
    """An upper bound of a norm that was computed as ``value`` in double precision."""
    return math.sqrt(value**2 + s.definite.rounding(DOUBLE, s.g.n * value**2))


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
    some = np.random.default_rng(1).uniform(0, math.pi, (8, len(period))) * (np.array(period) > 1)
    points = np.unique(np.concatenate([corners, some]), axis=0)
    _raise(s, *_estimate(s, *_every_group(points, len(s.g.even)), SINGLE, 6))


def _estimate(
    s: _Search, omega: np.ndarray, groups: np.ndarray, dtype: torch.dtype = DOUBLE, steps: int = 12
) -> tuple[float, np.ndarray, int]:
    """About the largest ‖A(ω)‖ among some points, never above it but for rounding, and where it is."""
    best, place = -1.0, 0
    for chunk in _chunks(s, len(omega)):
        _, values = _top_vectors(_symbols(s, omega[chunk], groups[chunk], dtype), 1, steps)
        value, i = values[:, 0].max(0)
        if float(value) > best:
            best, place = float(value), chunk.start + int(i)
    return math.sqrt(max(best, 0.0)), omega[place], int(groups[place])


def _raise(s: _Search, value: float, omega: np.ndarray, group: int) -> bool:
    """Climb from a promising frequency to the peak, and try the waves there; whether θ has grown.

    A rough lower end is that of one wave, without the climb.
    """
    if s.still or value <= s.lower:
        return False
    if s.rough:
        V, _ = _top_vectors(_symbols(s, omega[None], np.array([group]), SINGLE), 1, 10)
        lower, _ = ritz(s.t, group, omega, _both_sides(s, V[0].to(DOUBLE), omega[None], group)[0])
    else:
        omega, inputs, outputs = _climb(s, omega, group)
        lower = attained(s.t, group, omega, inputs, outputs, s.width / 50)
    if lower <= s.lower:
        return False
    s.lower, s.best = lower, omega
    before, s.theta = s.theta, max(s.theta, s.lower * (1 + 0.995 * s.width))
    return s.theta > before


def _climb(s: _Search, omega: np.ndarray, group: int, rounds: int = 5) -> tuple[np.ndarray, Tensor, Tensor]:
    """To a local maximum of ‖A(ω)‖: with the top vector v held, vᴴ G(ω) v is a scalar polynomial, easily climbed.

    Returns the frequency and, there and at a step to each side on every axis and diagonal, the top singular vectors on the
    input and on the output side, (c_in, J) and (c_out, J): they span how the best channels turn with the frequency.
    """
    moving = np.array(s.t.degree) > 0
    steps = np.array([math.pi / (n + 1) for n in s.t.reach])
    # the vectors from here to the end are a guess to be measured later: single precision is enough
    V, _ = _top_vectors(_symbols(s, omega[None], np.array([group]), SINGLE), 2, 10)
    fine = _around(moving, 2)
    for _ in range(rounds if moving.any() else 0):
        p, q = s.grams[SINGLE].form(V[0, :, 0], group)
        before = omega
        for scale in (1.0, 0.3, 0.1):
            tries = omega + fine * steps * scale / 2
            angles = tries @ s.g.offsets.T
            omega = tries[(np.cos(angles) @ p - np.sin(angles) @ q).argmax()]
        if np.abs(omega - before).max() < 1e-2 * steps.max():
            break
        V, _ = _top_vectors(_symbols(s, omega[None], np.array([group]), SINGLE), 2, 5, V[0])
    sides = omega + steps * _around(moving, 1)
    V, _ = _top_vectors(_symbols(s, sides, np.full(len(sides), group), SINGLE), 2, 6, V[0])
    few = torch.arange(V.shape[-1], device=V.device)[None] <= torch.tensor(
        [[1], *[[0]] * (len(sides) - 1)]
    ).to(V.device)
    return omega, *_both_sides(s, V.to(DOUBLE).mT[few].mT, sides[few.nonzero()[:, 0].cpu().numpy()], group)


def _around(moving: np.ndarray, far: int) -> np.ndarray:
    """The whole numbers from -far to far on every axis that moves, the origin first."""
    every = itertools.product(*(range(-far, far + 1) if m else (0,) for m in moving))
    return np.array(sorted(every, key=lambda place: any(place)))


def _top_vectors(G: Tensor, count: int, steps: int, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Top eigenvectors (F, n, count) and values (F, count): outright for small matrices, by block Lanczos for others.

    The start (n, 2) is fixed where none is given, so that the same layer always gives the same digits.
    """
    n = G.shape[-1]
    count = min(count, n)
    if n <= max(32, 2 * steps):
        values, vectors = torch.linalg.eigh(G)
        return vectors.flip(-1)[..., :count], values.flip(-1)[..., :count]
    if start is None:
        start = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    block = _orthonormal_pair(start.to(G.device, G.dtype)[None]).expand(len(G), -1, -1)
    Q, GQ = block, G @ block
    for _ in range(steps - 1):
        block = GQ[..., -2:]
        for _ in range(2):  # twice is enough
            block = _orthonormal_pair(torch.baddbmm(block, Q, Q.mH @ block, alpha=-1))
        Q, GQ = torch.cat([Q, block], -1), torch.cat([GQ, G @ block], -1)
    values, turn = torch.linalg.eigh(Q.mH @ GQ)
    return Q @ turn.flip(-1)[..., :count], values.flip(-1)[..., :count]


def _orthonormal_pair(block: Tensor) -> Tensor:
    """The two columns of (F, n, 2) orthonormalized; on a GPU without the library's QR, which takes them one by one."""
    if block.device.type == "cpu":
        return torch.linalg.qr(block)[0]
    a, b = block.unbind(-1)
    a = a / torch.linalg.vector_norm(a, dim=-1, keepdim=True).clamp(min=1e-30)
    b = b - torch.linalg.vecdot(a, b)[:, None] * a
    b = b / torch.linalg.vector_norm(b, dim=-1, keepdim=True).clamp(min=1e-30)
    return torch.stack([a, b], -1)


def _both_sides(s: _Search, vectors: Tensor, omega: np.ndarray, group: int) -> tuple[Tensor, Tensor]:
    """Input and output channel vectors (c_in, J), (c_out, J) from eigenvectors of G, each at a frequency of its own."""
    A = s.t.matrices[group]
    from_inputs = A.shape[-1] <= A.shape[-2]
    first = vectors if from_inputs else vectors.conj()
    moved = torch.bmm(
        A if from_inputs else A.mT, torch.cat([first.real, first.imag], dim=1).expand(len(A), -1, -1)
    )
    sign = 1 if from_inputs else -1
    phase = torch.from_numpy(np.exp(sign * 1j * (s.t.offsets @ omega.T))).to(A.device)
    second = (torch.complex(*moved.chunk(2, dim=-1)) * phase[:, None]).sum(0)
    second = second / torch.linalg.vector_norm(second, dim=0).clamp(min=1e-300)
    return (first, second) if from_inputs else (second, first)


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
    return s.found(upper, "frequency response of every channel")
