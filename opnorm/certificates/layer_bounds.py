"""Bounds on the outputs of a layer, in the arithmetic in which it computes them.

The bounds enclose not only the layer's formula but the values that the model computes in float32. A sum of n products in any
order, with or without fused multiplication, has an error of at most γ_n = n u / (1 - n u) times the sum of their absolute
values, with u = 2^-24. This is 2^29 times the error of the same sum in float64, in which the bounds are computed, so one
percent more of it covers the rounding of the bounds themselves.

Linear layers, (transposed) convolutions, ReLU, pooling, Flatten, dropout and batch norm have bounds; other layers join by
``@layer_bounds.register``.
"""

import functools
import inspect
import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.batch_norm import channel_scale
from opnorm._core.layers import (
    AVERAGE_POOL,
    BATCH_NORM,
    TRANSPOSED,
    WEIGHTED,
    ConvLayer,
    ConvTransposeLayer,
    Shape,
    is_standard,
    overrides,
)
from opnorm._core.linear_map import LinearMap, linear_map
from opnorm.errors import NormError

__all__ = [
    "UNIT", "Affine", "LayerBounds", "NoBoundsError", "Reshape", "diagonal", "layer_bounds", "lower_sum",
    "network_bounds", "sequential_layers",
]  # fmt: skip

UNIT = 2.0**-24
TF32 = 2.0**-9  # twice the relative error of a product whose factors are rounded to 11 bits
TINY = 1e-30  # far above the error of float32 by underflow


class NoBoundsError(Exception):
    """A layer or network without bounds, with the reason."""


@runtime_checkable
class LayerBounds(Protocol):
    """Bounds on one layer. Values have shape (B, *in_shape), and everything is float64.

    Attributes:
        out_shape: of one output.
        work: number of multiplications for one input.
    """

    out_shape: Shape
    work: int

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds on the outputs from bounds on the inputs."""

    def backward(self, A: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """A' (B, R, *in_shape) and c (B, R) with <A, layer(x)> >= <A', x> + c for all x between the bounds.

        A (B, R, *out_shape) holds R functionals for each point.
        """


def lower_sum(terms: Tensor) -> Tensor:
    """A lower bound of the sums over all but the first two axes; (B, R, ...) -> (B, R)."""
    terms = terms.flatten(2)
    return terms.sum(2) - terms.shape[2] * 2.0**-52 * terms.abs().sum(2)


@dataclass(eq=False)
class Affine:
    """x -> W x + b, computed in float32.

    Attributes:
        map: W.
        size: x -> |W| x.
        bias: b, of a shape that adds to the output.
        bias_size: |b|, or the sum of the absolute values of its parts where it is computed from some.
        terms: number of summands of an output, or of operations.
        work: number of multiplications for one input.
    """

    map: LinearMap
    size: LinearMap
    bias: Tensor
    bias_size: Tensor
    terms: int
    work: int

    def __post_init__(self) -> None:
        self.out_shape = self.map.out_shape
        gamma = self.terms * UNIT / (1 - self.terms * UNIT)
        backends = torch.backends
        tf32 = backends.cuda.matmul.allow_tf32 or backends.cudnn.allow_tf32
        self.unit = 1.01 * (gamma + (TF32 if tf32 and self.map.device.type == "cuda" else 0))

    def rounding(self, low: Tensor, high: Tensor) -> Tensor:
        """The largest error of the computed outputs, (B, *out_shape)."""
        return self.unit * (self.size @ torch.maximum(low.abs(), high.abs()) + self.bias_size) + TINY

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """By center and radius."""
        center = self.map @ ((low + high) / 2) + self.bias
        radius = self.size @ ((high - low) / 2) + self.rounding(low, high)
        return center - radius, center + radius

    def backward(self, A: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """<A, W x + b> = <Wᵀ A, x> + <A, b>, less the error by rounding."""
        c = lower_sum(A * self.bias) + lower_sum(-A.abs() * self.rounding(low, high)[:, None])
        return (self.map.T @ A.flatten(0, 1)).unflatten(0, A.shape[:2]), c


@dataclass(eq=False)
class Reshape:
    """The same numbers in another shape."""

    in_shape: Shape
    out_shape: Shape
    work: int = 0

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """In the other shape."""
        return low.reshape(-1, *self.out_shape), high.reshape(-1, *self.out_shape)

    def backward(self, A: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """In the other shape."""
        return A.reshape(*A.shape[:2], *self.in_shape), A.new_zeros(A.shape[:2])


@dataclass(eq=False)
class ReLU:
    """max(x, 0): at most the line through both ends, at least 0 or x, whichever leaves the smaller area.

    Source: Zhang et al. 2018 (CROWN), Singh et al. 2019 (DeepPoly).
    """

    out_shape: Shape
    work: int = 0

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """It is monotone."""
        return low.clamp(min=0), high.clamp(min=0)

    def backward(self, A: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The line from below where A > 0, that from above where A < 0."""
        up, down = high.clamp(min=0), low.clamp(max=0)
        slope = torch.where(down < 0, up / (up - down).clamp(min=1e-300), 1.0)
        offset = torch.where((down < 0) & (up > 0), -down * slope + 1e-14 * (up - down), 0.0)
        floor = torch.where(down < 0, (up > -down).double(), 1.0)
        return (
            A.clamp(min=0) * floor[:, None] + A.clamp(max=0) * slope[:, None],
            lower_sum(A.clamp(max=0) * offset[:, None]),
        )


