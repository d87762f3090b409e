"""A layer as a linear map: ``x -> layer(x) - layer(0)``, with its adjoint and, for small ones, its matrix.

Everything that opnorm proves about a norm it proves against :func:`dense`, the explicit matrix of the map. New
layer types join by ``@linear_map.register(MyLayer)``; a layer without an entry that turns out to be affine goes
through autograd, slower and just as right.
"""

import copy
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad as conv_grad

from opnorm.errors import NormError

__all__ = ["ConvGeometry", "LinearMap", "conv_geometry", "dense", "linear_map"]

Shape = tuple[int, ...]


class LinearMap(NamedTuple):
    """A layer without its bias.

    Attributes:
        apply: (B, *in_shape) -> (B, *out_shape).
        adjoint: (B, *out_shape) -> (B, *in_shape), with <apply(v), u> = <v, adjoint(u)>.
        in_shape: without the batch axis.
        out_shape: without the batch axis.
        device: where it takes its vectors, in float64.
    """

    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    in_shape: Shape
    out_shape: Shape
    device: torch.device = torch.device("cpu")


class ConvGeometry(NamedTuple):
    """Everything about a convolution but its kernel; one entry per spatial axis."""

    kernel: Shape
    stride: Shape
    padding: tuple[tuple[int, int], ...]  # (before, after): padding="same" can be uneven
    dilation: Shape
    groups: int

    def out_size(self, in_size: Shape) -> Shape:
        """Output size per axis; NormError when the kernel does not fit the padded input."""
        size = tuple(
            (n + sum(p) - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                in_size, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        if min(size) < 1:
            raise NormError(
                f"input of size {in_size} is smaller than the kernel {self.kernel} (dilation {self.dilation}, "
                f"padding {self.padding}): the output would be empty"
            )
        return size


def conv_geometry(layer: nn.modules.conv._ConvNd) -> ConvGeometry:
    """Read the geometry off a Conv1d, Conv2d or Conv3d with zero padding.

    Raises:
        NormError: another padding mode, which this version does not know.
    """
    if layer.padding_mode != "zeros":
        raise NormError(f"padding_mode={layer.padding_mode!r} is not known yet; expected 'zeros'")
    kernel = tuple(layer.kernel_size)
    padding: tuple[tuple[int, int], ...]
    if layer.padding == "valid":
        padding = ((0, 0),) * len(kernel)
    elif layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, kernel, strict=True)]
        padding = tuple((t // 2, t - t // 2) for t in total)
    else:
        padding = tuple((int(p), int(p)) for p in layer.padding)
    return ConvGeometry(kernel, tuple(layer.stride), padding, tuple(layer.dilation), layer.groups)


@functools.singledispatch
def linear_map(layer: nn.Module, in_shape: Shape) -> LinearMap:
    """The layer as a linear map in float64, on the layer's device.

    Args:
        layer: any affine module, in eval mode where that matters.
        in_shape: shape of one input, without the batch axis.

    Raises:
        NormError: the layer is not affine, or does not take such inputs.
    """
    layer = _double(layer)
    first = next((t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point()), None)
    device = first.device if first is not None else torch.device("cpu")
    zero = torch.zeros(1, *in_shape, dtype=torch.float64, device=device)
    try:
        offset = layer(zero).detach()
    except (RuntimeError, ValueError) as e:
        raise NormError(f"{type(layer).__name__} does not take an input of shape {in_shape}: {e}") from None

    def apply(v: Tensor) -> Tensor:
        return layer(v) - offset

    _check_affine(apply, zero, type(layer).__name__)

    def adjoint(u: Tensor) -> Tensor:
        pull_back = torch.func.vjp(apply, zero.expand(len(u), *in_shape))[1]
        return pull_back(u)[0]

    return LinearMap(apply, adjoint, tuple(in_shape), tuple(offset.shape[1:]), device)


def _double(layer: nn.Module) -> nn.Module:
    return copy.deepcopy(layer).double().eval().requires_grad_(False)


def _check_affine(apply: Callable[[Tensor], Tensor], zero: Tensor, name: str) -> None:
    """An affine map obeys f(a + b) = f(a) + f(b); three random pairs leave no room for luck."""
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(3, *zero.shape[1:], generator=generator, dtype=zero.dtype).to(zero.device) for _ in "ab"
    )
    with torch.no_grad():
        together, apart = apply(a + b), apply(a) + apply(b)
    if not torch.allclose(together, apart, rtol=1e-9, atol=1e-9 * float(apart.abs().max().clamp(min=1e-300))):
        raise NormError(f"{name} is not linear")


@linear_map.register(nn.Linear)
def _(layer: nn.Linear, in_shape: Shape) -> LinearMap:
    if in_shape[-1:] != (layer.in_features,):
        raise NormError(f"Linear takes {layer.in_features} features, got an input of shape {in_shape}")
    W = layer.weight.detach().double()
    out_shape = (*in_shape[:-1], layer.out_features)
    return LinearMap(lambda v: v @ W.T, lambda u: u @ W, tuple(in_shape), out_shape, W.device)


@linear_map.register(nn.Conv1d)
@linear_map.register(nn.Conv2d)
@linear_map.register(nn.Conv3d)
def _(layer: nn.Conv2d, in_shape: Shape) -> LinearMap:
    geometry = conv_geometry(layer)
    axes = len(geometry.kernel)
    if len(in_shape) != axes + 1 or in_shape[0] != layer.in_channels:
        raise NormError(
            f"{type(layer).__name__} takes {layer.in_channels} channels and {axes} spatial axes, "
            f"got an input of shape {in_shape}"
        )
    K = layer.weight.detach().double()
    conv = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    conv_input = (conv_grad.conv1d_input, conv_grad.conv2d_input, conv_grad.conv3d_input)[axes - 1]
    before_after = [p for pair in reversed(geometry.padding) for p in pair]
    out_shape = (layer.out_channels, *geometry.out_size(in_shape[1:]))
    padded = tuple(n + sum(p) for n, p in zip(in_shape[1:], geometry.padding, strict=True))
    inside = [slice(p[0], p[0] + n) for n, p in zip(in_shape[1:], geometry.padding, strict=True)]

    def apply(v: Tensor) -> Tensor:
        return conv(F.pad(v, before_after), K, None, geometry.stride, 0, geometry.dilation, geometry.groups)

    def adjoint(u: Tensor) -> Tensor:
        size = (len(u), layer.in_channels, *padded)
        v = conv_input(size, K, u, geometry.stride, 0, geometry.dilation, geometry.groups)
        return v[:, :, *inside]

    return LinearMap(apply, adjoint, tuple(in_shape), out_shape, K.device)


def dense(linear: LinearMap, limit: int = 2**27) -> Tensor:
    """The explicit float64 matrix, of shape (prod(out_shape), prod(in_shape)).

    Raises:
        NormError: it would have more than ``limit`` entries (1 GiB).
    """
    rows, columns = math.prod(linear.out_shape), math.prod(linear.in_shape)
    if rows * columns > limit:
        raise NormError(f"the matrix would be {rows:,} x {columns:,}; at most {limit:,} entries")
    basis = torch.eye(columns, dtype=torch.float64, device=linear.device).reshape(columns, *linear.in_shape)
    with torch.no_grad():
        return linear.apply(basis).reshape(columns, rows).T
