"""The ℓ2 operator norm of a layer, certified.

``spectral_norm(layer, in_shape)`` returns an interval that holds the truth, rounding included. How it is found
depends on the layer: small matrices are diagonalized;
convolutions go through their symbol (``upper_bound.py``); what is affine but has no
symbol here gets a lower bound by Lanczos iteration and an upper one from its exact ℓ1 and ℓ∞ norms.
"""

import functools
import math
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.batch_norm import batch_norm_scale
from opnorm._core.convolution import ConvGeometry, conv_geometry, pad_index
from opnorm._core.layers import Shape, in_float64, overrides
from opnorm._core.linear_map import LinearMap, linear_map
from opnorm.errors import NormError
from opnorm.norms.exact.by_layer import l1, linf
from opnorm.norms.spectral.explicit_matrix import diagonalized, least_shown, side_of
from opnorm.norms.spectral.frequency_response import Taps, taps
from opnorm.norms.spectral.upper_bound import certify, circular

__all__ = [
    "ROUNDING",
    "Norm",
    "check_width",
    "lanczos",
    "power_iteration",
    "schur",
    "spectral_norm",
    "symbol_of",
]

ROUNDING = 1e-12  # far above the float64 rounding of one product with a layer, far below any digit shown
DENSE = 512  # up to this many rows or columns, the whole matrix is diagonalized
# places along the shorter side, up to which the border is too large a part for the frequency response
SMALL_MAP = 12
TINY = 1e-6  # widths below which a Lanczos iteration would take longer than a diagonalization
MANY = 1000  # steps of a Lanczos iteration that shall settle


class Norm(NamedTuple):
    """An operator norm as far as it is known: ``lower <= ‖M‖ <= upper``.

    Attributes:
        lower: 0-d float64 tensor.
        upper: 0-d float64 tensor, infinite where no upper bound is known; equal to ``lower`` where exact.
        method: how it was found, in words.
    """

    lower: Tensor
    upper: Tensor
    method: str

    @property
    def exact(self) -> bool:
        """Whether both ends are the same number by construction."""
        return bool(self.lower == self.upper)

    @property
    def width(self) -> float:
        """The relative width: upper / lower - 1; 0 for a norm of 0."""
        return float(self.upper / self.lower) - 1 if self.lower > 0 else 0.0 if self.upper == 0 else math.inf

    @staticmethod
    def of(lower: float | Tensor, upper: float | Tensor, method: str) -> "Norm":
        """From numbers or tensors of any type and device."""
        low, high = (torch.as_tensor(end, dtype=torch.float64).detach().cpu() for end in (lower, upper))
        return Norm(low, high, method)


@functools.singledispatch
def spectral_norm(
    layer: nn.Module, in_shape: Shape, width: float = 5e-3, failure: float = 0.0, effort: int = 8192
) -> Norm:
    """The ℓ2 operator norm of a layer as a certified interval, float rounding included; the same digits every time.

    Args:
        layer: any affine module; a bias does not matter.
        in_shape: shape of one input, without the batch axis.
        width: upper / lower - 1 to aim at. Where the symbol would end wider, layers of up to ``effort`` rows or columns are
            factorized as a whole; otherwise ``method`` says what width was reached.
        failure: probability with which the upper end may be wrong, such as 1e-9: allows a Lanczos certificate from a random
            start, for large layers with narrow intervals. 0 asks for certainty.
        effort: the largest matrix side to factorize for the sake of ``width``. Time grows with its cube, memory with its
            square: 8192 takes some seconds and 1.1 GB.

    Returns:
        ``Norm(lower, upper, method)``.

    Raises:
        NormError: the layer is not linear, or does not take such inputs.

    Source: methods in :mod:`opnorm.norms.spectral.upper_bound`; probability: Kuczyński & Woźniakowski 1992, Theorem 4.2.
    """
    check_width(width, failure)
    linear, t = linear_map(layer, in_shape), symbol_of(layer, in_shape)
    found = _otherwise(layer, linear, width, effort) if t is None else _by_symbol(linear, t, width, effort)
    if failure and found.width > width:
        found = _with_probability(linear, found, width, failure)
    if found.width > width:
        found = found._replace(method=f"{found.method}; width reached {found.width:.1e}")
    return found


