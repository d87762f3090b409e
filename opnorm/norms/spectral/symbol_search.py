"""The search for the largest ‖A(ω)‖ of one convolution: its state, and tests and estimates at many frequencies."""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from opnorm.norms.spectral.frequency_response import Gram, Polyphase
from opnorm.norms.spectral.lower_bound import lower_bound
from opnorm.norms.spectral.positive_definite import DOUBLE, SINGLE, CholeskyTest

__all__ = ["SearchOnCircle", "SymbolSearch", "every_group", "top_vectors"]

CHUNK_BYTES = 16e6  # the matrices that are tested between two uses of the results
SMALL = 32  # channels, up to which all eigenvalues are quicker than an iteration
FIRST_FREQUENCIES = 8  # at random, in addition to the corners of the plane


def every_group(points: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Each frequency once for each group: frequencies (F, axes) and groups (F,)."""
    return np.tile(points, (groups, 1)), np.repeat(np.arange(groups), len(points))


class SymbolSearch:
    """The bounds found so far for one convolution, and the next steps to better ones.

    Attributes:
        t: the convolution.
        g: its Gram symbol.
        relative_width: of the interval to aim at.
        lower: a value that ‖M‖ attains.
        theta: no test so far has shown that a point exceeds it.
        best: the frequency of the wave that attains the lower end.
        fixed: the lower end is given, and stays.
        test: factorizations at many frequencies.
        count: the number of small matrices that were diagonalized.
    """

    def __init__(
        self, t: Polyphase, g: Gram, relative_width: float, fixed_lower: float | None = None
    ) -> None:
        self.t, self.g, self.relative_width = t, g, relative_width
        self.fixed, self.lower = fixed_lower is not None, fixed_lower or 0.0
        self.theta, self.best, self.count = 0.0, np.zeros(len(t.reach)), 0
        self.test = CholeskyTest(t, g)

    def target(self) -> float:
        """The least θ for which the interval is as narrow as asked for, with a little to spare."""
        return self.lower * (1 + 0.995 * self.relative_width)

    # ------------------------------------------------------------ small matrices

    def chunks(self, count: int) -> list[slice]:
        """Slices of a range, each of so many matrices as are held at once."""
        size = max(8, int(CHUNK_BYTES / (8 * self.g.n**2)))
        return [slice(i, i + size) for i in range(0, count, size)]

    def portions(self, count: int) -> list[np.ndarray]:
        """The numbers below ``count``, in random order, so that some near the peak come early; a chunk at a time."""
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
        return [order[some] for some in self.chunks(count)]

    def exceeding(
        self, omega: np.ndarray, groups: np.ndarray, factor: np.ndarray | float = 1.0
    ) -> np.ndarray:
        """The indices at which ‖A(ω)‖ ≤ θ·factor is not proved."""
        return self.test.exceeding(omega, groups, (self.theta * factor * np.ones(len(omega))) ** 2)

    def above(self, value: float) -> float:
        """An upper bound of a norm that was computed as ``value`` in double precision."""
        return math.sqrt(value**2 + self.test.rounding(DOUBLE, self.g.n * value**2))

    def largest(self, omega: np.ndarray, groups: np.ndarray) -> tuple[float, np.ndarray, int]:
        """The largest ‖A(ω)‖ among some points, its frequency and group: all eigenvalues, in double precision."""
        self.count += len(omega)
        chunks = self.chunks(len(omega))
        tops = [torch.linalg.eigvalsh(self.g.at(omega[c], groups[c]))[:, -1] for c in chunks]
        return _top(torch.cat(tops), omega, groups)

    def estimate(
        self, omega: np.ndarray, groups: np.ndarray, dtype: torch.dtype = DOUBLE, steps: int = 12
    ) -> tuple[float, np.ndarray, int]:
        """About the largest ‖A(ω)‖ among some points, never above it but for rounding, its frequency and group."""
        chunks = self.chunks(len(omega))
        g = self.test.gram(dtype)
        tops = [_top_values(g.at(omega[c], groups[c]), steps) for c in chunks]
        return _top(torch.cat(tops), omega, groups)

    # ------------------------------------------------------------ from below

    def begin(self, period: tuple[int, ...]) -> None:
        """A first lower bound from a few frequencies: corners of the plane and some at random."""
        corners = itertools.product(*((0.0, math.pi) if N > 1 else (0.0,) for N in period))
        draw = torch.Generator().manual_seed(1)
        some = torch.rand(FIRST_FREQUENCIES, len(period), dtype=torch.float64, generator=draw)
        inside = (some * math.pi * torch.tensor([N > 1 for N in period])).tolist()
        points = np.array(sorted({*corners, *map(tuple, inside)}))
        self.improve(*self.estimate(*every_group(points, len(self.g.even)), SINGLE, 6))

    def improve(self, value: float, omega: np.ndarray, group: int) -> bool:
        """Climb from a frequency with ‖A(ω)‖ about ``value`` to the peak, and try the waves there; whether θ has grown."""
        if self.fixed or value <= self.lower:
            return False
        omega, inputs, outputs = self._climb(omega, group)
        lower = lower_bound(self.t, group, omega, inputs, outputs, self.relative_width / 50)
        if lower <= self.lower:
            return False
        self.lower, self.best = lower, omega
        before, self.theta = self.theta, max(self.theta, self.target())
        return self.theta > before

    def _climb(self, omega: np.ndarray, group: int, rounds: int = 5) -> tuple[np.ndarray, Tensor, Tensor]:
        """To a local maximum of ‖A(ω)‖: with the top vector v held, vᴴ G(ω) v is a scalar polynomial, easily climbed.

        Returns the frequency and, there and at a step to each side on every axis and diagonal, the top singular vectors on
        the input and on the output side, (c_in, J) and (c_out, J): they span how the best channels change with ω.
        """
        moving = np.array(self.t.degree) > 0
        steps = np.array([math.pi / (n + 1) for n in self.t.reach])
        # the vectors from here on are a guess, measured later: single precision is enough
        g = self.test.gram(SINGLE)
        V, _ = top_vectors(g.at(omega[None], group), 2, 10)
        fine = _around(moving, 2)
        for _ in range(rounds if moving.any() else 0):
            p, q = g.form(V[0, :, 0], group)
            before = omega
            for scale in (1.0, 0.3, 0.1):
                tries = omega + fine * steps * scale / 2
                angles = tries @ self.g.offsets.T
                omega = tries[(np.cos(angles) @ p - np.sin(angles) @ q).argmax()]
            if np.abs(omega - before).max() < 1e-2 * steps.max():
                break
            V, _ = top_vectors(g.at(omega[None], group), 2, 5, V[0])
        sides = omega + steps * _around(moving, 1)
        V, _ = top_vectors(g.at(sides, group), 2, 6, V[0])
        directions = torch.cat([V[0], *V[1:, :, :1]], 1).to(DOUBLE)  # two at ω itself, one at each side
        at = sides[[0] * (V.shape[2] - 1) + list(range(len(sides)))]
        return omega, *self._both_sides(directions, at, group)

    def _both_sides(self, vectors: Tensor, omega: np.ndarray, group: int) -> tuple[Tensor, Tensor]:
        """Input and output channel vectors (c_in, J), (c_out, J) from eigenvectors of G, each at its own frequency."""
        A = self.t.matrices[group]
        from_inputs = A.shape[-1] <= A.shape[-2]
        first = vectors if from_inputs else vectors.conj()
        both = torch.cat([first.real, first.imag], dim=1)
        images = torch.bmm(A if from_inputs else A.mT, both.expand(len(A), -1, -1))
        sign = 1 if from_inputs else -1
        phase = torch.from_numpy(np.exp(sign * 1j * (self.t.offsets @ omega.T))).to(A.device)
        second = (torch.complex(*images.chunk(2, dim=-1)) * phase[:, None]).sum(0)
        second = second / torch.linalg.vector_norm(second, dim=0).clamp(min=1e-300)
        return (first, second) if from_inputs else (second, first)


class SearchOnCircle(SymbolSearch):
    """The same for circular padding, where each ‖A(ω)‖ at a frequency of the circle is attained."""

    def __init__(self, t: Polyphase, g: Gram, relative_width: float, size: tuple[int, ...]) -> None:
        super().__init__(t, g, relative_width)
        self.size = np.array(size)

    def improve(self, value: float, omega: np.ndarray, group: int) -> bool:
        """Try the frequencies of the circle around one with ‖A(ω)‖ about ``value``; whether θ has grown."""
        if value <= self.lower:
            return False
        places = omega * self.size / (2 * math.pi)
        on_circle = np.abs(places - places.round()).max() < 1e-6
        near = places.round() + (0 if on_circle else _around(np.array(self.t.degree) > 0, 1))
        near = np.atleast_2d(near) * 2 * math.pi / self.size
        value, omega, _ = self.estimate(near, np.full(len(near), group))
        lower = math.sqrt(max(value**2 - float(self.test.rounding(DOUBLE, self.g.n * value**2)), 0.0))
        if lower <= self.lower:
            return False
        self.lower, self.best = lower, omega
        before, self.theta = self.theta, max(self.theta, self.target())
        return self.theta > before


def _top(squares: Tensor, omega: np.ndarray, groups: np.ndarray) -> tuple[float, np.ndarray, int]:
    """The root of the largest of ‖A(ω)‖², its frequency and group."""
    at = int(squares.argmax())
    return math.sqrt(max(float(squares[at]), 0.0)), omega[at], int(groups[at])


def _around(moving: np.ndarray, far: int) -> np.ndarray:
    """The whole numbers from -far to far on every axis that moves, the origin first."""
    every = itertools.product(*(range(-far, far + 1) if m else (0,) for m in moving))
    return np.array(sorted(every, key=lambda place: any(place)))


def _top_values(G: Tensor, steps: int) -> Tensor:
    """The top eigenvalues (F,) of Hermitian matrices (F, n, n), as from :func:`top_vectors`."""
    small = G.shape[-1] <= max(SMALL, 2 * steps)
    return torch.linalg.eigvalsh(G)[:, -1] if small else top_vectors(G, 1, steps)[1][:, 0]


def top_vectors(G: Tensor, count: int, steps: int, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Top eigenvectors (F, n, count) and values (F, count) of Hermitian matrices (F, n, n).

    All eigenvalues of small ones; for others a block Lanczos iteration with blocks of two vectors, from ``start`` (n, 2), or
    from a fixed random one, so that the same layer always gives the same digits.
    """
    n = G.shape[-1]
    count = min(count, n)
    if n <= max(SMALL, 2 * steps):
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
    """The two columns of (F, n, 2) orthonormalized; the library's QR takes matrices one by one on a GPU."""
    a, b = block.unbind(-1)
    a = a / torch.linalg.vector_norm(a, dim=-1, keepdim=True).clamp(min=1e-30)
    b = b - torch.linalg.vecdot(a, b)[:, None] * a
    b = b / torch.linalg.vector_norm(b, dim=-1, keepdim=True).clamp(min=1e-30)
    return torch.stack([a, b], -1)
