"""The ℓ2 operator norm of a layer, certified.

``spectral_norm(layer, in_shape)`` returns an interval that holds the true norm, rounding included. The method depends on the
layer: small matrices are diagonalized; convolutions go through their frequency response (``upper_bound.py``); other affine
layers get a lower bound by Lanczos iteration and an upper one from their exact ℓ1 and ℓ∞ norms.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core import lp
from opnorm._core.argument_checks import by_layer_type
from opnorm._core.batch_norm import batch_norm_scale
from opnorm._core.convolution import ConvGeometry, conv_geometry, transpose_geometry
from opnorm._core.derived_weights import weight_of
from opnorm._core.lanczos import steps_for
from opnorm._core.layers import (
    CONV,
    IDENTITY,
    TRANSPOSED,
    WEIGHTED,
    Shape,
    check_forward,
    check_weights,
    in_float64,
    is_standard,
    overrides,
    unwrap,
)
from opnorm._core.linear_map import LinearMap, linear_map
from opnorm._core.modes import in_default_modes
from opnorm._core.orders import check_interval
from opnorm._core.rounding import PRODUCT
from opnorm.errors import NormError
from opnorm.norms.exact.by_layer import l1, linf
from opnorm.norms.exact.separable import SEPARABLE
from opnorm.norms.norm import Norm
from opnorm.norms.spectral.block_gram import BlockGram
from opnorm.norms.spectral.border_regions import region_bound
from opnorm.norms.spectral.convolution_matrix import ConvolutionMatrix, as_convolution, plain_convolution
from opnorm.norms.spectral.divided_layer import divided_by
from opnorm.norms.spectral.explicit_matrix import diagonalized, first_upper_bound
from opnorm.norms.spectral.frequency_response import Polyphase, polyphase
from opnorm.norms.spectral.group_selection import leading_groups
from opnorm.norms.spectral.iterations import lanczos, random_start
from opnorm.norms.spectral.kronecker import kronecker_norm
from opnorm.norms.spectral.padded_convolution import circular_interval, inner_bound, padding_bound
from opnorm.norms.spectral.padded_groups import leading_kernels
from opnorm.norms.spectral.upper_bound import certify

__all__ = [
    "polyphase_of",
    "spectral_norm",
    "sqrt_of_l1_linf",
]

DENSE = 512  # up to this many rows or columns, the whole matrix is diagonalized
# places along the shorter side, up to which the border is too large a part for the frequency response
SMALL_MAP = 12
TINY = 1e-6  # relative widths below which a Lanczos iteration would take longer than a diagonalization
SMALLEST = 1e-100  # shorter maps, and longer ones, are scaled: their Gram matrices would leave float64
LANCZOS_INSTEAD = 2048  # sides of larger matrices take longer than a Lanczos iteration with a probability
LARGE = 4e6  # inputs and outputs from which on a Lanczos iteration takes long
NOTHING = Norm.of(0.0, math.inf, "not known")
WIDE = 0.03  # relative width from which on the remedy is named
WIDE_BANDS = 0.9  # of the side of a matrix: bands that are as much work as the whole one take longer to make
MANY = 1000  # steps of a Lanczos iteration that runs until it has converged


@in_default_modes
@by_layer_type
def spectral_norm(
    layer: nn.Module,
    in_shape: Shape,
    relative_width: float = 5e-3,
    failure_probability: float = 0.0,
    effort: int = 8192,
) -> Norm:
    """The ℓ2 operator norm of a layer as a certified interval, float rounding included; the same digits every time.

    Args:
        layer: any affine module; a bias does not matter.
        in_shape: shape of one input, without the batch axis.
        relative_width: upper / lower - 1 to aim at. Where the frequency response would leave more, layers of up to
            ``effort`` rows or columns are factorized as a whole; otherwise ``method`` states the width reached.
        failure_probability: with which the upper end may be wrong, such as 1e-9: allows a Lanczos certificate from a
            random start, for large layers with narrow intervals. 0 excludes such steps.
        effort: the largest matrix side to factorize for the sake of ``relative_width``. Time grows with its cube, memory
            with its square: 8192 takes some seconds (up to 20 with padding that copies) and 1.1 GB.

    Returns:
        ``Norm(lower, upper, method)``.

    Raises:
        NormError: the layer is not linear, or does not take such inputs, or weights as for :func:`operator_norm`.

    Source: methods in :mod:`opnorm.norms.spectral.upper_bound`; probability: Kuczyński & Woźniakowski 1992, Theorem 4.2.
    """
    check_interval(relative_width, failure_probability)
    check_weights(layer)
    linear = linear_map(layer, in_shape)
    if 0 in linear.shape:
        return Norm.of(0.0, 0.0, "exact: there are no inputs or no outputs")
    unit = float(lp.power_of_two(_length(layer, linear)))
    if not SMALLEST < unit < 1 / SMALLEST:
        divided = divided_by(unwrap(layer), unit)
        found = spectral_norm(divided, in_shape, relative_width, failure_probability, effort)
        return Norm(found.lower * unit, found.upper * unit, found.method)
    t = polyphase_of(layer, in_shape)
    if failure_probability and t is None:
        effort = min(effort, LANCZOS_INSTEAD)
    aim = relative_width, effort
    norm = _convolution(linear, t, *aim) if t else _other(layer, linear, *aim)
    if failure_probability and norm.relative_width > relative_width:
        norm = _with_probability(linear, norm, relative_width, failure_probability)
    if norm.relative_width > relative_width:
        norm = norm._replace(method=f"{norm.method}; relative width {norm.relative_width:.1e}{_remedy(norm)}")
    return norm


def _remedy(norm: Norm) -> str:
    return "; failure_probability=1e-9 makes it narrow" if norm.relative_width > WIDE else ""


def _length(layer: nn.Module, linear: LinearMap) -> Tensor:
    """About the size of the norm: of the weight, or of the image of a random input."""
    inner = unwrap(layer)
    if is_standard(inner, *WEIGHTED):
        return lp.lp_norm(weight_of(inner).detach().double().reshape(1, -1), 2)
    return lp.lp_norm(linear @ random_start(linear, 0), 2)


def _convolution(linear: LinearMap, t: Polyphase, relative_width: float, effort: int) -> Norm:
    """By the frequency response; small maps rather as a whole, where the border is too large a part of them."""
    count = len(t.matrices)
    t, lower, rest = leading_groups(t, relative_width)
    if len(t.matrices) < count and t.whole == t.reach:
        linear = t.as_map()
    norm = _of_all_groups(linear, t, NOTHING, relative_width, effort)
    lower = max(lower, float(norm.lower))
    return Norm.of(lower, max(float(norm.upper), rest, lower), norm.method)


def _of_all_groups(linear: LinearMap, t: Polyphase, norm: Norm, relative_width: float, effort: int) -> Norm:
    side = min((n for n, d in zip(t.reach, t.degree, strict=True) if d), default=SMALL_MAP)
    small = side < SMALL_MAP and min(linear.shape) > DENSE and relative_width >= TINY and _cost(t) <= effort
    if small:
        norm = _whole_matrix(linear, t, norm, relative_width, effort)
        if norm.relative_width <= relative_width:
            return norm
    certified = certify(t, relative_width)
    norm = Norm.of(
        max(certified.lower, float(norm.lower)),
        min(certified.upper, float(norm.upper)),
        f"certified: {certified.method}, {certified.factorizations} factorizations",
    )
    if norm.relative_width <= relative_width:
        return norm
    return _whole_matrix(linear, t, norm, relative_width, 0 if small else effort)


def _other(layer: nn.Module, linear: LinearMap, relative_width: float, effort: int) -> Norm:
    """A map without a polyphase form."""
    if min(linear.shape) <= DENSE:
        return _whole_matrix(linear, None, NOTHING, relative_width, 0)
    if (circular := circular_interval(layer, linear.in_shape, relative_width)) is not None:
        return Norm.of(circular.lower, circular.upper, f"certified: frequency response, {circular.method}")
    convolution = as_convolution(layer, linear.in_shape)
    if convolution is not None and convolution.geometry.groups > 1:
        K, lower, rest = leading_kernels(convolution, relative_width, effort)
        if len(K) < convolution.geometry.groups:
            return _of_leading(layer, convolution.of_groups(K), lower, rest, relative_width, effort)
    inside = inner_bound(layer, linear.in_shape, relative_width) if sum(linear.shape) > LARGE else None
    lower, how_low = (
        (inside, "outputs without padding") if inside else (lanczos(linear, 40), "Lanczos iteration")
    )
    bounds = (
        (sqrt_of_l1_linf(layer, linear), "sqrt(ℓ1 · ℓ∞)"),
        (
            padding_bound(layer, linear.in_shape, relative_width),
            "norm of the padding times that of the convolution",
        ),
    )
    upper, how = min(bounds)
    norm = Norm.of(lower, max(upper, lower), f"{how_low}; {how}")
    if norm.relative_width <= relative_width:
        return norm
    if convolution is not None:
        gram = convolution.block_gram()
        if gram.side <= effort or effort < DENSE:
            return _factorized(linear, gram, norm, relative_width) if gram.side <= effort else norm
        if not inside:
            lower = max(lower, lanczos(linear, MANY, tolerance=relative_width / 50))
        upper, how = min((float(norm.upper), how), region_bound(convolution, lower, relative_width, effort))
        norm = Norm.of(lower, max(upper, lower), f"{how_low}; {how}")
    return _whole_matrix(linear, None, norm, relative_width, effort)


def _of_leading(
    layer: nn.Module, convolution: ConvolutionMatrix, lower: float, rest: float, *aim: Any
) -> Norm:
    """From those groups that may have the largest norm, a lower bound of it, and an upper bound of the others'."""
    few = plain_convolution(layer, convolution.K, convolution.geometry.groups)
    norm = _other(few, convolution.linear(), *aim)
    lower = max(lower, float(norm.lower))
    return Norm.of(lower, max(float(norm.upper), rest, lower), norm.method)


