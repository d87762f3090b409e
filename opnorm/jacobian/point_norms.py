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
    conjugate,
    dual,
    lp_norm,
    per_row,
    power_iteration,
    power_of_two,
    random_start,
)
from opnorm._core.modes import in_default_modes
from opnorm._core.orders import check_alpha, check_orders
from opnorm._core.rounding import unit_roundoff
from opnorm._core.settings import check_count
from opnorm.errors import NormError
from opnorm.jacobian.derivative import warn_unless_derivative
from opnorm.jacobian.products import (
    Jacobian,
    Matrices,
    check_points,
    explicit,
    linearized,
    points_at_once,
    rows_of,
)
from opnorm.jacobian.range_watch import RangeWatch
from opnorm.norms.induced import induced, sign_vectors

__all__ = ["PointNorms", "jacobian_norm", "spectral_by_products"]

SIGNS = 12  # 2^11 sign vectors of the outputs are tried for q = 1
SIDE = 256  # a Gram matrix of this size is diagonalized at every point
BYTES = 2**28  # of explicit Jacobians at a time
HARD = "NP-hard in general: lower by power iteration"
FAILURE_PROBABILITY = 1e-9  # per point, of an upper end by Lanczos iteration that is too low


class PointNorms(NamedTuple):
    """‖J(x_b)‖_{p→q} of every point b as an interval: ``lower <= norm <= upper``.

    The ends hold for the Jacobian in the model's own arithmetic: rounding in float32 is not in them. A model and points in
    float64 give all digits. Where the derivative is infinite, as that of a square root at 0, or products with it leave the
    range of the model's type, the norm is not known: ``upper`` is infinite, and ``lower`` 0 unless some product is right.

    Attributes:
        lower: (B,) float64: ‖J v‖_q, or a little less.
        upper: (B,) float64; equal to ``lower`` where a closed formula gives the norm.
        v: (B, *in), ‖v‖_p = 1, amplified by ``lower``; any direction where the norm is 0 or not known.
        residual: (B,) float64, ‖JᵀJv - σ²v‖_2 / σ² for p = q = 2: how far v is from a singular vector; NaN otherwise.
        method: how it was computed, in words.
    """

    lower: Tensor
    upper: Tensor
    v: Tensor
    residual: Tensor
    method: str


@in_default_modes
def jacobian_norm(
    model: nn.Module,
    x: Tensor,
    p: float = 2,
    q: float = 2,
    *,
    steps: int = 40,
    restarts: int = 8,
    seed: int = 0,
    alpha: float | None = None,
) -> PointNorms:
    """The largest ‖J(x_b) v‖_q over ‖v‖_p = 1 at each point, and that v.

    For any p and q in [1, inf], with the model in eval mode:

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
        steps: of an iteration.
        restarts: of the power iteration, in NP-hard cells.
        seed: of random starts; each point has its own, whatever batch it is in.
        alpha: None for the above. A number: the iteration of Eq. 11 with this step length α in every cell, even where a
            formula is known, and from below alone; inf is its limit, the power method of Eq. 12. As published it is
            ``alpha=math.inf, steps=10, restarts=1``. A finite α is for p = 1, 2 and inf.

    A warning says so where the Jacobian by autograd is clearly not the derivative of the network at the first point.

    Raises:
        NormError: p, q, steps or restarts below 1, or another α; ModelError as :func:`opnorm.jacobian.linearized`.

    Source: Roth, Kilcher & Hofmann 2020, Table 1, Eqs. 11 and 12; probability: Kuczyński & Woźniakowski 1992.
    """
    check_points(x)
    check_orders(p, q)
    for name, value in (("steps", steps), ("restarts", restarts)):
        check_count(name, value, error=NormError)
    check_alpha(alpha, p, optional=True)
    x = x.detach()
    with linearized(model, x[:1]) as J:
        outputs, inputs = J.shape
        warn_unless_derivative(model, x, J)
    most = min(SIDE, 4 * steps) if p == q == 2 else SIDE  # a step costs about four rows
    size = outputs * inputs * 8
    small = min(outputs, inputs) <= most and size <= BYTES
    at_once = max(1, min(points_at_once(x), BYTES // size if small else BYTES))
    method = _PowerMethod(p, q, steps, restarts, seed, alpha)
    found = _concatenate([_solved(model, part, method, small) for part in x.split(at_once)])
    return _unless_lost(found, torch.cat([_lost(model, part) for part in x.split(points_at_once(x))]))


def _lost(model: nn.Module, x: Tensor) -> Tensor:
    """The points some value or gradient of which underflows or overflows, (B,)."""
    watch = RangeWatch(len(x))
    with linearized(model, x, watch=watch) as J:
        u = (
            torch.rand(J.outputs.shape[1:], dtype=torch.float32, generator=torch.Generator().manual_seed(0))
            + 0.5
        )
        with watch:
            J.vjp(u.to(J.outputs).expand_as(J.outputs))
    return watch.lost


def _unless_lost(found: PointNorms, lost: Tensor) -> PointNorms:
    """Not known at some points."""
    if not bool(lost.any()):
        return found
    at = lost.to(found.lower.device)
    how = f"{found.method}; not known at {int(lost.sum())} points, where values leave the range of {found.v.dtype}"
    lower, upper = torch.where(at, 0, found.lower), torch.where(at, math.inf, found.upper)
    return found._replace(lower=lower, upper=upper, method=how)


class _PowerMethod(NamedTuple):
    """The power iteration from several starts, with its settings."""

    p: float
    q: float
    steps: int
    restarts: int
    seed: int
    alpha: float | None

    def __call__(self, A: LinearMap, x: Tensor) -> Maximizer:
        """The best that is found from all starts at the points x, to which the maps belong."""
        starts = [random_start(x.to(A.dtype), self.p, self.seed, i) for i in range(self.restarts)]
        alpha = math.inf if self.alpha is None else self.alpha
        best, *others = (
            power_iteration(A, v.view(-1, *A.in_shape), self.p, self.q, steps=self.steps, alpha=alpha)
            for v in starts
        )
        for other in others:
            better = other.value > best.value
            pairs = zip(other, best, strict=True)
            best = Maximizer(*(torch.where(per_row(better, a), a, b) for a, b in pairs))
        return best


def _solved(model: nn.Module, x: Tensor, method: _PowerMethod, small: bool) -> PointNorms:
    if method.alpha is None:
        if method.p == 1:
            return _columns(model, x, method.q)
        if method.q == math.inf:
            return _rows(model, x, method.p)
        if small:
            return _of_matrices(explicit(model, x).flatten(2).double(), x, method)
    with linearized(model, x) as J:
        return (_by_products if method.alpha is None else _iterated)(J, x, method)


def _concatenate(parts: Sequence[PointNorms]) -> PointNorms:
    """All points; where the Jacobian, or a product with it, is not finite, the norm is not known."""
    lower, upper, v, residual = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:4])
    known = lower.isfinite() & ~upper.isnan() & v.flatten(1).isfinite().all(1)
    lower, upper = torch.where(known, lower, 0), torch.where(known, upper, math.inf)
    v = torch.where(per_row(known, v), v, _any_direction(v)).contiguous()
    return PointNorms(lower, upper, v, residual, parts[0].method)


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


