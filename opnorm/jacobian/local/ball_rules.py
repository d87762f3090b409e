"""Bounds on the derivative of softmax, normalization, products and functions of one variable, on a ball around a value.

Each is proved where it stands. Df(v) is the derivative at v, ρ the radius of the ball.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from opnorm.errors import BoundError
from opnorm.jacobian.local.known_values import ROUNDING, Known, Operand, largest, size, through
from opnorm.norms.network.one_variable import Function, slopes_between

__all__ = ["Rows", "matrix_product", "normalized", "one_variable", "product", "softmax"]

Factor = tuple[Operand, float, float]
"""A factor, a norm of its value at the center, and a bound on the norm of what the value moves by on the ball."""


class Rows(NamedTuple):
    """The rows (R, n) that are normalized, and the shape of what they are divided by; None for rows of the output."""

    values: Tensor
    divisors: torch.Size | None = None

    def spread(self, of_row: Tensor, output: Tensor) -> Tensor:
        """A number of each row, (R,), as a tensor to be broadcast to the output."""
        if self.divisors is not None:
            return of_row.reshape(self.divisors)
        return of_row[:, None].expand(self.values.shape).reshape(output.shape)


def softmax(a: Operand, output: Tensor, axis: int) -> Known:
    """Softmax along an axis, row by row: J = diag(p) - p pᵀ.

    - ‖J‖_2 ≤ max_i p_i, as 0 ≤ J ≤ diag(p), and ≤ 2 max_i p_i (1 - p_i) ≤ 1/2, the largest row sum of |J|.
    - On the ball: log p_i moves by Δl_i - E_q[Δl] for a mean q between, so by at most max Δl - min Δl ≤ √2 ‖Δl‖_2 ≤ √2 ρ.
      All p_i stay within [p_i e^(-√2 ρ), p_i e^(√2 ρ)].
    - J is the Hessian of log Σ e^l. Its derivative is a symmetric trilinear form, largest at equal directions h (Banach):
      the third central moment E[(h - E h)³] of h under p, at most (max h - min h) Var(h) ≤ √2 ‖J‖_2 for ‖h‖_2 = 1. So J
      changes by at most √2 ρ sup ‖J‖_2; and by at most sup ‖J‖_2, as a difference of two positive semidefinite matrices.

    Source: Yudin et al. 2025 for ‖J‖_2, which they have in closed form; the rest is proved above.
    """
    p = output.double()
    if not bool(p.isfinite().all()):
        raise BoundError("a row of a softmax is masked out altogether, or a score is not finite")

    def bounds(distance: float) -> Tensor:
        move = math.exp(min(700.0, math.sqrt(2) * distance))
        low, high = p / move, (p * move).clamp(max=1.0)
        at = torch.full_like(p, 0.5).clamp(low, high)
        return torch.minimum(high.amax(axis, True), 2 * (at * (1 - at)).amax(axis, True))

    near, of_row = largest(bounds(a.known.error)), bounds(a.reach)
    ball = largest(of_row)
    weights = of_row / ball if ball else None
    return through(a, output, near, ball, min(1.0, math.sqrt(2) * a.moved) * ball, weights)


def normalized(
    a: Operand, output: Tensor, rows: Rows, eps: float, gain: Tensor | None, centered: bool
) -> Known:
    """Normalization of rows: γ z / σ with σ² = |z|² / n + eps, z = v or v minus its mean.

    - Df = (γ/σ) (I - z zᵀ / (n σ²)) P with a projection P, so ‖Df‖_2 ≤ max|γ| / σ.
    - σ is the length of (z / √n, √eps), so it moves by at most ρ / √n on the ball.
    - z / σ is the gradient of n σ. The derivative of its Jacobian is a symmetric trilinear form, largest at equal directions
      (Banach): with s = <z, h> / (√n σ) < 1 it is 3 (s³ - s) / (√n σ²), at most 2 / (√3 √n σ²) in absolute value. So Df
      without γ changes by at most that times ‖v - v₀‖; and by at most 1 / inf σ, as both are positive semidefinite. Each
      row has its own σ: ``weights`` are these numbers by rows, times |γ|, over the largest one.

    Args:
        a: v.
        output: the normalized value.
        rows: v₀, and where its rows are.
        eps: added to the variance.
        gain: γ, to be broadcast to the output.
        centered: whether z is v minus its mean.
    """
    if not eps or eps < 0:
        raise BoundError(f"eps={eps} leaves the derivative without a bound")
    values, n = rows.values, rows.values.shape[1]
    z = values - values.mean(1, keepdim=True) if centered else values
    rounding = ROUNDING * values.abs().amax(1)
    sigma = (z.square().mean(1) + eps).sqrt() - rounding

    def least(distance: float) -> Tensor:
        return (sigma - distance / math.sqrt(n)).clamp(min=math.sqrt(eps))

    size = torch.ones(()) if gain is None else gain.detach().double().abs()
    most, near, ball = largest(size), 1 / least(a.known.error), 1 / least(a.reach)
    change = torch.minimum(ball, 2 / math.sqrt(3 * n) * a.moved * ball.square())
    total = largest(change)
    weights = (
        rows.spread(change / total, output) * (size / most).to(change) if total > 0 and most > 0 else None
    )
    return through(a, output, most * largest(near), most * largest(ball), most * total, weights)


def one_variable(a: Operand, output: Tensor, function: Function) -> Known:
    """Entry by entry f(v_i): Df = diag(f'(v_i)), with f' and f'' bounded on the interval of the entries by its jets."""
    ends = float(a.value.min()), float(a.value.max())
    margin = ROUNDING * max(map(abs, ends))
    near, ball = (
        slopes_between(function, ends[0] - d - margin, ends[1] + d + margin)
        for d in (a.known.error, a.each + a.known.error)
    )
    found = through(a, output, near.slope, ball.slope, min(ball.change, ball.curvature * a.each))
    e = a.known.entries
    return found if e is None else replace(found, entries=replace(e, row=e.row * ball.slope))


def product(a: Operand, b: Operand, output: Tensor) -> Known:
    """A ⊙ b: J = diag(b) J_a + diag(a) J_b, and its change is (b - b₀) J_a + b₀ (J_a - J_a₀), and the same for b."""
    return _bilinear((a, largest(a.value), a.each), (b, largest(b.value), b.each), output)


def matrix_product(a: Operand, b: Operand, output: Tensor) -> Known:
    """A B, for each matrix of a batch: ‖dA B‖_F ≤ ‖dA‖_F ‖B‖_2, and as for products of numbers."""
    norms = (float(torch.linalg.matrix_norm(t.value.double(), 2).max()) for t in (a, b))
    return _bilinear((a, next(norms), a.moved), (b, next(norms), b.moved), output)


def _bilinear(a: Factor, b: Factor, output: Tensor) -> Known:
    """From the norms of both factors, at the center and of their changes."""
    first, second = a[0].known, b[0].known
    of_a, of_b = a[1] + first.error, b[1] + second.error
    own = b[2] * first.lipschitz + a[2] * second.lipschitz
    scale = of_a * second.scale + of_b * first.scale + size(output)
    return Known(
        of_b * first.norm + of_a * second.norm,
        own + of_b * first.change + of_a * second.change,
        (of_b + b[2]) * first.lipschitz + (of_a + a[2]) * second.lipschitz,
        of_b * first.error + of_a * second.error + ROUNDING * scale,
        size(output),
        own,
    )