def _whole_matrix(
    linear: LinearMap, t: Polyphase | None, norm: Norm, relative_width: float, effort: int
) -> Norm:
    """Diagonalized where that is quick or must be, else factorized; the groups of a convolution one by one."""
    M = t or linear
    side = min(M.shape)
    # without a polyphase form, making the matrix takes longer than its factorization
    cost = 2 * side if isinstance(M, LinearMap) else _cost(M)
    if (side <= DENSE and cost <= 4 * DENSE) or (2 * side <= effort and relative_width < TINY):
        return Norm.of(*diagonalized(M), f"diagonalized {side} x {side}, to rounding")
    if cost > effort:
        return norm
    blocks = t.block_gram() if t and t.short is None else None
    less = blocks is not None and blocks.side < WIDE_BANDS * cost
    return _factorized(linear, blocks if blocks and less else M, norm, relative_width)


def _cost(t: Polyphase) -> float:
    """The side of a matrix whose factorization takes as long as those of all groups."""
    return min(t.shape) * len(t.matrices) ** (1 / 3)


def _factorized(
    linear: LinearMap, M: LinearMap | Polyphase | BlockGram, norm: Norm, relative_width: float
) -> Norm:
    """The lower end by Lanczos, the upper one by a Cholesky factorization of θ² I - MᵀM."""
    lower = max(float(norm.lower), lanczos(linear, MANY, tolerance=relative_width / 50))
    candidates = [lower * (1 + 0.99 * relative_width * factor) for factor in (1, 4)]
    candidates = [c for c in candidates if c < norm.upper]
    if isinstance(M, BlockGram):
        upper, side, kind = M.first_upper_bound(candidates), min(linear.shape), "block factorization"
    else:
        upper, side, kind = first_upper_bound(M, candidates), min(M.shape), "factorization"
    if upper == math.inf:
        return norm._replace(lower=torch.tensor(lower, dtype=torch.float64))
    return Norm.of(lower, upper, f"one {kind} of {side} x {side}")