def _columns(model: nn.Module, x: Tensor, q: float) -> PointNorms:
    """‖J‖_{1→q}: norms of columns, accumulated row by row."""
    total = x.new_zeros(len(x), x[0].numel(), dtype=torch.float64)
    for some in rows_of(model, x):
        total = lp_norm(torch.stack([total, lp_norm(some.flatten(2).double(), q, 1)]), q, 0)
    best, at = total.max(1)
    v = torch.zeros_like(x).flatten(1).scatter(1, at[:, None], 1).view_as(x)
    return _exact(best, v, "exact: largest column norm")


def _rows(model: nn.Module, x: Tensor, p: float) -> PointNorms:
    """‖J‖_{p→∞}: the largest row so far is kept."""
    best, longest = x.new_full((len(x),), -1, dtype=torch.float64), torch.zeros_like(x)
    for some in rows_of(model, x):
        best, longest = _longer(best, longest, some, conjugate(p))
    return _exact(best, dual(longest, conjugate(p), _any_direction(x)), "exact: largest row norm")


def _longer(best: Tensor, longest: Tensor, some: Tensor, r: float) -> tuple[Tensor, Tensor]:
    """The largest ℓr norm so far and its vector (B, ...), after some more vectors (B, r, ...); NaN is the largest."""
    length, at = lp_norm(some.flatten(2).double(), r, 2).max(1)
    row = some[torch.arange(len(some), device=some.device), at]
    return torch.maximum(best, length), torch.where(per_row(length > best, row), row, longest)


# ---------------------------------------------------------------- explicit matrices (B, K, n) in float64


def _of_matrices(A: Tensor, x: Tensor, method: _PowerMethod) -> PointNorms:
    """Each matrix divided by a power of two near its largest entry, so that no square leaves the range of float64."""
    largest = lp_norm(A, math.inf)
    finite, unit = largest.isfinite(), power_of_two(largest)
    A = torch.where(per_row(finite, A), A / per_row(unit, A), 0)
    if method.p == method.q == 2:
        found = _singular(A, x)
    elif method.q == 1 and A.shape[1] <= SIGNS:
        found = _over_signs(A, x, method.p)
    else:
        found = _hard(A, x, method)
    lower, upper = (torch.where(finite, end * unit, math.nan) for end in (found.lower, found.upper))
    return found._replace(lower=lower, upper=upper, v=found.v.view_as(x).to(x.dtype))


