"""The power iteration for ‖J‖_{p→q} at every point of a batch (Roth, Kilcher & Hofmann 2020)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from opnorm._core.random import normal, point_keys
from opnorm.errors import NormError
from opnorm.jacobian.products import Products

__all__ = [
    "Found",
    "check_orders",
    "conjugate",
    "dual",
    "lp_norm",
    "on_sphere",
    "power_iteration",
    "random_start",
]


class Found(NamedTuple):
    """What an iteration ends with.

    Attributes:
        value: (B,) ‖J v‖_q, a true lower bound of ‖J‖_{p→q} in the arithmetic of the model.
        v: (B, *in), ‖v‖_p = 1.
        u: (B, *out), of q*-norm 1 with <u, J v> = value.
    """

    value: Tensor
    v: Tensor
    u: Tensor


def power_iteration(
    J: Products, v: Tensor, p: float, q: float, steps: int = 10, alpha: float = math.inf
) -> Found:
    """Ascent on ‖J_b v‖_q over ‖v‖_p = 1, each point on its own; 2 ``steps`` + 1 products.

        u = ψ_q(J v),    ṽ = Jᵀ u,    v ← Π_{‖·‖_p = 1}(v + α ṽ);    in the limit α → ∞: v ← ψ_{p*}(ṽ)

    with ψ as in :func:`dual`. In the limit ‖J v‖_q never falls but by rounding; where p = q = 2 it tends to the largest
    singular value, elsewhere it may stop at a local maximum.

    Args:
        J: the maps.
        v: where to start, (B, *in); see :func:`random_start`.
        p: of the input, in [1, inf]; 1, 2 or inf for a finite α, whose sphere has no simple projection otherwise.
        q: of the output, in [1, inf].
        steps: how many.
        alpha: α, above 0; inf for the power method.

    Returns:
        The last v, and what it is amplified to.

    Raises:
        NormError: a setting that makes no sense.

    Source: Roth, Kilcher & Hofmann 2020, Eqs. 11 and 12.
    """
    check_orders(p, q)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise NormError(f"steps={steps!r}: expected a whole number of at least 0")
    if isinstance(alpha, bool) or not alpha > 0:
        raise NormError(f"alpha={alpha!r}: expected a step length above 0, or inf for the power method")
    if alpha < math.inf:
        _check_sphere(p)
    for _ in range(steps):
        back = J.adjoint(dual(J.apply(v), q))
        v = dual(back, conjugate(p), v) if alpha == math.inf else on_sphere(v + alpha * back, p)
    image = J.apply(v)
    return Found(lp_norm(image, q), v, dual(image, q))


def random_start(x: Tensor, p: float, seed: int = 0, stream: int = 0) -> Tensor:
    """A normal random vector for each point, brought to ‖v‖_p = 1; it belongs to (seed, stream, point), not to the batch."""
    draw = normal(point_keys(x, seed, stream), x[0].numel()).to(x.dtype).view_as(x)
    return draw / _spread(lp_norm(draw, p), draw)


def dual(z: Tensor, r: float, otherwise: Tensor | None = None) -> Tensor:
    """ψ_r(z) = sign(z) ⊙ |z|^{r-1} / ‖z‖_r^{r-1} for each row: <ψ_r(z), z> = ‖z‖_r, and ‖ψ_r(z)‖_{r*} = 1.

    Any r in [1, inf]. r = 2: z / ‖z‖_2; r = 1: the signs; r = inf: the signs of the largest entries, over their number.
    Where z is zero, so is ψ_r(z), or it is ``otherwise``.

    Source: Roth, Kilcher & Hofmann 2020, Eqs. 10 and 16.
    """
    if r == 1:
        found = z.sign()
    elif r < math.inf:
        scaled = z / _spread(_positive(lp_norm(z, math.inf)), z)  # so that no power overflows
        powers = scaled if r == 2 else scaled.sign() * scaled.abs() ** (r - 1)
        found = powers / _spread(_positive(lp_norm(scaled, r)) ** (r - 1), z)
    else:
        size = z.abs()
        largest = (size == _spread(lp_norm(z, math.inf), z)).to(z.dtype)
        found = z.sign() * largest / _spread(lp_norm(largest, 1), z)
    if otherwise is None:
        return found
    return torch.where(_spread(lp_norm(z, math.inf), z) > 0, found, otherwise)


def on_sphere(w: Tensor, p: float) -> Tensor:
    """The closest point with ‖v‖_p = 1 for each row, from outside the sphere or from inside it (one of them, if several).

    p = 2: w / ‖w‖_2. p = inf: clipped to [-1, 1], or the largest entry raised to 1. p = 1: |w| - t cut at 0 with the t that
    gives length 1 (negative t from inside, which moves every entry away from 0).

    Raises:
        NormError: another p.

    Source: p = 1: Held, Wolfe & Crowder 1974.
    """
    _check_sphere(p)
    flat = w.flatten(1)
    if p == 2:
        length = torch.linalg.vector_norm(flat, 2, 1, keepdim=True)
        first = torch.zeros_like(flat).index_fill_(1, torch.tensor(0, device=w.device), 1)
        return torch.where(length > 0, flat / _positive(length), first).view_as(w)
    size, sign = flat.abs(), torch.where(flat < 0, -1.0, 1.0).to(w.dtype)
    if p == math.inf:
        at = size.argmax(1, keepdim=True)
        return (sign * size.clamp(max=1).scatter(1, at, 1)).view_as(w)
    ordered = size.sort(1, descending=True).values
    count = torch.arange(1, flat.shape[1] + 1, device=w.device, dtype=w.dtype)
    t = (ordered.cumsum(1) - 1) / count
    last = (ordered > t).sum(1, keepdim=True).clamp(min=1) - 1  # entries that stay above 0
    return (sign * (size - t.gather(1, last)).clamp(min=0)).view_as(w)


def lp_norm(z: Tensor, r: float) -> Tensor:
    """‖z_b‖_r of every row, (B, *shape) -> (B,)."""
    return torch.linalg.vector_norm(z.flatten(1), r, 1)


def conjugate(p: float) -> float:
    """p* with 1/p + 1/p* = 1."""
    return math.inf if p == 1 else 1 if p == math.inf else p / (p - 1)


def check_orders(p: float, q: float) -> None:
    """NormError unless both are numbers in [1, inf]."""
    for name, r in (("p", p), ("q", q)):
        if isinstance(r, bool) or not isinstance(r, int | float) or not r >= 1:
            raise NormError(f"{name}={r!r}: expected a number from 1 on, or inf")


def _check_sphere(p: float) -> None:
    if p not in (1, 2, math.inf):
        raise NormError(f"p={p!r}: the closest point of the sphere is known for 1, 2 and inf alone")


def _positive(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1)


def _spread(per_point: Tensor, like: Tensor) -> Tensor:
    return per_point.view(-1, *(1,) * (like.ndim - 1))
