"""‖J(x)‖_{p→q} of a network at every point of a batch, as intervals, with the change of the input that is amplified most."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.modes import Mode
from opnorm.errors import NormError
from opnorm.jacobian.iteration import (
    Found,
    check_orders,
    conjugate,
    dual,
    lp_norm,
    power_iteration,
    random_start,
)
from opnorm.jacobian.products import (
    Jacobian,
    Matrices,
    check_points,
    each_row,
    explicit,
    linearized,
    quick_layout,
    together,
)
from opnorm.norms.induced import induced

__all__ = ["PointNorms", "jacobian_norm"]

SIGNS = 12  # 2^11 sign vectors of the outputs are tried for q = 1
SIDE = 256  # a Gram matrix of this size is diagonalized at every point
BYTES = 2**28  # of explicit Jacobians at a time
HARD = "NP-hard in general: lower by power iteration"
FAILURE = 1e-9  # probability, a point, that the upper end by Lanczos iteration is too low


class PointNorms(NamedTuple):
    """‖J(x_b)‖_{p→q} of every point b, as far as it is known: ``lower <= norm <= upper``.

    The ends hold for the Jacobian in the model's own arithmetic: rounding in float32 is not in them. A model and points in
    float64 give all digits.

    Attributes:
        lower: (B,) float64: ‖J v‖_q, or a little less.
        upper: (B,) float64; equal to ``lower`` where a closed formula gives the norm.
        v: (B, *in), ‖v‖_p = 1: what is amplified by ``lower``.
        residual: (B,) float64, ‖JᵀJv - σ²v‖_2 / σ² for p = q = 2: how far v is from a singular vector; NaN otherwise.
        method: how it was found, in words.
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
    layer: str | None = None,
    mode: Mode = "eval",
    steps: int = 40,
    restarts: int = 8,
    seed: int = 0,
) -> PointNorms:
    """The largest ‖J(x_b) v‖_q over ‖v‖_p = 1 at each point, and that v.

    For any p and q in [1, inf]:

    - p = 1: the largest ℓq norm of a column; q = inf: the largest ℓ_{p*} norm of a row. Exact, by one backward pass a row
      (or a few rows, where the batch is small), of which no more than one is kept.
    - p = q = 2: exact to rounding where outputs or inputs are few, at most 4 ``steps``; otherwise Lanczos iteration, with an
      upper end that is right with probability 1 - 1e-9 a point, and infinite for less than about 14 steps.
    - q = 1: exact to rounding with up to 12 outputs, by all their signs. Otherwise this, ∞→2 and what else remains is
      NP-hard in general: from below the power iteration with random restarts, from above the best bound known for the
      matrix, or norm equivalence with 2→2 where the matrix is too large.

    Args:
        model: any network that works on each point of a batch by itself.
        x: (B, *in).
        p: of the input.
        q: of the output.
        layer: whose output is meant; the model's own when None.
        mode: of the model, see :func:`opnorm.jacobian.linearized`.
        steps: of an iteration.
        restarts: of the power iteration, in NP-hard cells.
        seed: of random starts; each point has its own, whatever batch it is in.

    Returns:
        Intervals and maximizers, point by point.

    Raises:
        NormError: p, q, steps or restarts below 1.
        ModelError: see :func:`opnorm.jacobian.linearized`.

    Source: Roth, Kilcher & Hofmann 2020, Table 1, Eqs. 11 and 12; probability: Kuczyński & Woźniakowski 1992.
    """
    check_points(x)
    check_orders(p, q)
    for name, number in (("steps", steps), ("restarts", restarts)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise NormError(f"{name}={number!r}: expected a whole number of at least 1")
    x = quick_layout(model, x.detach(), layer, mode)
    with linearized(model, x[:1], layer, mode) as J:
        outputs, inputs = J.outputs[0].numel(), x[0].numel()
    most = min(SIDE, 4 * steps) if p == q == 2 else SIDE  # a step costs about four rows
    small = min(outputs, inputs) <= most and outputs * inputs * 8 <= BYTES
    each = max(1, min(together(x), BYTES // (outputs * inputs * 8))) if small else together(x)

    def solve(part: Tensor) -> PointNorms:
        if p == 1 or q == math.inf:
            return (_columns if p == 1 else _rows)(model, part, p, q, layer, mode)
        if not small:
            with linearized(model, part, layer, mode) as J:
                return _by_products(J, part, p, q, steps, restarts, seed)
        A = explicit(model, part, layer, mode).flatten(2).double()
        if p == q == 2:
            return _singular(A, part)
        if q == 1 and outputs <= SIGNS:
            return _over_signs(A, part, p)
        return _hard(A, part, p, q, steps, restarts, seed)

    parts = [solve(part) for part in x.split(each)]
    lower, upper, v, residual = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:4])
    return PointNorms(lower, upper, v.contiguous(), residual, parts[0].method)


def _exact(value: Tensor, v: Tensor, method: str) -> PointNorms:
    value = value.double()
    return PointNorms(value, value, v, torch.full_like(value, math.nan), method)


# ---------------------------------------------------------------- closed formulas


def _columns(model: nn.Module, x: Tensor, p: float, q: float, layer: str | None, mode: Mode) -> PointNorms:
    """‖J‖_{1→q}: sums, or maxima, over the rows as they come."""
    total = x.new_zeros(len(x), x[0].numel(), dtype=torch.float64)

    def take(some: Tensor) -> None:
        nonlocal total
        size = some.flatten(2).double()
        some_q = torch.linalg.vector_norm(size, q, 1)
        total = torch.linalg.vector_norm(torch.stack([total, some_q]), q, 0)

    each_row(model, x, layer, mode, take)
    best, at = total.max(1)
    v = torch.zeros_like(x).flatten(1).scatter(1, at[:, None], 1).view_as(x)
    return _exact(best, v, "exact: largest column norm")


def _rows(model: nn.Module, x: Tensor, p: float, q: float, layer: str | None, mode: Mode) -> PointNorms:
    """‖J‖_{p→∞}: the largest row so far is kept."""
    best = x.new_full((len(x),), -1, dtype=torch.float64)
    longest = torch.zeros_like(x)

    def take(some: Tensor) -> None:
        nonlocal best, longest
        length, at = torch.linalg.vector_norm(some.flatten(2).double(), conjugate(p), 2).max(1)
        longest = _where(length > best, some[torch.arange(len(x), device=x.device), at], longest)
        best = torch.maximum(best, length)

    each_row(model, x, layer, mode, take)
    return _exact(best, dual(longest, conjugate(p), _any_direction(x)), "exact: largest row norm")


def _any_direction(x: Tensor) -> Tensor:
    """Where J is zero, every direction is as good; this one has length 1 in every norm."""
    first = torch.zeros_like(x).flatten(1)
    first[:, 0] = 1
    return first.view_as(x)


# ---------------------------------------------------------------- explicit matrices (B, K, n) in float64


def _singular(A: Tensor, x: Tensor) -> PointNorms:
    wide = A.shape[1] <= A.shape[2]
    vectors = torch.linalg.eigh(A @ A.mT if wide else A.mT @ A).eigenvectors[:, :, -1]
    J = Matrices(A)
    v = dual(J.adjoint(vectors) if wide else vectors, 2, _any_direction(x).flatten(1).double())
    image = J.apply(v)
    sigma, slack = lp_norm(image, 2), 8 * sum(A.shape[1:]) * torch.finfo(torch.float64).eps
    residual = lp_norm(J.adjoint(image) - sigma.square()[:, None] * v, 2) / _safe(sigma.square())
    method = f"exact up to rounding: diagonalized {vectors.shape[1]} x {vectors.shape[1]}"
    return PointNorms(sigma * (1 - slack), sigma * (1 + slack), v.view_as(x).to(x.dtype), residual, method)


def _over_signs(A: Tensor, x: Tensor, p: float) -> PointNorms:
    """‖J‖_{p→1} = max over s in {-1, 1}^K of ‖Jᵀ s‖_{p*}; s and -s give the same."""
    count = A.shape[1]
    bits = torch.arange(2 ** (count - 1), device=A.device)[:, None] >> torch.arange(count, device=A.device)
    signs = 1 - 2 * (bits & 1).to(A.dtype)
    best, back = A.new_full((len(A),), -1), A.new_zeros(len(A), A.shape[2])
    for some in signs.split(64):
        images = some @ A
        length, at = torch.linalg.vector_norm(images, conjugate(p), 2).max(1)
        new = images[torch.arange(len(A), device=A.device), at]
        back = torch.where((length > best)[:, None], new, back)
        best = torch.maximum(best, length)
    v = dual(back, conjugate(p), _any_direction(x).flatten(1).double())
    slack = 8 * sum(A.shape[1:]) * torch.finfo(torch.float64).eps
    found = _exact(best, v.view_as(x).to(x.dtype), f"exact up to rounding: all {len(signs):,} sign vectors")
    return found._replace(lower=best * (1 - slack), upper=best * (1 + slack))


def _hard(A: Tensor, x: Tensor, p: float, q: float, steps: int, restarts: int, seed: int) -> PointNorms:
    found = _best_of(Matrices(A), x.double(), p, q, steps, restarts, seed, flat=True)
    known = [induced(matrix, p, q, restarts=1, seed=seed) for matrix in A]
    upper = torch.stack([norm.upper for norm in known]).to(A.device)
    lower = torch.minimum(found.value, upper)
    above = known[0].method.rpartition("upper by ")[2]
    method = f"{HARD} with {restarts} restarts, upper by {above}"
    return _exact(lower, found.v.view_as(x).to(x.dtype), method)._replace(upper=upper)


def _best_of(
    J: Matrices | Jacobian, x: Tensor, p: float, q: float, steps: int, restarts: int, seed: int, flat: bool
) -> Found:
    best: Found | None = None
    for restart in range(restarts):
        start = random_start(x, p, seed, restart)
        found = power_iteration(J, start.flatten(1) if flat else start, p, q, steps)
        if best is None:
            best = found
        better = found.value > best.value
        best = Found(*(_where(better, new, old) for new, old in zip(found, best, strict=True)))
    assert best is not None, "at least one start"
    return best


def _where(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, *(1,) * (new.ndim - 1)), new, old)