def check_width(width: float = 5e-3, failure: float = 0.0) -> None:
    """NormError unless an interval can be asked for like this."""
    if not 0 < width < math.inf or not 0 <= failure < 1:
        raise NormError(
            f"width={width!r}, failure={failure!r}: expected a width above 0 and a probability in [0, 1)"
        )


def _by_symbol(linear: LinearMap, t: Taps, width: float, effort: int) -> Norm:
    """A convolution, by its frequency response; small maps rather as a whole, for there the border counts too much."""
    first = Norm.of(0.0, math.inf, "not known")
    small = _side(linear) > DENSE and _is_small_map(t) and _cost_of(t) <= effort and width >= TINY
    if small:
        first = _factorized(linear, t, first, width)
        if first.width <= width:
            return first
    found = certify(t, width)
    lower, upper = max(found.lower, float(first.lower)), min(found.upper, float(first.upper))
    norm = Norm.of(lower, upper, f"certified: {found.note}, {found.factorizations} factorizations")
    return norm if norm.width <= width else _as_a_whole(linear, t, norm, width, 0 if small else effort)


def _otherwise(layer: nn.Module, linear: LinearMap, width: float, effort: int) -> Norm:
    """A map without a symbol."""
    if _side(linear) <= DENSE:
        return _diagonalized(linear)
    lower = lanczos(linear, 40)[0]
    upper, how = min((schur(layer, linear), "sqrt(ℓ1 · ℓ∞)"), _padded(layer, linear.in_shape, lower, width))
    norm = Norm.of(lower, max(upper, lower), f"Lanczos iteration; {how}")
    return norm if norm.width <= width else _as_a_whole(linear, None, norm, width, effort)


def _as_a_whole(linear: LinearMap, t: Taps | None, norm: Norm, width: float, effort: int) -> Norm:
    side = _side(linear)
    if side <= DENSE or (2 * side <= effort and width < TINY):
        return _diagonalized(linear)
    cost = 2 * side if t is None else _cost_of(t)  # without taps, making the matrix takes longer still
    return _factorized(linear, t, norm, width) if cost <= effort else norm


def _side(linear: LinearMap) -> int:
    return min(math.prod(linear.in_shape), math.prod(linear.out_shape))


def _cost_of(t: Taps) -> float:
    """The side of a matrix whose factorization takes as long as those of all groups."""
    return side_of(t) * len(t.matrices) ** (1 / 3)


def _is_small_map(t: Taps) -> bool:
    return min((n for n, d in zip(t.reach, t.degree, strict=True) if d), default=SMALL_MAP) < SMALL_MAP


def _diagonalized(linear: LinearMap) -> Norm:
    side = _side(linear)
    return Norm.of(*diagonalized(linear), f"diagonalized {side} x {side}, to rounding")


def _factorized(linear: LinearMap, t: Taps | None, norm: Norm, width: float) -> Norm:
    """The lower end by Lanczos, the upper one by a Cholesky factorization of θ² I - MᵀM."""
    lower = max(float(norm.lower), lanczos(linear, MANY, settled=width / 50)[0])
    tries = [lower * (1 + 0.99 * width * wider) for wider in (1, 4)]
    upper = least_shown(linear if t is None else t, [theta for theta in tries if theta < norm.upper])
    if upper == math.inf:
        return norm._replace(lower=torch.tensor(lower, dtype=torch.float64))
    side = _side(linear) if t is None else side_of(t)
    return Norm.of(lower, upper, f"one factorization of {side} x {side}")


def schur(layer: nn.Module, linear: LinearMap) -> float:
    """sqrt(‖M‖_1 ‖M‖_∞), infinite where those are not known."""
    double = in_float64(layer)
    try:
        with torch.no_grad():
            product = float(l1(double, linear.in_shape)) * float(linf(double, linear.in_shape))
    except NormError:
        return math.inf
    return math.sqrt(product) * (1 + ROUNDING)