@dataclass(eq=False)
class MaxPool:
    """The largest of a window: at least the input whose lower bound is largest, at most the largest upper bound."""

    layer: nn.Module
    in_shape: Shape
    out_shape: Shape
    work: int = 0

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """It is monotone."""
        return self.layer(low), self.layer(high)

    def backward(self, A: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """To one input of each window where A > 0, to none where A < 0."""
        m, axes = self.layer, len(self.in_shape) - 1
        pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]
        _, index = pool(low, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, True)
        index = index.flatten(-axes)[:, None].expand(-1, A.shape[1], -1, -1)
        back = A.new_zeros(*A.shape[:2], self.in_shape[0], math.prod(self.in_shape[1:]))
        back.scatter_add_(-1, index, A.clamp(min=0).flatten(-axes))
        return back.unflatten(-1, self.in_shape[1:]), lower_sum(A.clamp(max=0) * self.layer(high)[:, None])


# ---------------------------------------------------------------- networks


def network_bounds(model: nn.Module, in_shape: Shape) -> list[LayerBounds]:
    """The bounds of the layers of a sequential network, in order.

    Raises:
        NoBoundsError: the network is not sequential, or a layer has no bounds (which, and why).
    """
    bounds: list[LayerBounds] = []
    for name, layer in sequential_layers(model):
        try:
            _check(layer)
            bounds.append(layer_bounds(layer, bounds[-1].out_shape if bounds else in_shape))
        except (NoBoundsError, NormError) as e:
            raise NoBoundsError(f"{name or 'the model'} ({type(layer).__name__}): {e}") from e
    return bounds


def sequential_layers(model: nn.Module, name: str = "") -> list[tuple[str, nn.Module]]:
    """The layers in order with their names, of nested ``nn.Sequential``; any other model is one layer.

    Raises:
        NoBoundsError: a module has hooks.
    """
    if any(vars(model)[kind] for kind in ("_forward_hooks", "_forward_pre_hooks")):
        raise NoBoundsError(f"{name or 'the model'} has hooks, which may change what it computes")
    if not is_standard(model, nn.Sequential):
        return [(name, model)]
    children = model.named_children()
    return [pair for n, child in children for pair in sequential_layers(child, f"{name}.{n}".lstrip("."))]


def _check(layer: nn.Module) -> None:
    for t in (*layer.parameters(), *layer.buffers()):
        if t.is_floating_point() and not t.isfinite().all():
            raise NoBoundsError("its weights are not finite")
        if t.is_floating_point() and t.dtype not in (torch.float32, torch.float64):
            raise NoBoundsError(f"its weights are {t.dtype}")
    base = next(kind for kind in type(layer).__mro__ if kind in layer_bounds.registry)
    if base is not object and overrides(layer, base):
        raise NoBoundsError("it has a forward of its own")


# ---------------------------------------------------------------- layers


