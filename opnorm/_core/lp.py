"""ℓp norms of the rows of a batch, dual vectors, and the power iteration for ‖A‖_{p→q}."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from opnorm._core.linear_map import LinearMap, check_map
from opnorm._core.orders import check_alpha, check_orders, check_sphere
from opnorm._core.random import normal, point_keys
from opnorm._core.settings import check_count, check_seed
from opnorm.errors import NormError

__all__ = [
    "Maximizer",
    "conjugate",
    "dual",
    "lp_norm",
    "on_sphere",
    "per_row",
    "power_iteration",
    "power_of_two",
    "random_start",
    "scaled_norm",
]


def conjugate(p: float) -> float:
    """p* with 1/p + 1/p* = 1."""
    return math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ..., 1), to be broadcast with ``like`` (B, ...)."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def lp_norm(z: Tensor, r: float, dim: int | None = None) -> Tensor:
    """‖z_b‖_r of every row, (B, ...) -> (B,), or along one axis; no power overflows or underflows.

    Args:
        z: the vectors, of any scale.
        r: in [1, inf].
        dim: the axis; all axes but the first when None.
    """
    if dim is None:
        z, dim = z.flatten(1), 1
    if not z.shape[dim]:
        return z.sum(dim)
    if r in (1, 2, math.inf):
        plain, limits = torch.linalg.vector_norm(z, r, dim), torch.finfo(z.dtype)
        # above this no square that counts underflows, and a finite sum has not overflowed
        safe = math.sqrt(limits.tiny) / limits.eps
        if r != 2 or bool(((plain > safe) & plain.isfinite()).all()):
            return plain
    return scaled_norm(z, r, dim)


def scaled_norm(z: Tensor, r: float, dim: int) -> Tensor:
    """:func:`lp_norm` along one axis that is not empty; it does not look at the values, so no GPU is waited for."""
    largest = z.detach().abs().amax(dim, keepdim=True)
    unit = power_of_two(largest) if r == 2 else _or_one(largest)
    return torch.linalg.vector_norm(z / unit, r, dim) * unit.squeeze(dim)


def power_of_two(size: Tensor) -> Tensor:
    """The largest power of two up to each size, by which division is exact; 1 where the size is 0 or not finite."""
    size = _or_one(size)
    mantissa = torch.frexp(size.to(torch.promote_types(size.dtype, torch.float32))).mantissa
    return size / (2 * mantissa).to(size.dtype)


def _or_one(size: Tensor) -> Tensor:
    return torch.where((size > 0) & size.isfinite(), size, 1)


def dual(z: Tensor, r: float, otherwise: Tensor | None = None) -> Tensor:
    """ψ_r(z) = sign(z) ⊙ |z|^{r-1} / ‖z‖_r^{r-1} of each row: <ψ_r(z), z> = ‖z‖_r, and ‖ψ_r(z)‖_{r*} = 1.

    r = 2: z / ‖z‖_2; r = 1: the signs; r = inf: the signs of the largest entries, over their number.

    Args:
        z: the rows, (B, ...).
        r: in [1, inf].
        otherwise: the result where z is zero; zero when None.

    Source: Roth, Kilcher & Hofmann 2020, Eqs. 10 and 16.
    """
    if r == 1 and otherwise is None:
        return z.sign()
    largest = lp_norm(z, math.inf)
    if r == 1:
        result = z.sign()
    elif r == math.inf:
        at = (z.abs() == per_row(largest, z)).to(z.dtype)
        result = z.sign() * at / per_row(lp_norm(at, 1), z)
    else:
        scaled = z / per_row(_positive(largest), z)
        powers = scaled if r == 2 else scaled.sign() * scaled.abs() ** (r - 1)
        length = torch.linalg.vector_norm(scaled.flatten(1), r, 1)  # at least 1, but for zeros
        result = powers / per_row(_positive(length) ** (r - 1), z)
    return result if otherwise is None else torch.where(per_row(largest, z) > 0, result, otherwise)


def _positive(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1)


def on_sphere(w: Tensor, p: float) -> Tensor:
    """The closest point in ℓ2 with ‖v‖_p = 1 of each row, from outside or inside (one of them, if several).

    p = 2: w / ‖w‖_2. p = inf: clipped to [-1, 1], or the largest entry raised to 1. p = 1: |w| - t cut at 0 with the t that
    gives length 1 (negative t from inside, which moves every entry away from 0).

    Raises:
        NormError: another p.

    Source: p = 1: Held, Wolfe & Crowder 1974.
    """
    check_sphere(p)
    flat = w.flatten(1)
    if p == 2:
        first = torch.zeros_like(flat).index_fill_(1, torch.tensor(0, device=w.device), 1)
        return dual(flat, 2, first).view_as(w)
    size, sign = flat.abs(), torch.where(flat < 0, -1.0, 1.0).to(w.dtype)
    if p == math.inf:
        at = size.argmax(1, keepdim=True)
        return (sign * size.clamp(max=1).scatter(1, at, 1)).view_as(w)
    ordered = size.sort(1, descending=True).values
    count = torch.arange(1, flat.shape[1] + 1, device=w.device, dtype=w.dtype)
    cut = (ordered.cumsum(1) - 1) / count
    kept = (ordered > cut).sum(1, keepdim=True).clamp(min=1)
    return (sign * (size - cut.gather(1, kept - 1)).clamp(min=0)).view_as(w)


def random_start(x: Tensor, p: float, seed: int = 0, stream: int = 0) -> Tensor:
    """A normal random vector with ‖v‖_p = 1 for each point; it depends on (seed, stream, point), not on the batch."""
    check_seed(seed, NormError)
    draw = normal(point_keys(x, seed, stream), x[0].numel()).to(x.dtype).view_as(x)
    return draw / per_row(lp_norm(draw, p), draw)


class Maximizer(NamedTuple):
    """The result of a power iteration.

    Attributes:
        value: (B,) ‖A v‖_q, a true lower bound of ‖A‖_{p→q} but for rounding.
        v: (B, *in), ‖v‖_p = 1.
        u: (B, *out), of q*-norm 1 with <u, A v> = value.
    """

    value: Tensor
    v: Tensor
    u: Tensor


def power_iteration(
    A: LinearMap,
    v: Tensor,
    p: float,
    q: float,
    *,
    steps: int = 10,
    alpha: float = math.inf,
    tolerance: float | None = None,
) -> Maximizer:
    """Ascent on ‖A_b v‖_q over ‖v‖_p = 1, each row by itself; 2 ``steps`` + 1 products.

        u = ψ_q(A v),    ṽ = Aᵀ u,    v ← Π_{‖·‖_p = 1}(v + α ṽ);    in the limit α → ∞: v ← ψ_{p*}(ṽ)

    with ψ as in :func:`dual`. In the limit ‖A v‖_q never falls but by rounding; where p = q = 2 it tends to the largest
    singular value, elsewhere it may stop at a local maximum.

    Args:
        A: one map for every row, or one for each.
        v: the start, (B, *in), with ‖v‖_p = 1.
        p: of the input, in [1, inf]; 1, 2 or inf for a finite α, whose sphere has no simple projection otherwise.
        q: of the output, in [1, inf].
        steps: at most so many.
        alpha: α, above 0; inf for the power method.
        tolerance: stop when no row's value grows by more than this, relatively; None for all steps.

    Raises:
        NormError: a setting out of its range.

    Source: Roth, Kilcher & Hofmann 2020, Eqs. 11 and 12.
    """
    check_orders(p, q)
    check_count("steps", steps, 0, error=NormError)
    check_alpha(alpha, p)
    check_map(A)
    image = A @ v
    value = lp_norm(image, q)
    for _ in range(steps):
        ascent = A.T @ dual(image, q)
        v = dual(ascent, conjugate(p), v) if alpha == math.inf else on_sphere(v + alpha * ascent, p)
        before, image = value, A @ v
        value = lp_norm(image, q)
        if tolerance is not None and not (value > before * (1 + tolerance)).any():
            break
    return Maximizer(value, v, dual(image, q))