def _padded(layer: nn.Module, in_shape: Shape, lower: float, width: float) -> tuple[float, str]:
    """An upper bound for a convolution whose padding copies the input, infinite for any other layer.

    With circular padding that closes the circle, its frequency response. Else the norm of the convolution of the padded
    input, certified, times the norm of the padding, sqrt(∏_axes how often a position is shown at most).
    """
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    if not isinstance(layer, kinds) or overrides(layer, *kinds) or layer.padding_mode == "zeros":
        return math.inf, ""
    geometry, size = conv_geometry(layer, any_mode=True), tuple(in_shape[1:])
    K, bare = layer.weight.detach(), geometry._replace(padding=((0, 0),) * len(size), mode="zeros")
    circle = tuple(n // s for n, s in zip(size, geometry.stride, strict=True))
    closed = all(m * s == n for m, s, n in zip(geometry.out_size(size), geometry.stride, size, strict=True))
    if geometry.mode == "circular" and closed:
        reach = tuple(n + d * k for n, d, k in zip(size, geometry.dilation, geometry.kernel, strict=True))
        return circular(taps(K, bare, reach), circle, lower, width), "frequency response"
    shown = [pad_index(n, *p, geometry.mode) for n, p in zip(size, geometry.padding, strict=True)]
    copies = math.prod(max(Counter(axis).values()) for axis in shown)
    upper = certify(taps(K, bare, tuple(map(len, shown))), width).upper
    return upper * math.sqrt(copies) * (1 + ROUNDING), "norm of the padding times that of the convolution"


# ---------------------------------------------------------------- layers with a symbol


@functools.singledispatch
def symbol_of(layer: nn.Module, in_shape: Shape) -> Taps | None:
    """A layer as a zero-padded convolution of stride 1 with the same ℓ2 norm; None where that is not possible.

    New layer types join by ``@symbol_of.register(MyLayer)``.
    """
    return None


@symbol_of.register(nn.Linear)
def _(layer: nn.Linear, in_shape: Shape) -> Taps | None:
    if overrides(layer, nn.Linear):
        return None
    W = layer.weight.detach()
    return taps(W[:, :, None], ConvGeometry((1,), (1,), ((0, 0),), (1,), 1), (1,))


@symbol_of.register(nn.Conv1d)
@symbol_of.register(nn.Conv2d)
@symbol_of.register(nn.Conv3d)
def _(layer: nn.modules.conv._ConvNd, in_shape: Shape) -> Taps | None:
    if layer.padding_mode != "zeros" or overrides(layer, nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return None
    return taps(layer.weight.detach(), conv_geometry(layer), tuple(in_shape[1:]))


@symbol_of.register(nn.ConvTranspose1d)
@symbol_of.register(nn.ConvTranspose2d)
@symbol_of.register(nn.ConvTranspose3d)
def _(layer: nn.modules.conv._ConvTransposeNd, in_shape: Shape) -> Taps | None:
    """A transposed convolution is the adjoint of the convolution with the same kernel, from its output back."""
    if overrides(layer, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        return None
    pads = tuple((int(p), int(p)) for p in layer.padding)
    geometry = ConvGeometry(
        tuple(layer.kernel_size), tuple(layer.stride), pads, tuple(layer.dilation), layer.groups
    )
    out = linear_map(layer, in_shape).out_shape
    return taps(layer.weight.detach(), geometry, out[1:], tuple(in_shape[1:]))


for _kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):

    @spectral_norm.register(_kind)
    def _(layer: nn.modules.batchnorm._BatchNorm, in_shape: Shape, *args: float, **kwargs: float) -> Norm:
        gain = batch_norm_scale(in_float64(layer)).abs().max()
        return Norm.of(gain, gain, "exact: a diagonal map")


# ---------------------------------------------------------------- iterations


@torch.no_grad()
def power_iteration(
    linear: LinearMap, iterations: int = 100, seed: int = 0, tolerance: float = 1e-9
) -> float:
    """A lower bound of ‖M‖_2: ‖M v‖_2 for the unit vector v reached by ``iterations`` steps v ← MᵀM v / ‖MᵀM v‖.

    Every value ‖M v‖_2 / ‖v‖_2 is a true lower bound; it is lowered by a relative 1e-12 for rounding.

    Args:
        linear: the map, in float64.
        iterations: at most so many products with M and Mᵀ.
        seed: of the random start.
        tolerance: stop when the value grows by less than this, relatively.
    """
    v = _random_start(linear, seed)
    best = 0.0
    for _ in range(iterations):
        u = linear @ (v / torch.linalg.vector_norm(v))
        value = float(torch.linalg.vector_norm(u))
        if value <= best * (1 + tolerance):
            best = max(best, value)
            break
        best = value
        v = linear.T @ u
    return best * (1 - ROUNDING)


def _random_start(linear: LinearMap, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *linear.in_shape, generator=generator, dtype=torch.float64).to(linear.device)


@torch.no_grad()
def lanczos(linear: LinearMap, iterations: int, seed: int = 0, settled: float = 0.0) -> tuple[float, int]:
    """A lower bound of ‖M‖_2 by Lanczos iteration on MᵀM with full reorthogonalization, from a random start.

    Args:
        linear: the map, in float64.
        iterations: at most so many products with M and Mᵀ.
        seed: of the random start.
        settled: stop when ten steps add less than this to the value, relatively.

    Returns:
        ‖M v‖_2 / ‖v‖_2 for the best v of the Krylov space, lowered by 1e-12 for rounding, and how many steps were taken
        (fewer when the space is exhausted: then the value is the norm).
    """
    n = math.prod(linear.in_shape)
    iterations = min(iterations, n)
    v = _random_start(linear, seed).flatten()
    Q, U = (v.new_empty(iterations, size) for size in (n, math.prod(linear.out_shape)))
    H = v.new_zeros(iterations, iterations)  # of U Uᵀ
    Q[0], steps, before = v / torch.linalg.vector_norm(v), 0, 0.0
    while True:
        image = linear @ Q[steps].view(1, *linear.in_shape)
        U[steps] = image.flatten()
        steps += 1
        H[steps - 1, :steps] = H[:steps, steps - 1] = U[:steps] @ U[steps - 1]
        if settled and steps % 10 == 0:
            now = float(torch.linalg.eigvalsh(H[:steps, :steps])[-1])
            if now <= before * (1 + settled) ** 2:
                break
            before = now
        if steps == iterations:
            break
        new = (linear.T @ image).flatten()
        scale = torch.linalg.vector_norm(new)
        for _ in range(2):  # twice is enough
            new = new - (Q[:steps] @ new) @ Q[:steps]
        size = torch.linalg.vector_norm(new)
        if not size > 1e-12 * scale:
            break
        Q[steps] = new / size
    v = torch.linalg.eigh(H[:steps, :steps])[1][:, -1] @ Q[:steps]
    image = linear @ v.view(1, *linear.in_shape)
    return float(torch.linalg.vector_norm(image) / torch.linalg.vector_norm(v)) * (1 - ROUNDING), steps


def _with_probability(linear: LinearMap, norm: Norm, width: float, failure: float) -> Norm:
    """Lanczos from a random start: P(λ_k < (1 - ε) λ_max) ≤ 1.648 sqrt(n) exp(-sqrt(ε) (2 k - 1))."""
    n = math.prod(linear.in_shape)
    epsilon = 1 - (1 + 0.9 * width) ** -2
    steps = math.ceil((math.log(1.648 * math.sqrt(n) / failure) / math.sqrt(epsilon) + 1) / 2)
    lower, _ = lanczos(linear, min(steps, n))
    lower = max(lower, float(norm.lower))
    upper = min(float(norm.upper), lower / math.sqrt(1 - epsilon) * (1 + ROUNDING))
    return Norm.of(
        lower, upper, f"Lanczos, {min(steps, n)} steps: upper end right with probability 1 - {failure:g}"
    )
