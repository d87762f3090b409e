"""Average pooling, padding and upsampling: Kronecker products of maps of one axis each, without negative entries.

The norm of a Kronecker product is the product of the norms, and that of a matrix A >= 0 is max Aᵀ1 (ℓ1) or max A1 (ℓ∞).
So one run of the layer's own operation on a line of ones, axis by axis, gives both norms: O(n) and not O(image).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.layers import Shape, check_forward
from opnorm.errors import NormError

__all__ = ["SEPARABLE", "separable_norm"]

AVERAGE = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
PADDING = (
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d),
    *(nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
)
UPSAMPLE = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)


SEPARABLE: tuple[type[nn.Module], ...] = (*AVERAGE, *ADAPTIVE, *PADDING, *UPSAMPLE)

Axis = Callable[[Tensor], Tensor]  # (1, 1, 1, n) -> (1, 1, 1, m)


@functools.singledispatch
def _axes(layer: nn.Module, in_size: Shape) -> tuple[list[Axis], float]:
    """The layer as a product of maps of one axis each, without negative entries, and a factor."""
    raise NormError(f"no exact norm is known for {type(layer).__name__}")


def separable_norm(layer: nn.Module, in_shape: Shape, side: int) -> Tensor:
    """The exact ℓ1 norm (side 0) or ℓ∞ norm (side 1) of a layer among ``SEPARABLE``, in float64.

    Args:
        layer: the layer.
        in_shape: (C, *size) of one input.
        side: 0 or 1.

    Raises:
        NormError: the layer does not take such inputs, or interpolates with negative weights.
    """
    if not 2 <= len(in_shape) <= 4 or min(in_shape) < 1:
        raise NormError(
            f"{type(layer).__name__} takes channels and spatial axes, got an input of shape {in_shape}"
        )
    value = 1.0
    maps, factor = _axes(layer, in_shape[1:])
    for apply, n in zip(maps, in_shape[1:], strict=True):
        with torch.inference_mode(False), torch.enable_grad():
            ones = torch.ones(1, 1, 1, n, dtype=torch.float64, requires_grad=side == 0)
            try:
                out = apply(ones)
            except RuntimeError as e:
                raise NormError(
                    f"{type(layer).__name__} does not take an input of shape {in_shape}: {e}"
                ) from None
            if side == 0:
                (out,) = torch.autograd.grad(out.sum(), ones)
        value *= float(out.max())
    return torch.tensor(value * abs(factor), dtype=torch.float64)


def _tuple(value: Any, axes: int, layer: nn.Module) -> tuple:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) == 1:
        values *= axes
    if len(values) != axes:
        raise NormError(f"{type(layer).__name__} does not take an input of {axes} spatial axes")
    return values


def _average(layer: Any, in_size: Shape) -> tuple[list[Axis], float]:
    check_forward(layer, *AVERAGE)
    axes = AVERAGE.index(next(k for k in AVERAGE if isinstance(layer, k))) + 1
    if axes != len(in_size):
        raise NormError(f"{type(layer).__name__} takes {axes} spatial axes, got {in_size}")
    total = getattr(layer, "divisor_override", None)
    sizes = [_tuple(v, axes, layer) for v in (layer.kernel_size, layer.stride, layer.padding)]

    def axis(k: int, s: int, p: int) -> Axis:
        return lambda x: F.avg_pool2d(
            x, (1, k), (1, s), (0, p), layer.ceil_mode, layer.count_include_pad, 1 if total else None
        )

    return [axis(k, s, p) for k, s, p in zip(*sizes, strict=True)], 1 / total if total else 1.0


def _adaptive(layer: Any, in_size: Shape) -> tuple[list[Axis], float]:
    check_forward(layer, *ADAPTIVE)
    axes = ADAPTIVE.index(next(k for k in ADAPTIVE if isinstance(layer, k))) + 1
    if axes != len(in_size):
        raise NormError(f"{type(layer).__name__} takes {axes} spatial axes, got {in_size}")
    outputs = _tuple(layer.output_size, axes, layer)

    def axis(m: int | None) -> Axis:
        return lambda x: F.adaptive_avg_pool2d(x, (1, x.shape[-1] if m is None else m))

    return [axis(m) for m in outputs], 1.0


def _padded(layer: Any, in_size: Shape) -> tuple[list[Axis], float]:
    check_forward(layer, *PADDING)
    flat = layer.padding
    if len(flat) != 2 * len(in_size):
        raise NormError(f"{type(layer).__name__} pads {len(flat) // 2} axes, got an input of size {in_size}")
    name = next(k for k in PADDING if isinstance(layer, k)).__name__
    mode = {"Z": "constant", "Co": "constant", "Ci": "circular", "Ref": "reflect", "Rep": "replicate"}
    kind = next(v for k, v in mode.items() if name.startswith(k))

    def axis(before: int, after: int) -> Axis:
        return lambda x: F.pad(x[0], (before, after), kind)[None]

    return [axis(flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2)], 1.0


def _upsampled(layer: nn.Upsample, in_size: Shape) -> tuple[list[Axis], float]:
    check_forward(layer, *UPSAMPLE)
    axes = len(in_size)
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[axes]
    if layer.mode not in ("nearest", "nearest-exact", linear):
        raise NormError(f"no exact norm is known for Upsample with mode={layer.mode!r}")
    mode = "linear" if layer.mode == linear else layer.mode
    sizes = _tuple(layer.size, axes, layer)
    factors = _tuple(layer.scale_factor, axes, layer)

    def axis(size: int | None, factor: float | None) -> Axis:
        return lambda x: F.interpolate(
            x[0],
            size,
            factor,
            mode,
            layer.align_corners,
            recompute_scale_factor=layer.recompute_scale_factor,
        )[None]

    return [axis(*a) for a in zip(sizes, factors, strict=True)], 1.0


for _kinds, _of in ((AVERAGE, _average), (ADAPTIVE, _adaptive), (PADDING, _padded), (UPSAMPLE, _upsampled)):
    for _kind in _kinds:
        _axes.register(_kind)(_of)
