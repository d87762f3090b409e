"""Bounds on the derivative of softmax, normalization, products and functions of one variable, on a ball around a value.

Each is proved where it stands. Df(v) is the derivative at v, ρ the radius of the ball.
"""

import math

import torch
from torch import Tensor

from opnorm.errors import BoundError
from opnorm.jacobian.local.known_values import ROUNDING, Known, Operand, largest, size, through
from opnorm.norms.network.one_variable import Function, slopes_between

__all__ = ["matrix_product", "normalized", "one_variable", "product", "softmax"]


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

    def bound(distance: float) -> float:
        move = math.exp(min(700.0, math.sqrt(2) * distance))
        low, high = p / move, (p * move).clamp(max=1.0)
        at = torch.full_like(p, 0.5).clamp(low, high)
        return min(float(high.max()), 2 * float((at * (1 - at)).max())) if p.numel() else 0.0

    near, ball = bound(a.known.error), bound(a.reach)
    return through(a, output, near, ball, min(1.0, math.sqrt(2) * a.moved) * ball)


def normalized(a: Operand, output: Tensor, rows: Tensor, eps: float, gain: float, centered: bool) -> Known:
    """Normalization of rows: γ z / σ with σ² = |z|² / n + eps, z = v or v minus its mean.

    - Df = (γ/σ) (I - z zᵀ / (n σ²)) P with a projection P, so ‖Df‖_2 ≤ max|γ| / σ.
    - σ is the length of (z / √n, √eps), so it moves by at most ρ / √n on the ball.
    - z / σ is the gradient of n σ. The derivative of its Jacobian is a symmetric trilinear form, largest at equal directions
      (Banach): with s = <z, h> / (√n σ) < 1 it is 3 (s³ - s) / (√n σ²), at most 2 / (√3 √n σ²) in absolute value. So Df
      changes by at most that times max|γ| ‖v - v₀‖; and by at most max|γ| / inf σ, as both are positive semidefinite.

    Args:
        a: v.
        output: the normalized value.
        rows: v₀ as rows (R, n).
        eps: added to the variance.
        gain: max|γ|.
        centered: whether z is v minus its mean.
    """
    if not eps or eps < 0:
        raise BoundError(f"eps={eps} leaves the derivative without a bound")
    n = rows.shape[1]
    z = rows - rows.mean(1, keepdim=True) if centered else rows
    rounding = ROUNDING * rows.abs().amax(1)
    sigma = (z.square().mean(1) + eps).sqrt() - rounding

    def least(distance: float) -> float:
        return max(math.sqrt(eps), float(sigma.min()) - distance / math.sqrt(n))

    ball = gain / least(a.reach)
    curvature = gain * 2 / math.sqrt(3 * n) / least(a.reach) ** 2
    return through(a, output, gain / least(a.known.error), ball, min(ball, curvature * a.moved))


def one_variable(a: Operand, output: Tensor, function: Function) -> Known:
    """Entry by entry f(v_i): Df = diag(f'(v_i)), with f' and f'' bounded on the interval of the entries by its jets."""
    ends = float(a.value.min()), float(a.value.max())
    margin = ROUNDING * max(map(abs, ends))
    near, ball = (
        slopes_between(function, ends[0] - d - margin, ends[1] + d + margin) for d in (a.known.error, a.reach)
    )
    return through(a, output, near.slope, ball.slope, min(ball.change, ball.curvature * a.moved))


def product(a: Operand, b: Operand, output: Tensor) -> Known:
    """A ⊙ b: J = diag(b) J_a + diag(a) J_b, and its change is (b - b₀) J_a + b₀ (J_a - J_a₀), and the same for b."""
    return _bilinear(a, b, output, largest(a.value), largest(b.value))


def matrix_product(a: Operand, b: Operand, output: Tensor) -> Known:
    """A B, for each matrix of a batch: ‖dA B‖_F ≤ ‖dA‖_F ‖B‖_2, and as for products of numbers."""
    return _bilinear(
        a, b, output, *(float(torch.linalg.matrix_norm(t.value.double(), 2).max()) for t in (a, b))
    )


def _bilinear(a: Operand, b: Operand, output: Tensor, of_a: float, of_b: float) -> Known:
    """From the norms of both factors; a factor that is copied along an axis m times counts √m."""
    of_a, of_b = of_a + a.known.error, of_b + b.known.error
    first, second = a.known, b.known
    own = b.moved * first.lipschitz + a.moved * second.lipschitz
    scale = of_a * second.scale + of_b * first.scale + size(output)
    return Known(
        of_b * first.norm + of_a * second.norm,
        own + of_b * first.change + of_a * second.change,
        (of_b + b.moved) * first.lipschitz + (of_a + a.moved) * second.lipschitz,
        of_b * first.error + of_a * second.error + ROUNDING * scale,
        size(output),
        own,
    )
