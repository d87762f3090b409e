r"""Induced norms ‖A‖_{p→q} = max ‖Av‖_q / ‖v‖_p for any p, q in [1, ∞]: exact where that is possible, else an interval.

Exact: 1→q is the largest column ℓq norm, p→∞ the largest row ℓ_{p*} norm (1/p + 1/p* = 1), 2→2 the largest singular
value, and ∞→q a maximum over the 2^n sign vectors for small n (p→1 likewise by duality, ‖A‖_{p→q} = ‖Aᵀ‖_{q*→p*}). The
others are NP-hard in general. From below, the power iteration of Roth et al.: each of its ‖Av‖_q / ‖v‖_p is a lower
bound. From above, the best of

- ‖(‖a_j‖_q)_j‖_{p*} over the columns a_j, and ‖(‖r_i‖_{p*})_i‖_q over the rows r_i (triangle, Hölder);
- Riesz-Thorin: log ‖A‖_{p→q} is convex in (1/p, 1/q) over the complex numbers, and at the ends 1→q, p→∞ and 2→2 the
  complex norm is the real one;
- ‖x‖_a <= n^{max(0, 1/a - 1/p)} ‖x‖_p, from exponents that can be bounded to those that were asked for;
- for ∞→2 and 2→1, max sᵀ G s <= Σ |G_ij| with G the Gram matrix.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.argument_checks import as_shape, check_tensor
from opnorm._core.convolution import conv_geometry, transpose_geometry
from opnorm._core.layers import (
    CONV,
    LINEAR,
    TRANSPOSED,
    Shape,
    check_weights,
    in_float64,
    is_standard,
    unwrap,
)
from opnorm._core.linear_map import LinearMap, linear_map
from opnorm._core.lp import conjugate, dual, lp_norm, per_row, power_iteration
from opnorm._core.modes import in_default_modes
from opnorm._core.orders import check_orders
from opnorm._core.rounding import unit_roundoff
from opnorm._core.settings import check_count
from opnorm.errors import NormError
from opnorm.norms.exact.by_layer import l1, linf
from opnorm.norms.exact.kernel_sums import Plan, conv_plan, linear_plan, pq_norm
from opnorm.norms.norm import Norm
from opnorm.norms.spectral.interval import spectral_norm

__all__ = ["induced", "induced_norm", "sign_vectors"]

SIGNS = 16  # ∞→q is enumerated for up to so many inputs
DENSE = 2**22  # entries of the largest matrix that is made explicit
SHORT = 2048  # and its shorter side
GRID = 33
ITERATIONS = 99  # of the power iteration, at most


class _Ends(NamedTuple):
    """What is known of a map at the ends: each is the norm or a bound from above, over the complex numbers too."""

    inputs: int
    outputs: int
    columns: Callable[[float], float]  # q -> ‖A‖_{1→q}
    rows: Callable[[float], float]  # p -> ‖A‖_{p→∞}
    sigma: float  # ‖A‖_{2→2}


def induced(matrix: Tensor, p: float, q: float, restarts: int = 16, seed: int = 0) -> Norm:
    """The induced norm ‖A‖_{p→q} of an explicit matrix, computed in float64.

    Args:
        matrix: A, (rows, columns).
        p: of the input, in [1, inf].
        q: of the output, in [1, inf].
        restarts: of the power iteration, where it is needed.
        seed: of its random starts.

    Returns:
        ``lower <= ‖A‖_{p→q} <= upper``; equal where a closed formula gives it. Both ends allow for rounding.

    Raises:
        NormError: p or q below 1, a matrix that is not one, NaN or infinite entries.

    Source: Roth, Kilcher & Hofmann 2020, Table 1, Eqs. (11) and (12).
    """
    check_orders(p, q)
    check_tensor("matrix", matrix, "floating point numbers (rows, columns)", NormError)
    if matrix.ndim != 2 or not matrix.is_floating_point():
        raise NormError(
            f"expected a matrix of floating point numbers, got {matrix.dtype} of shape {tuple(matrix.shape)}"
        )
    A = matrix.detach().double()
    if not torch.isfinite(A).all():
        raise NormError(f"the matrix has {int((~torch.isfinite(A)).sum())} entries that are NaN or infinite")
    scale = float(A.abs().max()) if A.numel() else 0.0
    if scale == 0:
        return Norm.of(0.0, 0.0, "exact: zero")
    found = _of_matrix(A / scale, p, q, restarts, seed)
    return Norm(found.lower * scale, found.upper * scale, found.method)


def _of_matrix(A: Tensor, p: float, q: float, restarts: int, seed: int) -> Norm:
    m, n = A.shape
    columns = functools.cache(lambda q: float(lp_norm(A, q, 0).max()))
    rows = functools.cache(lambda p: float(lp_norm(A, conjugate(p)).max()))
    if p == 1 or n == 1:
        return Norm.of(columns(q), columns(q), "exact: largest column norm")
    if q == math.inf or m == 1:
        return Norm.of(rows(p), rows(p), "exact: largest row norm")
    slack, value = _slack(m, n), None
    if p == q == 2:
        value, method = float(torch.linalg.matrix_norm(A, 2)), "largest singular value"
    elif p == math.inf and n <= SIGNS:
        value, method = _over_signs(A, q), f"all {2**n:,} sign vectors"
    elif q == 1 and m <= SIGNS:
        value, method = _over_signs(A.T, conjugate(p)), f"all {2**m:,} sign vectors"
    if value is not None:
        return Norm.of(value * (1 - slack), value * (1 + slack), f"exact up to rounding: {method}")
    linear = LinearMap(lambda v: v @ A.T, lambda u: u @ A, (n,), (m,), A.device)
    _, singular_values, Vh = torch.linalg.svd(A, full_matrices=False)
    starts = _starts(A, Vh, p, restarts)
    lower = _from_below(linear, p, q, restarts, seed, starts)
    bounds = {
        "column norms": float(lp_norm(lp_norm(A, q, 0), conjugate(p), 0)),
        "row norms": float(lp_norm(lp_norm(A, conjugate(p)), q, 0)),
        **_interpolated(_Ends(n, m, columns, rows, float(singular_values[0])), p, q),
    }
    if (p, q) in ((math.inf, 2), (2, 1)):
        gram = A.T @ A if q == 2 else A @ A.T
        bounds["the Gram matrix"] = math.sqrt(float(gram.abs().sum()))
    return _interval(lower, bounds, slack, restarts)


@in_default_modes
def induced_norm(
    layer: nn.Module | LinearMap,
    p: float,
    q: float,
    in_shape: Shape = (),
    restarts: int = 8,
    seed: int = 0,
) -> Norm:
    """The induced norm ‖M‖_{p→q} of a layer without its bias, in float64.

    p = q is left to the norms made for it. 1→q and p→∞ of Linear and of convolutions with zero padding take one pass over
    the kernel. Everything else goes through the explicit matrix where it is small (4 million entries), and is an interval
    where it is not: power iteration from below, Riesz-Thorin between the exact ends from above.

    Args:
        layer: any affine layer, or a :class:`LinearMap`.
        p: of the input, in [1, inf].
        q: of the output, in [1, inf].
        in_shape: shape of one input, without the batch axis; a LinearMap has its own.
        restarts: of the power iteration, where it is needed.
        seed: of its random starts.

    Returns:
        ``lower <= ‖M‖_{p→q} <= upper``; the upper end is infinite where no bound is known.

    Raises:
        NormError: p or q below 1, a layer that is not affine, or weights as for :func:`operator_norm`.
    """
    check_orders(p, q)
    check_count("restarts", restarts, error=NormError)
    if isinstance(layer, LinearMap):
        return _of_map(layer, None, p, q, restarts, seed)
    layer, in_shape = unwrap(layer), as_shape(in_shape)
    check_weights(layer)
    double = in_float64(layer)
    if p == q == 2:
        return spectral_norm(layer, in_shape)
    with torch.no_grad():
        if p == q == 1 or p == q == math.inf:
            value = (l1 if p == 1 else linf)(double, in_shape)
            return Norm.of(value, value, "exact")
        weight: Any = getattr(double, "weight", None)
        if p == 1 and (plan := _single_plan(double, in_shape, 0)):
            value = pq_norm(weight, plan, q)
            return Norm.of(value, value, "exact: largest column norm")
        if q == math.inf and (plan := _single_plan(double, in_shape, 1)):
            value = pq_norm(weight, plan, conjugate(p))
            return Norm.of(value, value, "exact: largest row norm")
    return _of_map(linear_map(layer, in_shape), double, p, q, restarts, seed)


def _of_map(linear: LinearMap, layer: nn.Module | None, p: float, q: float, restarts: int, seed: int) -> Norm:
    n, m = math.prod(linear.in_shape), math.prod(linear.out_shape)
    if n * m <= DENSE and min(n, m) <= SHORT:
        return induced(linear.to_dense(), p, q, restarts, seed)
    lower = _from_below(linear, p, q, restarts, seed)
    bounds = {}
    if layer is not None:
        with contextlib.suppress(NormError):  # without exact ℓ1 and ℓ∞ norms there is no upper bound
            bounds = _interpolated(_layer_ends(layer, linear), p, q)
    return _interval(lower, bounds, _slack(m, n), restarts)


def _layer_ends(layer: nn.Module, linear: LinearMap) -> _Ends:
    shape = linear.in_shape
    weight: Any = getattr(layer, "weight", None)
    with torch.no_grad():
        one, infinity = float(l1(layer, shape)), float(linf(layer, shape))
        sigma = float(spectral_norm(layer, shape).upper)
        by_column, by_row = (_single_plan(layer, shape, side) for side in (0, 1))

        def columns(q: float) -> float:
            return float(pq_norm(weight, by_column, q)) if by_column else one  # ‖y‖_q <= ‖y‖_1

        def rows(p: float) -> float:
            return float(pq_norm(weight, by_row, conjugate(p))) if by_row else infinity  # ‖x‖_∞ <= ‖x‖_p

        sigma = min(sigma, math.sqrt(one) * math.sqrt(infinity))
    n, m = math.prod(shape), math.prod(linear.out_shape)
    return _Ends(n, m, functools.cache(columns), functools.cache(rows), sigma)


def _single_plan(layer: nn.Module, in_shape: Shape, side: int) -> Plan | None:
    """How to read columns (side 0) or rows (side 1) off the weight, where every entry of them is one weight."""
    if is_standard(layer, *LINEAR):
        return linear_plan(side, layer.weight.shape)
    if is_standard(layer, *CONV) and layer.padding_mode == "zeros":
        return conv_plan(side, layer.weight.shape, conv_geometry(layer), in_shape[1:])  # type: ignore[arg-type]
    if is_standard(layer, *TRANSPOSED):
        geometry, size = transpose_geometry(layer, in_shape[1:])  # type: ignore[arg-type]
        return conv_plan(1 - side, layer.weight.shape, geometry, size, in_shape[1:])
    return None


# ---------------------------------------------------------------- from below


@torch.no_grad()
def _from_below(
    linear: LinearMap, p: float, q: float, restarts: int, seed: int, starts: Tensor | None = None
) -> float:
    """The largest ‖Mv‖_q / ‖v‖_p of the power iteration from random starts, and from others (S, *in_shape)."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(restarts, *linear.in_shape, generator=generator, dtype=torch.float64).to(linear.device)
    v = torch.cat([v.sign(), v] if p == math.inf else [v, v.sign()])[: max(1, restarts)]
    v = v if starts is None else torch.cat([v, starts])
    v = v / per_row(lp_norm(v, p).clamp(min=1e-300), v)
    found = power_iteration(linear, v, p, q, steps=ITERATIONS, tolerance=1e-9)
    return float((found.value / lp_norm(found.v, p).clamp(min=1e-300)).max())


