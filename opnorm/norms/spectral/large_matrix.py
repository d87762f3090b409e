"""The singular values at the ends of a matrix that is read in panels: certified, without a copy of it in float64.

Small matrices: all singular values in float64. Large ones: Lanczos iteration in float32 from a random start. Its value,
measured in float64, is a true lower bound; the upper end is right but for a stated probability (Kuczyński & Woźniakowski
1992).
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from opnorm._core.lanczos import lanczos, steps_for
from opnorm._core.linear_map import LinearMap
from opnorm._core.lp import dual, lp_norm, power_of_two
from opnorm._core.rounding import PRODUCT, unit_roundoff
from opnorm.norms.norm import Norm

__all__ = ["PanelMatrix", "extreme_singular_values", "largest_singular_value"]

DENSE = 512  # up to this many rows or columns, all singular values are computed
NARROW = 2e-4  # relative widths below which float32 does not do
CHUNK = 5 * 2**20  # entries converted to float64 at once: so many that malloc gives the memory back
SMALLEST = 2.0**-1000


class PanelMatrix(NamedTuple):
    """A matrix that is read in panels of rows.

    Attributes:
        shape: its rows and columns.
        rows: the rows from the one number up to the other, in floating point of any precision.
        core: of a product of a tall and a wide matrix, a square matrix of as many rows as the rank, with the same nonzero
            singular values, and how far rounding may have moved these.
    """

    shape: tuple[int, int]
    rows: Callable[[int, int], Tensor]
    core: tuple[Tensor, float] | None = None

    @classmethod
    def of(cls, W: Tensor) -> "PanelMatrix":
        """A matrix that is there as a whole."""
        return cls((W.shape[0], W.shape[1]), lambda a, b: W[a:b])

    @classmethod
    def product(cls, B: Tensor, A: Tensor) -> "PanelMatrix":
        """B A of a low rank, float64, whose rows are multiplied when they are read."""
        core = torch.linalg.qr(B, mode="r").R @ torch.linalg.qr(A.T, mode="r").R.T
        length = float(torch.linalg.matrix_norm(B) * torch.linalg.matrix_norm(A))
        error = 8 * (len(B) + A.shape[1]) * unit_roundoff(torch.float64) * length
        return cls((B.shape[0], A.shape[1]), lambda a, b: B[a:b] @ A, (core, error))

    def panels(self, entries: int = CHUNK) -> Iterator[Tensor]:
        """All rows in float64, some at a time."""
        step = max(1, entries // max(self.shape[1], 1))
        for start in range(0, self.shape[0], step):
            yield self.rows(start, min(start + step, self.shape[0])).to(torch.float64)

    def times(self, V: Tensor) -> Tensor:
        """V Wᵀ for rows V (B, n), in float64."""
        return torch.cat([V @ P.T for P in self.panels()], 1)

    def times_transposed(self, U: Tensor) -> Tensor:
        """U W for rows U (B, m), in float64."""
        total, start = U.new_zeros(len(U), self.shape[1]), 0
        for P in self.panels():
            total += U[:, start : start + len(P)] @ P
            start += len(P)
        return total


@torch.no_grad()
def largest_singular_value(
    W: PanelMatrix, largest_entry: float, relative_width: float = 5e-3, failure_probability: float = 1e-9
) -> Norm:
    """‖W‖_2 as an interval that holds it, rounding included.

    Args:
        W: the matrix, with finite entries.
        largest_entry: max |W_ij|.
        relative_width: upper / lower - 1 to aim at.
        failure_probability: with which the upper end may be wrong; the method says so where it is used.

    Source: Kuczyński & Woźniakowski 1992, Theorem 4.2.
    """
    if largest_entry == 0 or 0 in W.shape:
        return Norm.of(0.0, 0.0, "exact: all entries are zero")
    if W.core is not None:
        core, error = W.core
        found = extreme_singular_values(PanelMatrix.of(core), float(core.abs().max()))[0]
        return Norm(torch.clamp(found.lower - error, min=0), found.upper + error, found.method)
    if min(W.shape) <= DENSE or relative_width < NARROW or not failure_probability:
        return extreme_singular_values(W, largest_entry)[0]
    A, unit = _in_float32(W, largest_entry)
    flipped = W.shape[0] < W.shape[1]
    columns, factor = min(W.shape), 1 + 0.9 * relative_width
    steps = steps_for(columns, factor, failure_probability)
    start = torch.randn(1, columns, generator=torch.Generator().manual_seed(0))
    v = lanczos(A.T if flipped else A, start, steps=steps)
    v = dual(torch.cat([v, start]).double(), 2)
    images = W.times_transposed(v) if flipped else W.times(v)
    value = float(lp_norm(images, 2)[0])
    u = dual(images, 2)
    back = W.times(u) if flipped else W.times_transposed(u)
    first, second = (A.T, A) if flipped else (A, A.T)
    errors = [(first @ v.float()).double() * unit - images, (second @ u.float()).double() * unit - back]
    rounding = max(float(lp_norm(error, 2).max()) for error in errors) / value
    # each of the 2 k products errs by so much: the tridiagonal matrix is that of WᵀW + E, ‖E‖ ≤ 4 sqrt(k) rounding ‖W‖²
    allowance = 1 + 4 * math.sqrt(steps) * rounding + PRODUCT
    method = f"Lanczos, {steps} steps: upper end right with probability 1 - {failure_probability:g}"
    return Norm.of(value * (1 - PRODUCT), value * factor * allowance, method)


def _in_float32(W: PanelMatrix, largest_entry: float) -> tuple[LinearMap, float]:
    """The matrix over a power of two as a map in float32, and that power."""
    unit, M, start = _unit(largest_entry), torch.empty(W.shape), 0
    for P in W.panels():
        M[start : start + len(P)] = P / unit
        start += len(P)
    return LinearMap(lambda v: v @ M.T, lambda u: u @ M, W.shape[1:], W.shape[:1], dtype=M.dtype), unit


def _unit(largest_entry: float) -> float:
    """The power of two by which a matrix is divided, exactly; entries below all normal numbers are not made normal."""
    return max(float(power_of_two(torch.tensor(largest_entry, dtype=torch.float64))), SMALLEST)


@torch.no_grad()
def extreme_singular_values(W: PanelMatrix, largest_entry: float) -> tuple[Norm, Norm]:
    """The largest and the smallest of the min(m, n) singular values, as narrow as rounding: all of them are computed.

    Panels of rows, or of columns where there are more of these, are reduced to a triangular matrix one after the other, so
    that no more than a square matrix of the shorter side is held in float64.

    Args:
        W: the matrix, with finite entries.
        largest_entry: max |W_ij|.

    Source: Demmel et al. 2012 (QR factorization of a tall matrix, panel by panel).
    """
    method = "all singular values, to rounding"
    if largest_entry == 0 or 0 in W.shape:
        return Norm.of(0.0, 0.0, method), Norm.of(0.0, 0.0, method)
    unit, side = _unit(largest_entry), min(W.shape)
    if W.shape[0] >= side == W.shape[1]:
        parts = (P / unit for P in W.panels(entries=max(CHUNK, 2 * side * side)))
    else:
        whole = W.rows(0, W.shape[0]).T
        parts = (P.to(torch.float64) / unit for P in whole.split(max(2 * side, CHUNK // side)))
    R = torch.empty(0, side, dtype=torch.float64)
    for P in parts:
        R = torch.linalg.qr(torch.cat([R, P]), mode="r").R
    values = torch.linalg.svdvals(R)
    # backward stable: the values are those of W + E, ‖E‖ a few (m + n) units of rounding of ‖W‖_F
    error = 8 * sum(W.shape) * unit_roundoff(torch.float64) * float(lp_norm(values[None], 2))
    ends = (float(values[0]), float(values[-1]))
    largest, smallest = (Norm.of(max(s - error, 0.0) * unit, (s + error) * unit, method) for s in ends)
    return largest, smallest