# ---------------------------------------------------------------- by products alone


def _by_products(
    J: Jacobian, x: Tensor, p: float, q: float, steps: int, restarts: int, seed: int
) -> PointNorms:
    sigma, v, residual = _lanczos(J, random_start(x, 2, seed), steps)
    outputs, inputs = J.outputs[0].numel(), x[0].numel()
    # P(λ_k < (1 - ε) λ_max) <= 1.648 sqrt(n) exp(-sqrt(ε) (2 k - 1)) for Lanczos on JᵀJ from a normal random start
    epsilon = (math.log(1.648 * math.sqrt(inputs) / FAILURE) / (2 * steps - 1)) ** 2
    upper = sigma / math.sqrt(1 - epsilon) if epsilon < 1 else torch.full_like(sigma, math.inf)
    how = f"Lanczos, {steps} steps: upper end right with probability 1 - {FAILURE:g}"
    if p == q == 2:
        return PointNorms(sigma, upper, v, residual, how)
    factor = inputs ** max(0.0, 0.5 - 1 / p) * outputs ** max(0.0, 1 / q - 0.5)
    found = _best_of(J, x, p, q, steps, restarts, seed, flat=False)
    method = f"{HARD} with {restarts} restarts, upper by norm equivalence with 2→2 ({how})"
    return _exact(found.value, found.v, method)._replace(upper=upper * factor)