def _starts(A: Tensor, Vh: Tensor, p: float, count: int) -> Tensor:
    """Maximizers of simple lower bounds: long columns, the duals of long rows, the first right singular vectors."""
    count = min(count, *A.shape)
    unit = torch.eye(A.shape[1], dtype=A.dtype, device=A.device)[lp_norm(A, 2, 0).topk(count).indices]
    by_row = dual(A[lp_norm(A, conjugate(p)).topk(count).indices], conjugate(p))
    return torch.cat([unit, by_row, Vh[:count]])


def sign_vectors(n: int) -> Tensor:
    """The vectors of {-1, 1}^n, one of each pair ±s, (2^(n-1), n) float64."""
    bits = torch.arange(2 ** (n - 1))[:, None] >> torch.arange(n)
    return 1.0 - 2.0 * (bits & 1).double()


def _over_signs(A: Tensor, q: float) -> float:
    """The largest ‖A s‖_q over s in {-1, 1}^n: a convex function is largest at a corner of the cube."""
    parts = sign_vectors(A.shape[1]).to(A).split(4096)
    return max(float(lp_norm(signs @ A.T, q).max()) for signs in parts)


# ---------------------------------------------------------------- from above


def _interpolated(ends: _Ends, p: float, q: float) -> dict[str, float]:
    """Bounds by Riesz-Thorin and by the equivalence of norms, at (u, v) = (1/p, 1/q)."""
    u, v = 1 / p, 1 / q

    def moved(to_u: float, to_v: float) -> float:
        """‖x‖_{1/to_u} against ‖x‖_p on the way in, ‖y‖_q against ‖y‖_{1/to_v} on the way out."""
        return ends.inputs ** max(0.0, to_u - u) * ends.outputs ** max(0.0, v - to_v)

    diagonal = [i / (GRID - 1) for i in range(GRID)] + [u, v]
    bounds = {
        "norm equivalence with 2→2": moved(0.5, 0.5) * ends.sigma,
        "norm equivalence with r→r": min(moved(w, w) * _between(ends, w, w) for w in diagonal),
    }
    if v <= u:
        bounds["Riesz-Thorin interpolation"] = _between(ends, u, v)
    return bounds