def _singular(A: Tensor, x: Tensor) -> PointNorms:
    wide, J = A.shape[1] <= A.shape[2], Matrices(A)
    vectors = torch.linalg.eigh(A @ A.mT if wide else A.mT @ A).eigenvectors[:, :, -1]
    v = dual(J.T @ vectors if wide else vectors, 2, _any_direction(x).flatten(1).double())
    sigma, residual = _measured(J, v)
    method = f"exact up to rounding: diagonalized {vectors.shape[1]} x {vectors.shape[1]}"
    return _exact(sigma, v, method, _slack(A))._replace(residual=residual)


def _measured(J: LinearMap, v: Tensor) -> tuple[Tensor, Tensor]:
    """‖J v‖_2 / ‖v‖_2 for unit vectors v, and the relative residual ‖JᵀJv - σ²v‖_2 / σ², both (B,) float64."""
    image = J @ v
    sigma = lp_norm(image.double(), 2) / lp_norm(v.double(), 2)
    rest = (J.T @ dual(image, 2)).double() - per_row(sigma, v) * v.double()
    return sigma, lp_norm(rest, 2) / torch.where(sigma > 0, sigma, 1)


def _over_signs(A: Tensor, x: Tensor, p: float) -> PointNorms:
    """‖J‖_{p→1} = max over s in {-1, 1}^K of ‖Jᵀ s‖_{p*}."""
    best, back = A.new_full((len(A),), -1), A.new_zeros(len(A), A.shape[2])
    signs = sign_vectors(A.shape[1]).to(A)
    for some in signs.split(64):
        best, back = _longer(best, back, some @ A, conjugate(p))
    v = dual(back, conjugate(p), _any_direction(x).flatten(1).double())
    return _exact(best, v, f"exact up to rounding: all {len(signs):,} sign vectors", _slack(A))


def _hard(A: Tensor, x: Tensor, method: _PowerMethod) -> PointNorms:
    found = method(Matrices(A), x)
    known = [induced(matrix, method.p, method.q, restarts=1) for matrix in A]
    upper = torch.stack([norm.upper for norm in known]).to(A.device)
    above = known[0].method.rpartition("upper by ")[2]
    how = f"{HARD} with {method.restarts} restarts, upper by {above}"
    return _exact(torch.minimum(found.value, upper), found.v, how)._replace(upper=upper)


# ---------------------------------------------------------------- by products alone


def spectral_by_products(J: LinearMap, x: Tensor, steps: int, seed: int = 0) -> PointNorms:
    """‖J_b‖_2 of maps of the points x (B, *in), by Lanczos iteration."""
    start = random_start(x, 2, seed)
    v = lanczos(J, start, steps=steps)
    sigma, residual = _measured(J, v)
    upper = sigma * upper_factor(J.shape[1], steps, FAILURE_PROBABILITY)
    limit = torch.finfo(J.dtype).tiny / torch.finfo(J.dtype).eps  # shorter products lose digits
    if (sigma < limit).any():
        zero = (J @ _far(start) == 0).flatten(1).all(1)
        upper = torch.where((sigma < limit) & ~zero, math.inf, upper)
    how = f"Lanczos, {steps} steps: upper end right with probability 1 - {FAILURE_PROBABILITY:g}"
    return PointNorms(sigma, upper, v, residual, how)


def _far(direction: Tensor) -> Tensor:
    """Entries of the same signs, from √M / 2 to √M for the largest number M: no product with a nonzero J underflows."""
    size = 1 + direction.abs() / per_row(lp_norm(direction, math.inf), direction)
    return direction.sign() * size * (math.sqrt(torch.finfo(direction.dtype).max) / 2)


def _by_products(J: Jacobian, x: Tensor, method: _PowerMethod) -> PointNorms:
    outputs, inputs = J.shape
    spectral = spectral_by_products(J, x, method.steps, method.seed)
    if method.p == method.q == 2:
        return spectral
    upper, how = spectral.upper, spectral.method
    found = _iterated(J, x, method)
    upper = upper * inputs ** max(0.0, 0.5 - 1 / method.p) * outputs ** max(0.0, 1 / method.q - 0.5)
    how = f"{HARD} with {method.restarts} restarts, upper by norm equivalence with 2→2 ({how})"
    return found._replace(lower=torch.minimum(found.lower, upper), upper=upper, method=how)


def _iterated(J: Jacobian, x: Tensor, method: _PowerMethod) -> PointNorms:
    """The iteration alone, which bounds the norm from below."""
    v = method(J, x).v
    value = lp_norm((J @ v).double(), method.q) / lp_norm(v.double(), method.p)
    step = "" if method.alpha in (None, math.inf) else f" with α = {method.alpha:g}"
    how = f"power iteration{step}, {method.steps} steps from {method.restarts} starts: a lower bound"
    return _exact(value, v, how)._replace(upper=torch.full_like(value, math.inf))