def _lanczos(J: Jacobian, v: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """σ (B,), its right vector (B, *in) and the relative residual (B,), by Lanczos on JᵀJ with full reorthogonalization."""
    basis, images = [v], []
    scale = torch.zeros(len(v), 1, dtype=v.dtype, device=v.device)
    for step in range(steps):
        images.append(J.apply(basis[-1]))
        if step == steps - 1:
            break
        new, known = J.adjoint(images[-1]).flatten(1), torch.stack([b.flatten(1) for b in basis], 1)
        scale = torch.maximum(scale, lp_norm(new, 2)[:, None])
        for _ in range(2):  # twice is enough
            new = new - ((known @ new[:, :, None]).mT @ known).squeeze(1)
        rounding = 100 * torch.finfo(v.dtype).eps * scale
        new = torch.where(lp_norm(new, 2)[:, None] > rounding, new, 0)  # else the space is exhausted
        basis.append(dual(new, 2).view_as(v))
    U = torch.stack([image.flatten(1) for image in images], 1).double()
    top = torch.linalg.eigh(U @ U.mT).eigenvectors[:, :, -1].to(v.dtype)
    v = dual(
        (top[:, None] @ torch.stack([b.flatten(1) for b in basis], 1)).squeeze(1), 2, v.flatten(1)
    ).view_as(v)
    image = J.apply(v)
    sigma = lp_norm(image, 2).double()
    left = J.adjoint(image) - sigma.square().to(v.dtype).view(-1, *(1,) * (v.ndim - 1)) * v
    return sigma, v, lp_norm(left, 2).double() / _safe(sigma.square())


def _safe(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1)