def _between(ends: _Ends, u: float, v: float) -> float:
    """Riesz-Thorin at (u, v), v <= u: the best chord through it between points where the norm is known."""
    best = math.inf
    for i in range(GRID):
        w = v + (u - v) * i / (GRID - 1)  # (u, v) = w (1, v/w) + (1 - w) ((u - w)/(1 - w), 0)
        column = ends.columns(_inverse(v / w)) if w > 0 else 1.0
        row = ends.rows(_inverse((u - w) / (1 - w))) if w < 1 else 1.0
        if (column > 0 or w == 0) and (row > 0 or w == 1):
            best = min(best, column**w * row ** (1 - w))
    if (u, v) == (0.5, 0.5):
        return min(best, ends.sigma)
    # the ray from (1/2, 1/2) through (u, v) leaves the square at u = 1 or at v = 0
    to_column = 0.5 / (u - 0.5) if u > 0.5 else math.inf
    to_row = 0.5 / (0.5 - v) if v < 0.5 else math.inf
    far = min(to_column, to_row)
    if to_column <= to_row:
        end = ends.columns(_inverse(0.5 + far * (v - 0.5)))
    else:
        end = ends.rows(_inverse(0.5 + far * (u - 0.5)))
    return min(best, end ** (1 / far) * ends.sigma ** (1 - 1 / far))


def _interval(lower: float, bounds: dict[str, float], slack: float, restarts: int) -> Norm:
    name = min(bounds, key=lambda k: bounds[k], default="")
    upper = bounds.get(name, math.inf) * (1 + slack)
    how = f"upper by {name}" if name else "no upper bound is known"
    text = f"NP-hard in general: lower by power iteration with {restarts} restarts, {how}"
    return Norm.of(min(lower * (1 - slack), upper), upper, text)


def _slack(outputs: int, inputs: int) -> float:
    """Relative rounding of sums over rows and columns of a matrix."""
    return 16 * (outputs + inputs + 16) * unit_roundoff(torch.float64)


def _inverse(u: float) -> float:
    """The exponent 1/u, for u in [0, 1] up to rounding."""
    return 1 / min(u, 1.0) if u > 0 else math.inf
