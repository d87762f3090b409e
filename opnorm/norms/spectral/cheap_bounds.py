"""Bounds of a layer's ℓ2 norm from the literature, by name: for comparison, and where microseconds count."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from opnorm._core.argument_checks import as_shape, check_tensor
from opnorm._core.derived_weights import weight_of
from opnorm._core.frequencies import between, half_grid
from opnorm._core.layers import CONV, LINEAR_OR_CONV, Shape, check_weights, plain_copy
from opnorm._core.linear_map import linear_map
from opnorm._core.lp import dual, lp_norm, power_of_two
from opnorm._core.modes import in_default_modes
from opnorm._core.pull_back import pull_back
from opnorm._core.rounding import PRODUCT
from opnorm._core.settings import check_count
from opnorm.errors import NormError
from opnorm.norms.exact.kernel_sums import conv_l2_bound
from opnorm.norms.norm import Norm
from opnorm.norms.spectral.frequency_response import Polyphase, gram
from opnorm.norms.spectral.interval import polyphase_of, spectral_norm, sqrt_of_l1_linf

__all__ = ["BOUNDS", "bound", "sgl_norm", "vs_norm"]


@in_default_modes
def vs_norm(layer: nn.Module, in_shape: Shape, iterations: int = 100, seed: int = 0) -> float:
    """The value of power iteration through autograd on the layer, in eval mode and in the layer's own precision.

    v ← ∇_v ‖layer(v) - layer(0)‖² / 2, normalized: the value is ‖M v‖_2 / ‖v‖_2 for the last v, never above the norm but for
    rounding, and often below.

    Args:
        layer: an affine module with parameters.
        in_shape: shape of one input, without the batch axis.
        iterations: steps.
        seed: of the random start.

    Raises:
        NormError: weights as for :func:`operator_norm`.

    Source: Virmaux & Scaman 2018, Algorithm 1.
    """
    check_weights(layer)
    check_count("iterations", iterations, 0, error=NormError)
    x = torch.randn(1, *as_shape(in_shape), generator=torch.Generator().manual_seed(seed))
    layer = plain_copy(layer)  # computed weights as they are now; in train mode every pass would change some
    weight = next(layer.parameters(), None)
    if weight is None:
        raise NormError(f"{type(layer).__name__} has no parameters; expected a linear or convolutional layer")
    x = x.to(weight.device, weight.dtype)
    linear_map(layer, tuple(x.shape[1:]))  # raises where the layer is not affine or takes other inputs
    with torch.no_grad():
        offset = layer(torch.zeros_like(x))
    x, value = dual(x, 2), 0.0
    for _ in range(iterations):
        x.requires_grad_()
        with torch.enable_grad():
            image = layer(x) - offset
            gradient = pull_back(image, x, dual(image.detach(), 2))  # of ‖image‖_2
        x, value = dual(gradient, 2, x.detach()), float(lp_norm(image.detach(), 2))
    return value


@in_default_modes
def sgl_norm(weight: Tensor, input_size: Shape) -> float:
    """The largest singular value of a convolution of stride 1 with circular padding: max_ω ‖FFT(K)(ω)‖_2, all SVDs.

    Args:
        weight: kernel (C_out, C_in, *kernel), one group.
        input_size: spatial size of the input, per axis.

    Raises:
        NormError: a kernel larger than the input.

    Source: Sedghi, Gupta & Long 2019, Theorem 6.
    """
    check_tensor("weight", weight, "a kernel (C_out, C_in, *kernel)", NormError)
    input_size = as_shape(input_size, "input_size", "the spatial size of the input, such as (32, 32)")
    if weight.ndim != 2 + len(input_size):
        raise NormError(
            f"a kernel of shape {tuple(weight.shape)} and input_size={input_size}; expected a kernel "
            "(C_out, C_in, *kernel) with as many spatial axes as input_size has entries"
        )
    if any(k > n for k, n in zip(weight.shape[2:], input_size, strict=True)):
        raise NormError(f"SGL needs an input at least as large as the kernel, got {tuple(input_size)}")
    axes = range(2, weight.ndim)
    K = torch.fft.fftn(weight.detach().double(), s=tuple(input_size), dim=tuple(axes))
    return float(torch.linalg.svdvals(K.permute(*axes, 0, 1))[..., 0].max())


# ---------------------------------------------------------------- as intervals


def _thm1(layer: nn.Module, in_shape: Shape) -> Norm:
    if not isinstance(layer, LINEAR_OR_CONV):
        raise NormError(f"the bound 'thm1' is defined for Linear and Conv layers, got {type(layer).__name__}")
    positions = linear_map(layer, in_shape).out_shape[1:] if isinstance(layer, CONV) else ()
    upper = conv_l2_bound(weight_of(layer), positions) * (1 + PRODUCT)
    return Norm.of(0.0, upper, "upper bound sqrt(h_out w_out Σ K²), Liang & Huang 2021, Thm 1")


def _schur(layer: nn.Module, in_shape: Shape) -> Norm:
    return Norm.of(0.0, sqrt_of_l1_linf(layer, linear_map(layer, in_shape)), "upper bound sqrt(ℓ1 · ℓ∞)")


def _virmaux_scaman(layer: nn.Module, in_shape: Shape) -> Norm:
    value = vs_norm(layer, in_shape)
    return Norm.of(value * (1 - 1e-4), math.inf, "lower bound, 100 power iterations (Virmaux & Scaman 2018)")


def _sedghi(layer: nn.Module, in_shape: Shape) -> Norm:
    """The norm with circular padding; for zeros, that times the largest rise of the response between the grid's points."""
    if not isinstance(layer, CONV) or layer.groups > 1 or max(*layer.stride, *layer.dilation) > 1:
        raise NormError("SGL is defined for convolutions of stride 1, dilation 1 and one group")
    if layer.padding_mode not in ("zeros", "circular"):
        raise NormError(f"SGL is for circular padding, got {layer.padding_mode!r}")
    linear_map(layer, in_shape)  # checks the layer and the shape
    size = tuple(in_shape[1:])
    value = sgl_norm(weight_of(layer), size)
    factor = between(tuple((k - 1) / 2 for k in layer.kernel_size), size)
    return Norm.of(
        0.0,
        value * factor * (1 + 1e-9),
        f"{value:.6g} with circular padding (Sedghi, Gupta & Long 2019), times {factor:.4g} to hold for zeros",
    )


