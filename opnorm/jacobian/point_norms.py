"""‖J(x)‖_{p→q} of a network at every point of a batch, as intervals, with the change of the input that is amplified most."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.lanczos import lanczos, upper_factor
from opnorm._core.linear_map import LinearMap
from opnorm._core.lp import (
    Maximizer,
    check_orders,
    conjugate,
    dual,
    lp_norm,
    per_row,
    power_iteration,
    random_start,
)
from opnorm._core.modes import Mode
from opnorm._core.rounding import unit_roundoff
from opnorm._core.settings import check_count
from opnorm.errors import NormError
from opnorm.jacobian.products import (
    Jacobian,
    Matrices,
    check_points,
    explicit,
    linearized,
    points_at_once,
    quick_layout,
    rows_of,
)
from opnorm.norms.induced import induced, sign_vectors

__all__ = ["PointNorms", "jacobian_norm"]

SIGNS = 12  # 2^11 sign vectors of the outputs are tried for q = 1
SIDE = 256  # a Gram matrix of this size is diagonalized at every point
BYTES = 2**28  # of explicit Jacobians at a time
HARD = "NP-hard in general: lower by power iteration"
FAILURE_PROBABILITY = 1e-9  # per point, of an upper end by Lanczos iteration that is too low


class PointNorms(NamedTuple):
    """‖J(x_b)‖_{p→q} of every point b as an interval: ``lower <= norm <= upper``.

    The ends hold for the Jacobian in the model's own arithmetic: rounding in float32 is not in them. A model and points in
    float64 give all digits.

    Attributes:
        lower: (B,) float64: ‖J v‖_q, or a little less.
        upper: (B,) float64; equal to ``lower`` where a closed formula gives the norm.
        v: (B, *in), ‖v‖_p = 1, amplified by ``lower``.
        residual: (B,) float64, ‖JᵀJv - σ²v‖_2 / σ² for p = q = 2: how far v is from a singular vector; NaN otherwise.
        method: how it was computed, in words.
    """

    lower: Tensor
    upper: Tensor
    v: Tensor
    residual: Tensor
    method: str


def jacobian_norm(
    model: nn.Module,
    x: Tensor,
    p: float = 2,
    q: float = 2,
    *,
    mode: Mode = "eval",
    steps: int = 40,
    restarts: int = 8,
    seed: int = 0,
) -> PointNorms:
    """The largest ‖J(x_b) v‖_q over ‖v‖_p = 1 at each point, and that v.

    For any p and q in [1, inf]:

    - p = 1: the largest ℓq norm of a column; q = inf: the largest ℓ_{p*} norm of a row. Exact, by one backward pass a row.
    - p = q = 2: exact to rounding with at most 4 ``steps`` outputs or inputs; otherwise Lanczos iteration, with an upper
      end that is right with probability 1 - 1e-9 a point, and infinite for less than about 14 steps.
    - q = 1: exact to rounding with up to 12 outputs, by all their signs. Other pairs are NP-hard in general: from below
      the power iteration with restarts, from above a bound of the matrix or, where that is too large, of its 2→2 norm.

    Args:
        model: any network that works on each point of a batch by itself; :func:`features` for a hidden layer's output.
        x: (B, *in).
        p: of the input.
        q: of the output.
        mode: of the model, see :func:`opnorm.jacobian.linearized`.
        steps: of an iteration.
        restarts: of the power iteration, in NP-hard cells.
        seed: of random starts; each point has its own, whatever batch it is in.

    Raises:
        NormError: p, q, steps or restarts below 1; ModelError as :func:`opnorm.jacobian.linearized`.

    Source: Roth, Kilcher & Hofmann 2020, Table 1, Eqs. 11 and 12; probability: Kuczyński & Woźniakowski 1992.
    """
    check_points(x)
    check_orders(p, q)
    for name, value in (("steps", steps), ("restarts", restarts)):
        check_count(name, value, error=NormError)
    x = quick_layout(model, x.detach(), mode)
    with linearized(model, x[:1], mode=mode) as J:
        outputs, inputs = J.shape
    most = min(SIDE, 4 * steps) if p == q == 2 else SIDE  # a step costs about four rows
    small = min(outputs, inputs) <= most and outputs * inputs * 8 <= BYTES
    at_once = max(1, min(points_at_once(x), BYTES // (outputs * inputs * 8))) if small else points_at_once(x)

    def solve(part: Tensor) -> PointNorms:
        if p == 1 or q == math.inf:
            return (_columns if p == 1 else _rows)(model, part, p, q, mode)
        if not small:
            with linearized(model, part, mode=mode) as J:
                return _by_products(J, part, p, q, steps, restarts, seed)
        A = explicit(model, part, mode=mode).flatten(2).double()
        if p == q == 2:
            return _singular(A, part)
        signs = q == 1 and outputs <= SIGNS
        return _over_signs(A, part, p) if signs else _hard(A, part, p, q, steps, restarts, seed)

    return _concatenate([solve(part) for part in x.split(at_once)])


def _concatenate(parts: Sequence[PointNorms]) -> PointNorms:
    lower, upper, v, residual = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:4])
    return PointNorms(lower, upper, v.contiguous(), residual, parts[0].method)


def _exact(value: Tensor, v: Tensor, method: str, slack: float = 0.0) -> PointNorms:
    value = value.double()
    none = torch.full_like(value, math.nan)
    return PointNorms(value * (1 - slack), value * (1 + slack), v, none, method)


def _slack(A: Tensor) -> float:
    """The relative rounding error of a norm of a float64 matrix (B, K, n), with room to spare."""
    return 16 * sum(A.shape[1:]) * unit_roundoff(torch.float64)


def _any_direction(x: Tensor) -> Tensor:
    """A direction of length 1 in every norm, for points with a Jacobian of zero."""
    first = torch.zeros_like(x).flatten(1)
    first[:, 0] = 1
    return first.view_as(x)


# ---------------------------------------------------------------- closed formulas


def _columns(model: nn.Module, x: Tensor, p: float, q: float, mode: Mode) -> PointNorms:
    """‖J‖_{1→q}: norms of columns, accumulated row by row."""
    total = x.new_zeros(len(x), x[0].numel(), dtype=torch.float64)
    for some in rows_of(model, x, mode=mode):
        total = lp_norm(torch.stack([total, lp_norm(some.flatten(2).double(), q, 1)]), q, 0)
    best, at = total.max(1)
    v = torch.zeros_like(x).flatten(1).scatter(1, at[:, None], 1).view_as(x)
    return _exact(best, v, "exact: largest column norm")


def _rows(model: nn.Module, x: Tensor, p: float, q: float, mode: Mode) -> PointNorms:
    """‖J‖_{p→∞}: the largest row so far is kept."""
    best, longest = x.new_full((len(x),), -1, dtype=torch.float64), torch.zeros_like(x)
    for some in rows_of(model, x, mode=mode):
        length, at = lp_norm(some.flatten(2).double(), conjugate(p), 2).max(1)
        row = some[torch.arange(len(x), device=x.device), at]
        longest = torch.where(per_row(length > best, x), row, longest)
        best = torch.maximum(best, length)
    return _exact(best, dual(longest, conjugate(p), _any_direction(x)), "exact: largest row norm")


# ---------------------------------------------------------------- explicit matrices (B, K, n) in float64


def _singular(A: Tensor, x: Tensor) -> PointNorms:
    wide, J = A.shape[1] <= A.shape[2], Matrices(A)
    vectors = torch.linalg.eigh(A @ A.mT if wide else A.mT @ A).eigenvectors[:, :, -1]
    v = dual(J.T @ vectors if wide else vectors, 2, _any_direction(x).flatten(1).double())
    sigma, residual = _measured(J, v)
    method = f"exact up to rounding: diagonalized {vectors.shape[1]} x {vectors.shape[1]}"
    v = v.view_as(x).to(x.dtype)
    return _exact(sigma, v, method, _slack(A))._replace(residual=residual)


def _measured(J: LinearMap, v: Tensor) -> tuple[Tensor, Tensor]:
    """‖J v‖_2 for unit vectors v, and the relative residual ‖JᵀJv - σ²v‖_2 / σ², both (B,) float64."""
    image = J @ v
    sigma = lp_norm(image, 2)
    unit = torch.where(sigma > 0, sigma, 1)
    rest = J.T @ (image / per_row(unit, image)) - per_row(sigma, v) * v
    return sigma.double(), lp_norm(rest, 2).double() / unit.double()


def _over_signs(A: Tensor, x: Tensor, p: float) -> PointNorms:
    """‖J‖_{p→1} = max over s in {-1, 1}^K of ‖Jᵀ s‖_{p*}."""
    best, back = A.new_full((len(A),), -1), A.new_zeros(len(A), A.shape[2])
    signs = sign_vectors(A.shape[1]).to(A)
    for some in signs.split(64):
        images = some @ A
        length, at = lp_norm(images, conjugate(p), 2).max(1)
        row = images[torch.arange(len(A), device=A.device), at]
        back = torch.where((length > best)[:, None], row, back)
        best = torch.maximum(best, length)
    v = dual(back, conjugate(p), _any_direction(x).flatten(1).double()).view_as(x).to(x.dtype)
    return _exact(best, v, f"exact up to rounding: all {len(signs):,} sign vectors", _slack(A))


def _hard(A: Tensor, x: Tensor, p: float, q: float, steps: int, restarts: int, seed: int) -> PointNorms:
    starts = [random_start(x.double(), p, seed, restart).flatten(1) for restart in range(restarts)]
    found = _best_of(Matrices(A), starts, p, q, steps)
    known = [induced(matrix, p, q, restarts=1, seed=seed) for matrix in A]
    upper = torch.stack([norm.upper for norm in known]).to(A.device)
    above = known[0].method.rpartition("upper by ")[2]
    method = f"{HARD} with {restarts} restarts, upper by {above}"
    lower, v = torch.minimum(found.value, upper), found.v.view_as(x).to(x.dtype)
    return _exact(lower, v, method)._replace(upper=upper)


def _best_of(J: LinearMap, starts: list[Tensor], p: float, q: float, steps: int) -> Maximizer:
    best = power_iteration(J, starts[0], p, q, steps=steps)
    for start in starts[1:]:
        new = power_iteration(J, start, p, q, steps=steps)
        pairs = zip(new, best, strict=True)
        better = new.value > best.value
        best = Maximizer(*(torch.where(per_row(better, a), a, b) for a, b in pairs))
    return best


# ---------------------------------------------------------------- by products alone


def _by_products(
    J: Jacobian, x: Tensor, p: float, q: float, steps: int, restarts: int, seed: int
) -> PointNorms:
    outputs, inputs = J.shape
    v = lanczos(J, random_start(x, 2, seed), steps=steps)
    sigma, residual = _measured(J, v)
    factor = upper_factor(inputs, steps, FAILURE_PROBABILITY)
    upper = sigma * factor if factor < math.inf else torch.full_like(sigma, math.inf)
    how = f"Lanczos, {steps} steps: upper end right with probability 1 - {FAILURE_PROBABILITY:g}"
    if p == q == 2:
        return PointNorms(sigma, upper, v, residual, how)
    equivalence = inputs ** max(0.0, 0.5 - 1 / p) * outputs ** max(0.0, 1 / q - 0.5)
    found = _best_of(J, [random_start(x, p, seed, restart) for restart in range(restarts)], p, q, steps)
    method = f"{HARD} with {restarts} restarts, upper by norm equivalence with 2→2 ({how})"
    return _exact(found.value, found.v, method)._replace(upper=upper * equivalence)
