r"""Lipschitz constants of normalization by the input's own statistics, x -> γ z / σ with σ² = |z|² / n + ε.

z is the row x of n numbers (RMSNorm), or x minus its mean (LayerNorm, GroupNorm, InstanceNorm). With u = z / (√n σ) and
r = |u|² = 1 - ε / σ² < 1, so that 1 / σ = sqrt((1 - r) / ε), and with P = I, or P = I - 1 1ᵀ / n:

    J = diag(γ) sqrt((1 - r) / ε) (P - u uᵀ).

- ℓ2: P - u uᵀ has eigenvalues between 0 and 1, so ‖J‖_2 ≤ max|γ| / √ε, reached at z = 0 if γ is constant.
- ℓ1 and ℓ∞: P - u uᵀ is symmetric, so both are at most max|γ| / √ε times the largest sqrt(1 - r) Σ_j |(P - u uᵀ)_ij|. With
  t = u_i² and N = n - 1:

  P = I: the row sums to 1 - t + √t Σ_{j≠i} |u_j| ≤ 1 - t + sqrt(N t (r - t)), at most 1 + β r with β = (√n - 1) / 2, reached
  by entries u_j of one size. sqrt(1 - r) (1 + β r) is largest at r = (2β - 1) / (3β), or at r = 0 where β ≤ 1/2:
  2 (1 + β)^(3/2) / (3 √(3β)), or 1. It is the best constant for ℓ∞, and for ℓ1 if γ is constant.

  P = I - 1 1ᵀ / n: the N entries w_j = 1/n + u_i u_j off the diagonal sum to m = N/n - t, the entry on it, and their squares
  to m²/N + t (r - t n/N), so that Σ |w_j| ≤ sqrt(m² + N t r - n t²) (Cauchy and Schwarz). m + that is a concave function of
  t, at most F(r) = 1 - r/2 + sqrt(1 - r + n r²/4) where r ≥ 4/n, and 2 (1 - 1/n), at t = 0, where r ≤ 4/n. The largest
  sqrt(1 - r) F(r) is bounded on cells of r. Up to n = 32 it is 2 (1 - 1/n), reached at z = 0; for larger n it is within 1 %
  of the best constant for ℓ∞, as the entries w_j cannot quite have one size.
"""

import functools
import math

import numpy as np
from torch import Tensor

from opnorm._core.rounding import PRODUCT
from opnorm.errors import NormError

__all__ = ["centered_row_sum", "normalizing", "row_sum"]

CELLS = 64
TOLERANCE = 1e-9  # relative, between the bound of the cells and a value that is reached


def normalizing(
    eps: float | None, weight: Tensor | None, ord: float, kind: str, size: int, centered: bool = True
) -> float:
    """An upper bound on the constant of normalization from ℓp to ℓp.

    Args:
        eps: added to the mean square.
        weight: γ.
        ord: 1, 2 or infinity.
        kind: name of the layer, for the error.
        size: numbers in a row, n.
        centered: whether the mean of the row is subtracted.

    Raises:
        NormError: without a positive eps there is no constant.
    """
    if not eps or eps < 0:
        raise NormError(f"{kind} with eps={eps} has no Lipschitz constant")
    if not size or (centered and size == 1):
        return 0.0
    gain = 1.0 if weight is None else float(weight.detach().double().abs().max())
    of_one = 1.0 if ord == 2 else centered_row_sum(size) if centered else row_sum(size)
    return gain * of_one / math.sqrt(eps)


def row_sum(n: int) -> float:
    """The largest ℓ1 norm of a row of sqrt(1 - r) (I - u uᵀ), |u|² = r, of n numbers."""
    beta = (math.sqrt(n) - 1) / 2
    return 1.0 if beta <= 0.5 else 2 * (1 + beta) ** 1.5 / (3 * math.sqrt(3 * beta)) * (1 + PRODUCT)


@functools.lru_cache(maxsize=1024)
def centered_row_sum(n: int) -> float:
    """An upper bound on the ℓ1 norm of a row of sqrt(1 - r) (I - 1 1ᵀ / n - u uᵀ), |u|² = r, Σ u = 0."""
    best = 2 * (1 - 1 / n)
    if n <= 4:
        return best
    ends = np.linspace(4 / n, 1, CELLS + 1)
    low, high = ends[:-1], ends[1:]
    while True:
        # 1 - r + n r²/4 is convex, and so largest at an end of a cell; the rest falls with r
        inner = [np.sqrt(1 - r + n * r**2 / 4) for r in (low, high)]
        best = max(best, float((np.sqrt(1 - low) * (1 - low / 2 + inner[0])).max()))
        above = np.sqrt(1 - low) * (1 - low / 2 + np.maximum(*inner))
        left = above > best * (1 + TOLERANCE)
        if not left.any():
            return best * (1 + TOLERANCE) * (1 + PRODUCT)
        low, high = low[left], high[left]
        parts = low[:, None] + (high - low)[:, None] * np.arange(5) / 4
        low, high = parts[:, :-1].ravel(), parts[:, 1:].ravel()