def _gram_iteration(layer: nn.Module, in_shape: Shape) -> Norm:
    """On the circle that holds the convolution."""
    t = _symbol(layer, in_shape, "gram")
    upper = _by_squaring(t, _frequencies(t.period(), t), 6)
    return Norm.of(0.0, upper * (1 + 1e-9), "upper bound by Gram iteration, 6 steps (Delattre et al. 2023)")


def _coarse(layer: nn.Module, in_shape: Shape) -> Norm:
    """On a grid of 6 times the symbol's degree on each axis, times the rise between its points, at most (2 / √3)^axes."""
    t = _symbol(layer, in_shape, "coarse")
    size = tuple(max(1, math.ceil(6 * d)) for d in t.degree)
    points = _frequencies(size, t, 0.5)
    upper = _by_squaring(t, points, 2) * between(t.degree, size)
    method = f"upper bound from {len(points)} frequencies (M. Riesz), any input size"
    return Norm.of(0.0, upper * (1 + 1e-9), method)


@torch.no_grad()
def _by_squaring(t: Polyphase, points: np.ndarray, steps: int) -> float:
    """The largest ‖A(ω)‖_2 ≤ ‖G^(2^t)‖_F^(1/2^(t+1)) after t steps of squaring, every G = A(ω)ᴴ A(ω) rescaled at each."""
    unit = power_of_two(t.matrices.abs().amax())
    g, best = gram(replace(t, matrices=t.matrices / unit)), -math.inf
    for some in np.array_split(points, -(-len(points) // 64)):
        for group in range(len(g.even)):
            G = g.at(some, group)
            log = torch.zeros(len(G), dtype=torch.float64, device=G.device)
            for step in range(steps + 1):
                size = torch.linalg.matrix_norm(G)
                log += size.log() / 2**step
                if step < steps:
                    G = G / size.clamp(min=1e-300)[:, None, None]
                    G = G @ G
            best = max(best, float(log.max()))
    return math.exp(best / 2) * float(unit)


def _frequencies(size: Shape, t: Polyphase, phase: float = 0.0) -> np.ndarray:
    """The frequencies 2π (j + phase) / size, one of each pair ±ω; only 0 on axes on which the symbol is constant."""
    moving = [n if d else 1 for n, d in zip(size, t.degree, strict=True)]
    return half_grid(moving, [phase if n > 1 else 0.0 for n in moving])[0]


def _symbol(layer: nn.Module, in_shape: Shape, name: str) -> Polyphase:
    t = polyphase_of(layer, in_shape)
    if t is None:
        raise NormError(
            f"the bound {name!r} is defined for zero-padded convolutions and Linear, got {type(layer).__name__}"
        )
    return t


BOUNDS: dict[str, Callable[[nn.Module, Shape], Norm]] = {
    "certified": spectral_norm,
    "coarse": _coarse,
    "thm1": _thm1,
    "schur": _schur,
    "gram": _gram_iteration,
    "vs": _virmaux_scaman,
    "sgl": _sedghi,
}
"""The bounds of an ℓ2 norm, by name."""


@in_default_modes
def bound(layer: nn.Module, in_shape: Shape, method: str = "certified") -> Norm:
    """The ℓ2 norm of a layer by a bound of the literature: one of ``BOUNDS``.

    Args:
        layer: Linear or Conv; "certified" and "schur" take more.
        in_shape: shape of one input, without the batch axis.
        method: "certified" (:func:`spectral_norm`); "coarse", quick on small kernels, (2 / √3)^axes and some percent too
            high;
            "thm1", "schur", "gram", "vs" or "sgl". For the plain values of the last two see :func:`vs_norm` and
            :func:`sgl_norm`.

    Raises:
        NormError: another name, a layer that the bound is not defined for, or weights as for :func:`operator_norm`.
    """
    if method not in BOUNDS:
        raise NormError(f"method={method!r} is not known; expected one of {', '.join(BOUNDS)}")
    check_weights(layer)
    return BOUNDS[method](layer, as_shape(in_shape))