@functools.singledispatch
def layer_bounds(layer: nn.Module, in_shape: Shape) -> LayerBounds:
    """Bounds on a layer in eval mode, for inputs of a shape without the batch axis.

    Raises:
        NoBoundsError: none are known.
    """
    raise NoBoundsError("no bounds are known for it")


@layer_bounds.register
def _(layer: nn.ReLU, in_shape: Shape) -> LayerBounds:
    return ReLU(in_shape)


@layer_bounds.register
def _(
    layer: nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout,
    in_shape: Shape,
) -> LayerBounds:
    return Reshape(in_shape, in_shape)


@layer_bounds.register
def _(layer: nn.Flatten, in_shape: Shape) -> LayerBounds:
    if layer.start_dim != 1 or layer.end_dim not in (-1, len(in_shape)):
        raise NoBoundsError("it keeps some axes of a point")
    return Reshape(in_shape, (math.prod(in_shape),))


@layer_bounds.register
def _(layer: nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d, in_shape: Shape) -> LayerBounds:
    axes = 1 + (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d).index(type(layer))
    if len(in_shape) != 1 + axes or layer.return_indices:
        raise NoBoundsError(f"its input has shape {in_shape}, or it returns indices")
    return MaxPool(layer, in_shape, tuple(layer(torch.zeros(1, *in_shape)).shape[1:]))


def _average_pool(layer: nn.Module, in_shape: Shape) -> LayerBounds:
    W, zero = linear_map(layer, in_shape), torch.zeros((), dtype=torch.float64)  # W ≥ 0, so |W| = W
    return Affine(W, W, zero, zero, math.prod(in_shape[1:]) + 2, math.prod(in_shape) * 4)


for kind in AVERAGE_POOL:
    layer_bounds.register(kind, _average_pool)


@layer_bounds.register
def _(layer: nn.modules.batchnorm._BatchNorm, in_shape: Shape) -> LayerBounds:
    if not isinstance(layer, BATCH_NORM):
        raise NoBoundsError("no bounds are known for it")
    if layer.running_mean is None or layer.running_var is None:
        raise NoBoundsError("it normalizes by the batch's own statistics")
    weight = None if layer.weight is None else layer.weight.detach()
    gain = channel_scale(layer.running_var.double(), layer.eps, weight)
    shift = layer.running_mean.double() * gain
    bias = torch.zeros_like(shift) if layer.bias is None else layer.bias.detach().double()
    terms = (gain, bias - shift, bias.abs() + shift.abs())
    return diagonal(in_shape, *(t.view(-1, *(1,) * (len(in_shape) - 1)) for t in terms))


@layer_bounds.register
def _(layer: nn.Linear | ConvLayer | ConvTransposeLayer, in_shape: Shape) -> LayerBounds:
    W = layer.weight.detach()  # may be computed by a parametrization, so |W| needs a plain layer of its own
    base: Any = next(kind for kind in WEIGHTED if isinstance(layer, kind))
    settings = {
        name: getattr(layer, name) for name in inspect.signature(base).parameters if name in vars(layer)
    }
    magnitude = base(**settings | {"bias": False, "device": "meta"})
    magnitude.weight = nn.Parameter(W.abs(), requires_grad=False)
    exact, size = linear_map(layer, in_shape), linear_map(magnitude, in_shape)
    # at most so many products with an output; a transposed convolution has the channels of the input first
    terms = W.numel() // (W.shape[1] * layer.groups if isinstance(layer, TRANSPOSED) else len(W))
    bias = torch.zeros((), dtype=torch.float64, device=W.device)
    if layer.bias is not None:
        bias = layer.bias.detach().double()
        if base is not nn.Linear:
            bias = bias.view(-1, *(1,) * (len(in_shape) - 1))
    return Affine(exact, size, bias, bias.abs(), terms + 2, math.prod(exact.out_shape) * terms)


def diagonal(shape: Shape, gain: Tensor, bias: Tensor, bias_size: Tensor | None = None) -> Affine:
    """The bounds of gain · x + bias, elementwise, of at most ten operations."""

    def scaled(by: Tensor) -> LinearMap:
        return LinearMap(lambda v: v * by, lambda u: u * by, shape, shape, by.device)

    size = bias.abs() if bias_size is None else bias_size
    return Affine(scaled(gain), scaled(gain.abs()), bias, size, 12, math.prod(shape))