def _with_probability(
    linear: LinearMap, norm: Norm, relative_width: float, failure_probability: float
) -> Norm:
    """The upper end from Lanczos iteration with a random start, right but for this probability."""
    factor = 1 + 0.9 * relative_width
    steps = steps_for(linear.shape[1], factor, failure_probability)
    lower = max(lanczos(linear, steps), float(norm.lower))
    upper = min(float(norm.upper), lower * factor * (1 + PRODUCT))
    method = f"Lanczos, {steps} steps: upper end right with probability 1 - {failure_probability:g}"
    return Norm.of(lower, upper, method)


def sqrt_of_l1_linf(layer: nn.Module, linear: LinearMap) -> float:
    """sqrt(‖M‖_1 ‖M‖_∞) ≥ ‖M‖_2, infinite where those are not known."""
    double = in_float64(layer)
    try:
        with torch.no_grad():
            one, infinity = float(l1(double, linear.in_shape)), float(linf(double, linear.in_shape))
    except NormError:
        return math.inf
    return math.sqrt(one) * math.sqrt(infinity) * (1 + PRODUCT)


# ---------------------------------------------------------------- layers with a polyphase form


@functools.singledispatch
def polyphase_of(layer: nn.Module, in_shape: Shape) -> Polyphase | None:
    """A layer as a zero-padded convolution of stride 1 with the same ℓ2 norm; None where that is not possible.

    New layer types join by ``@polyphase_of.register(MyLayer)``.
    """
    return None


