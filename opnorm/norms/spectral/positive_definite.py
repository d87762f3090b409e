"""Whether θ² I - G(ω) is positive definite at many frequencies, a proof that ‖A(ω)‖ ≤ θ, float rounding included.

Frequencies that differ along one axis only form a line. On a line the Gram symbol is a short polynomial in one variable,

    G(ω) = Σ_{b ≥ 0} P_b cos(ω b) + Q_b sin(ω b),

with complex P_b, Q_b that are summed over the other axes once. Only the lower block columns are formed, the ones that a
Cholesky factorization reads.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from opnorm._core.rounding import unit_roundoff
from opnorm.norms.spectral.frequency_response import Gram, Polyphase, block_columns

__all__ = ["DOUBLE", "SINGLE", "CholeskyTest", "PackedSymbol", "line_axis", "lines"]

SINGLE, DOUBLE = torch.complex64, torch.complex128
LINE_BYTES, CACHE_BYTES = 4e6, 4e6  # the lines that are held at once, and the matrices
FEW = 8  # for so many points the symbol is not packed in double precision unless it must be
MOST_ERROR = 0.06  # of θ²: where single precision can err by more than this, it is not tried


def line_axis(g: Gram) -> int:
    """The axis along which lines run: the last one on which the symbol moves."""
    moving = np.flatnonzero(g.offsets.any(0))
    return int(moving[-1]) if len(moving) else 0


def lines(g: Gram, omega: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    """The indices of the points of each line."""
    across = np.delete(omega, line_axis(g), axis=1)
    _, line, counts = np.unique(
        np.column_stack([groups, across]), axis=0, return_inverse=True, return_counts=True
    )
    return np.split(np.argsort(line.ravel(), kind="stable"), np.cumsum(counts)[:-1])


class CholeskyTest:
    """Factorizations of θ² I - G(ω) for one Gram symbol.

    Attributes:
        count: how many were made.
    """

    def __init__(self, t: Polyphase, g: Gram) -> None:
        self.g, self.count = g, 0
        self._packed: dict[torch.dtype, PackedSymbol] = {}
        self._traces = g.traces().cpu().numpy()
        lengths = torch.linalg.vector_norm(t.matrices.flatten(1), dim=1)
        self._sizes = (g.size(), len(t.offsets) * max(t.matrices.shape[-2:]) * float(lengths.max()) ** 2)

    def rounding(self, dtype: torch.dtype, trace: np.ndarray | float) -> np.ndarray | float:
        """A bound of the float error in an eigenvalue of θ² I - G(ω), or of G(ω).

        With unit roundoff u, D coefficients, and 2√2 for complex products: sums over them err by at most
        (2 D + 8) u Σ_δ ‖H_δ‖_F, the coefficients themselves by far less than 64 T c u ‖K‖_F² in double; a factorization by
        (n + 8) u times the trace of the matrix (Higham 2002, Thm 10.3), a diagonalization by as much times n times the norm.

        Args:
            dtype: SINGLE or DOUBLE.
            trace: that trace, or that product.
        """
        u = unit_roundoff(dtype)
        coefficients, kernel = self._sizes
        sums = (2 * len(self.g.offsets) + 8) * u * coefficients + 64 * unit_roundoff(DOUBLE) * kernel
        return 2.83 * (sums + (self.g.n + 8) * u * trace)

    def exceeding(
        self, omega: np.ndarray, groups: np.ndarray, theta2: np.ndarray, sure: bool = True
    ) -> np.ndarray:
        """The indices at which ‖A(ω)‖² ≤ θ² is not proved, first in single precision, then in double.

        Unless ``sure``, a few that single precision leaves are returned without a test in double.
        """
        left = np.arange(len(omega))
        cosines = np.cos(omega @ self.g.offsets.T)
        traces = self.g.n * theta2 - (cosines * self._traces[groups]).sum(1)
        for dtype in (SINGLE, DOUBLE):
            error = self.rounding(dtype, np.maximum(traces[left], 0))
            if dtype is SINGLE and np.any(error > MOST_ERROR * theta2[left]):
                continue
            left = left[self.indefinite(omega[left], groups[left], theta2[left] - error, dtype)]
            if not len(left) or (not sure and len(left) <= FEW):
                break
        return left

    def indefinite(
        self, omega: np.ndarray, groups: np.ndarray, theta2: np.ndarray, dtype: torch.dtype
    ) -> np.ndarray:
        """Whether each matrix is not proved to be positive definite."""
        if dtype not in self._packed:
            self._packed[dtype] = PackedSymbol(self.g, dtype)
        packed, bad = self._packed[dtype], np.zeros(len(omega), dtype=bool)
        for where, A in packed.shifted(omega, groups, theta2):
            bad[where] = packed.indefinite(A).cpu().numpy()
        self.count += len(omega)
        return bad


class PackedSymbol:
    """The lower block columns of a Gram symbol, each stored as one block of rows, in one precision."""

    def __init__(self, g: Gram, dtype: torch.dtype) -> None:
        self.g, self.axis, self.dtype = g, line_axis(g), dtype
        self.columns = block_columns(g.n)
        self.sizes = [(g.n - j) * (k - j) for j, k in self.columns]
        along = g.offsets[:, self.axis]
        order = np.argsort(np.abs(along), kind="stable")
        self.steps, self.counts = np.unique(np.abs(along), return_counts=True)
        self.across = np.delete(g.offsets, self.axis, axis=1)[order]
        self.signs = np.where(along[order] < 0, -1.0, 1.0)
        some = torch.from_numpy(order).to(g.even.device)
        self.even, self.odd = (H.to(dtype.to_real()).index_select(1, some) for H in (g.even, g.odd))
        self._buffers: dict[str, Tensor] = {}

    def _memory(self, name: str, *shape: int) -> Tensor:
        """An uninitialized tensor, in the memory that had this name before: new memory is slow to allocate."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = torch.empty(size, dtype=self.dtype, device=self.even.device)
        return self._buffers[name][:size].view(shape)

    def shifted(
        self, omega: np.ndarray, groups: np.ndarray, theta2: np.ndarray
    ) -> Iterator[tuple[np.ndarray, list[Tensor]]]:
        """θ² I - G at a few points at a time: their indices, and each block column of all of them, (F, rows, columns)."""
        found = lines(self.g, omega, groups)
        length = self.even.shape[-1]
        for count in sorted({len(line) for line in found}):
            equal = np.array([line for line in found if len(line) == count])
            few = max(1, int(LINE_BYTES / (16 * len(self.steps) * length)))
            for i in range(0, len(equal), few):
                these = equal[i : i + few]
                polynomials = self._polynomials(
                    np.delete(omega[these[:, 0]], self.axis, axis=1), groups[these[:, 0]]
                )
                part = max(4, int(CACHE_BYTES / (8 * length * len(these))))
                for j in range(0, count, part):
                    where = these[:, j : j + part]
                    angles = omega[where, self.axis][..., None] * self.steps
                    weights = np.concatenate([np.cos(angles), np.sin(angles)[..., self.steps > 0]], -1)
                    shift = torch.from_numpy(theta2[where.ravel()]).to(polynomials)
                    yield (
                        where.ravel(),
                        self._evaluated(torch.from_numpy(weights).to(polynomials), polynomials, shift),
                    )

    def _evaluated(self, weights: Tensor, polynomials: Tensor, shift: Tensor) -> list[Tensor]:
        """The block columns at weights (lines, points, coefficients), with a number added on each diagonal."""
        columns = []
        for at, ((j, k), part) in enumerate(
            zip(self.columns, polynomials.split([2 * size for size in self.sizes], -1), strict=True)
        ):
            column = self._memory(f"column {at}", len(shift), self.g.n - j, k - j)
            torch.bmm(weights, part, out=torch.view_as_real(column).view(*weights.shape[:2], -1))
            torch.view_as_real(column)[..., 0].diagonal(dim1=1, dim2=2).add_(shift[:, None])
            columns.append(column)
        return columns

    def _polynomials(self, across: np.ndarray, groups: np.ndarray) -> Tensor:
        """-P_b for every step b, then -Q_b for those above 0: (lines, coefficients, 2 packed), re and im in turn."""
        angles = across @ self.across.T
        cos, sin = np.cos(angles), np.sin(angles)
        even = np.stack([-cos, self.signs * sin], 1)  # (lines, P or Q, offsets)
        odd = np.stack([-sin, -self.signs * cos], 1)
        moving, length = int((self.steps > 0).sum()), self.even.shape[-1]
        out = torch.view_as_real(self._memory("P", len(across) * (len(self.steps) + moving), length))
        out = out.view(len(across), -1, length, 2)
        first = 0
        which = torch.from_numpy(groups).to(out.device)
        for b, count in enumerate(self.counts):
            some, rows = slice(first, first + count), [b] + [moving + b] * int(self.steps[b] > 0)
            first += count
            for part, (weights, H) in enumerate(((even, self.even), (odd, self.odd))):
                w = torch.from_numpy(weights[:, : len(rows), some]).to(H)
                one = len(H) == 1
                out[:, rows, :, part] = (
                    (w.flatten(0, 1) @ H[0, some]).view(len(w), -1, length) if one else w @ H[which, some]
                )
        return out.flatten(2)

    def indefinite(self, columns: list[Tensor]) -> Tensor:
        """Whether each matrix of a batch is not proved positive definite; overwrites the block columns (F, rows, columns).

        Right-looking Cholesky factorization of a few matrices at a time: the library's own takes them one by one, without
        matrix products, at less than half the speed.
        """
        bad = torch.zeros(len(columns[0]), dtype=torch.bool, device=columns[0].device)
        for at, column in enumerate(columns):
            width = column.shape[-1]
            D, info = torch.linalg.cholesky_ex(column[:, :width])
            bad |= info != 0
            rest = column[:, width:]
            if not rest.shape[1]:
                break
            below = self._memory("below", *rest.shape)
            torch.linalg.solve_triangular(D.mH, rest, upper=True, left=False, out=below)
            for later in columns[at + 1 :]:
                rows = below[:, -later.shape[1] :]
                later.baddbmm_(rows, rows[:, : later.shape[2]].mH, alpha=-1)
        return bad
