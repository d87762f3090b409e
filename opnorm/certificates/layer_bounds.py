"""Bounds on the outputs of a layer, in the arithmetic in which it computes them.

Linear layers, (transposed) convolutions, ReLU and other activations of one variable, pooling, batch norm, and what only
moves entries (Flatten, PixelShuffle, dropout) have bounds; other layers join by
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
from opnorm._core.derived_weights import weight_of
from opnorm._core.layers import (
    AVERAGE_POOL,
    BATCH_NORM,
    IDENTITY,
    TRANSPOSED,
    WEIGHTED,
    ConvLayer,
    ConvTransposeLayer,
    Shape,
    overrides,
)
from opnorm._core.linear_map import linear_map
from opnorm.certificates.activation_lines import LARGEST, Curve
from opnorm.certificates.affine import TINY, UNIT, Affine, averaged, diagonal, lower_sum, selection
from opnorm.errors import BoundError
from opnorm.norms.network.pointwise import LAYERS, layer_function

__all__ = ["LayerBounds", "MaxPool", "PReLU", "ReLU", "check_layer", "layer_bounds"]


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

    def propagated(self, off: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The largest error of the outputs, if inputs between the bounds have errors of at most ``off``."""

    def open(self, low: Tensor, high: Tensor) -> Tensor:
        """Where tighter bounds on the inputs would make the linear bounds tighter."""


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

    def propagated(self, off: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """It changes by no more than its input."""
        return off

    def open(self, low: Tensor, high: Tensor) -> Tensor:
        """Where both signs are possible."""
        return (low < 0) & (high > 0)

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
class PReLU:
    """a x left of 0 and x right of it, which is a x + (1 - a) max(x, 0), with a slope a for all or for each channel.

    Attributes:
        slope: a, float64, in a shape that is broadcast to an input's.
        out_shape: of one output.
    """

    slope: Tensor
    out_shape: Shape
    work: int = 0

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The values at both ends, and 0 where it lies between."""
        own = self._rounding(low, high)
        low, high = (torch.where(own < math.inf, x, 0.0) for x in (low, high))
        values = [torch.where(x < 0, self.slope * x, x) for x in (low, high, torch.clamp(low * 0, low, high))]
        least, most = torch.stack(values).aminmax(dim=0)
        return least - own, most + own

    def propagated(self, off: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """By the steeper slope, and the rounding of the product."""
        return self.slope.abs().clamp(min=1) * off + self._rounding(low - off, high + off)

    def open(self, low: Tensor, high: Tensor) -> Tensor:
        """Where both signs are possible, and the slopes differ."""
        return (low < 0) & (high > 0) & (self.slope != 1)

    def backward(self, A: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """That of a x, and that of ReLU for (1 - a) A."""
        slope, own = self.slope.expand(low.shape)[:, None], self._rounding(low, high)
        low, high = (torch.where(own < math.inf, x, 0.0) for x in (low, high))
        of_relu, constant = ReLU(self.out_shape).backward(A * (1 - slope), low, high)
        return A * slope + of_relu, constant + lower_sum(-A.abs() * own[:, None])

    def _rounding(self, low: Tensor, high: Tensor) -> Tensor:
        """Of the product, and of the lines in float64; infinite where the product might overflow."""
        size = torch.maximum(low.abs(), high.abs()) * self.slope.abs().clamp(min=1)
        return torch.where(size < LARGEST, 4 * UNIT * size + TINY, math.inf)


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

    def propagated(self, off: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The largest of the window."""
        return self.layer(off)

    def open(self, low: Tensor, high: Tensor) -> Tensor:
        """Where both signs are possible, as of the activation before or behind."""
        return (low < 0) & (high > 0)

    def backward(self, A: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """To one input of each window where A > 0, to none where A < 0."""
        m, axes = self.layer, len(self.in_shape) - 1
        pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]
        _, index = pool(low, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, True)
        index = index.flatten(-axes)[:, None].expand(-1, A.shape[1], -1, -1)
        back = A.new_zeros(*A.shape[:2], self.in_shape[0], math.prod(self.in_shape[1:]))
        back.scatter_add_(-1, index, A.clamp(min=0).flatten(-axes))
        return back.unflatten(-1, self.in_shape[1:]), lower_sum(A.clamp(max=0) * self.layer(high)[:, None])


# ---------------------------------------------------------------- layers


def check_layer(layer: nn.Module) -> None:
    """BoundError for weights that are not finite, or of 16 bits, and for a forward of its own."""
    for t in (*layer.parameters(), *layer.buffers()):
        if t.is_floating_point() and not t.isfinite().all():
            raise BoundError("its weights are not finite")
        if t.is_floating_point() and t.dtype not in (torch.float32, torch.float64):
            raise BoundError(f"its weights are {t.dtype}")
    base = next(kind for kind in type(layer).__mro__ if kind in layer_bounds.registry)
    if base is not object and overrides(layer, base):
        raise BoundError("it has a forward of its own")


@functools.singledispatch
def layer_bounds(layer: nn.Module, in_shape: Shape) -> LayerBounds:
    """Bounds on a layer in eval mode, for inputs of a shape without the batch axis.

    Raises:
        BoundError: none are known.
    """
    raise BoundError("no bounds are known for it")


@layer_bounds.register
def _(layer: nn.ReLU, in_shape: Shape) -> LayerBounds:
    return ReLU(in_shape)


@layer_bounds.register
def _(layer: nn.PReLU, in_shape: Shape) -> LayerBounds:
    slope = weight_of(layer).detach().double()
    if slope.numel() > 1 and in_shape[:1] != (slope.numel(),):
        raise BoundError(f"it has {slope.numel()} slopes, for an input of shape {in_shape}")
    return PReLU(slope.view(-1, *(1,) * (len(in_shape) - 1)) if in_shape else slope[0], in_shape)


def _curve(layer: nn.Module, in_shape: Shape) -> LayerBounds:
    function = layer_function(layer)
    if function is None:
        raise BoundError("no bounds are known for it with these settings")
    return Curve(layer, function, in_shape)


for kind in (*LAYERS, nn.Softplus):
    if kind is not nn.ReLU:
        layer_bounds.register(kind, _curve)


def _moved(layer: nn.Module, in_shape: Shape) -> LayerBounds:
    return selection(lambda x: layer(x[0]), [in_shape], None)[0]


for kind in IDENTITY:
    layer_bounds.register(kind, _moved)


@layer_bounds.register
def _(layer: nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d, in_shape: Shape) -> LayerBounds:
    axes = 1 + (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d).index(type(layer))
    if len(in_shape) != 1 + axes or layer.return_indices:
        raise BoundError(f"its input has shape {in_shape}, or it returns indices")
    return MaxPool(layer, in_shape, tuple(layer(torch.zeros(1, *in_shape)).shape[1:]))


def _average_pool(layer: nn.Module, in_shape: Shape) -> LayerBounds:
    if (getattr(layer, "divisor_override", None) or 1) < 0:
        raise BoundError("its divisor is negative")
    return averaged(linear_map(layer, in_shape), math.prod(in_shape[1:]))


for kind in AVERAGE_POOL:
    layer_bounds.register(kind, _average_pool)


@layer_bounds.register
def _(layer: nn.modules.batchnorm._BatchNorm, in_shape: Shape) -> LayerBounds:
    if not isinstance(layer, BATCH_NORM):
        raise BoundError("no bounds are known for it")
    if layer.running_mean is None or layer.running_var is None:
        raise BoundError("it normalizes by the batch's own statistics")
    weight = None if layer.weight is None else layer.weight.detach()
    gain = channel_scale(layer.running_var.double(), layer.eps, weight)
    shift = layer.running_mean.double() * gain
    bias = torch.zeros_like(shift) if layer.bias is None else layer.bias.detach().double()
    terms = (gain, bias - shift, bias.abs() + shift.abs())
    return diagonal(in_shape, *(t.view(-1, *(1,) * (len(in_shape) - 1)) for t in terms))


@layer_bounds.register
def _(layer: nn.Linear | ConvLayer | ConvTransposeLayer, in_shape: Shape) -> LayerBounds:
    W = weight_of(
        layer
    ).detach()  # may be computed by a parametrization, so |W| needs a plain layer of its own
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