@polyphase_of.register(nn.Linear)
def _(layer: nn.Linear, in_shape: Shape) -> Polyphase | None:
    if overrides(layer, nn.Linear):
        return None
    W = weight_of(layer).detach()
    return polyphase(W[:, :, None], ConvGeometry((1,), (1,), ((0, 0),), (1,), 1), (1,))


@polyphase_of.register(nn.modules.conv._ConvNd)
def _(layer: nn.modules.conv._ConvNd, in_shape: Shape) -> Polyphase | None:
    if layer.padding_mode != "zeros" or overrides(layer, *CONV):
        return None
    return polyphase(weight_of(layer).detach(), conv_geometry(layer), tuple(in_shape[1:]))


@polyphase_of.register(nn.modules.conv._ConvTransposeNd)
def _(layer: nn.modules.conv._ConvTransposeNd, in_shape: Shape) -> Polyphase | None:
    """A transposed convolution is the adjoint of the convolution with the same kernel, from its output back."""
    if overrides(layer, *TRANSPOSED):
        return None
    geometry, out_size = transpose_geometry(layer, tuple(in_shape[1:]))
    return polyphase(weight_of(layer).detach(), geometry, out_size, tuple(in_shape[1:]))


@spectral_norm.register(nn.modules.batchnorm._BatchNorm)
def _(layer: nn.modules.batchnorm._BatchNorm, in_shape: Shape, *args: float, **kwargs: float) -> Norm:
    gain = batch_norm_scale(in_float64(layer)).abs().max()
    return Norm.of(gain, gain, "exact: a diagonal map")


def _identity(layer: nn.Module, in_shape: Shape, *args: float, **kwargs: float) -> Norm:
    check_forward(layer, *IDENTITY)
    return Norm.of(1.0, 1.0, "exact: rearranges its input")


for _kind in IDENTITY:
    spectral_norm.register(_kind, _identity)


def _separable(layer: nn.Module, in_shape: Shape, *args: Any, **kwargs: Any) -> Norm:
    if overrides(layer, *SEPARABLE):
        return spectral_norm.dispatch(nn.Module)(layer, in_shape, *args, **kwargs)
    return kronecker_norm(layer, in_shape)


for _kind in SEPARABLE:
    spectral_norm.register(_kind, _separable)
