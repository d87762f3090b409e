"""Average pooling, padding and upsampling: Kronecker products of maps of one axis each, without negative entries.

The norm of a Kronecker product is the product of the norms, and that of a matrix A >= 0 is max Aᵀ1 (ℓ1) or max A1 (ℓ∞).
So one run of the layer's own operation on a line of ones, axis by axis, gives both norms: O(n) and not O(image).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.layers import Shape, check_forward
from opnorm.errors import NormError

__all__ = ["SEPARABLE", "separable_norm"]

AVERAGE: tuple[Any, ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE: tuple[Any, ...] = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
PADDING: dict[Any, str] = {
    getattr(nn, f"{kind}Pad{axes}d"): mode
    for kind, mode in [
        ("Zero", "constant"),
        ("Constant", "constant"),
        ("Circular", "circular"),
        ("Reflection", "reflect"),
        ("Replication", "replicate"),
    ]
    for axes in (1, 2, 3)
}
UPSAMPLE: tuple[Any, ...] = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
SEPARABLE: tuple[type[nn.Module], ...] = (*AVERAGE, *ADAPTIVE, *PADDING, *UPSAMPLE)

Axis = Callable[[Tensor], Tensor]  # (1, 1, 1, n) -> (1, 1, 1, m)


def separable_norm(layer: nn.Module, in_shape: Shape, side: int) -> Tensor:
    """The exact ℓ1 norm (side 0) or ℓ∞ norm (side 1) of a layer among ``SEPARABLE`` for inputs (C, *size), in float64.

    Raises:
        NormError: the layer does not take such inputs, or interpolates with negative weights.
    """
    kind = type(layer).__name__
    if not 2 <= len(in_shape) <= 4 or min(in_shape) < 1:
        raise NormError(f"{kind} takes channels and spatial axes, got an input of shape {in_shape}")
    check_forward(layer, *SEPARABLE)
    value = 1.0
    for apply, n in zip(_axes(layer, len(in_shape) - 1), in_shape[1:], strict=True):
        with torch.inference_mode(False), torch.enable_grad():
            ones = torch.ones(1, 1, 1, n, dtype=torch.float64, requires_grad=side == 0)
            try:
                out = apply(ones)
            except RuntimeError as e:
                raise NormError(f"{kind} does not take an input of shape {in_shape}: {e}") from None
            if side == 0:
                (out,) = torch.autograd.grad(out.sum(), ones)
        value *= float(out.max())
    total = getattr(layer, "divisor_override", None)  # of average pooling: its axes are sums then
    return torch.tensor(value / abs(total or 1), dtype=torch.float64)


def _axes(layer: Any, axes: int) -> list[Axis]:
    """The layer as a product of maps of one axis each, without negative entries."""
    for families, of_family in ((AVERAGE, _average), (ADAPTIVE, _adaptive)):
        if isinstance(layer, families):
            known = next(i for i, kind in enumerate(families, 1) if isinstance(layer, kind))
            if known != axes:
                raise NormError(f"{type(layer).__name__} takes {known} spatial axes, got {axes}")
            return of_family(layer, axes)
    return _upsampled(layer, axes) if isinstance(layer, UPSAMPLE) else _padded(layer, axes)


def _tuple(value: Any, axes: int, layer: nn.Module) -> tuple:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) == 1:
        values *= axes
    if len(values) != axes:
        raise NormError(f"{type(layer).__name__} does not take an input of {axes} spatial axes")
    return values


def _average(layer: Any, axes: int) -> list[Axis]:
    divisor = 1 if getattr(layer, "divisor_override", None) else None

    def axis(k: int, s: int, p: int) -> Axis:
        return lambda x: F.avg_pool2d(
            x, (1, k), (1, s), (0, p), layer.ceil_mode, layer.count_include_pad, divisor
        )

    sizes = [_tuple(v, axes, layer) for v in (layer.kernel_size, layer.stride, layer.padding)]
    return [axis(*each) for each in zip(*sizes, strict=True)]


def _adaptive(layer: Any, axes: int) -> list[Axis]:
    def axis(m: int | None) -> Axis:
        return lambda x: F.adaptive_avg_pool2d(x, (1, x.shape[-1] if m is None else m))

    return [axis(m) for m in _tuple(layer.output_size, axes, layer)]


def _padded(layer: Any, axes: int) -> list[Axis]:
    flat, mode = layer.padding, next(mode for kind, mode in PADDING.items() if isinstance(layer, kind))
    if len(flat) != 2 * axes:
        raise NormError(f"{type(layer).__name__} pads {len(flat) // 2} axes, got an input of {axes}")

    def axis(before: int, after: int) -> Axis:
        return lambda x: F.pad(x[0], (before, after), mode)[None]

    return [axis(flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2)]


def _upsampled(layer: nn.Upsample, axes: int) -> list[Axis]:
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[axes]
    if layer.mode not in ("nearest", "nearest-exact", linear):
        raise NormError(f"no exact norm is known for Upsample with mode={layer.mode!r}")
    mode = "linear" if layer.mode == linear else layer.mode
    corners, recompute = layer.align_corners, layer.recompute_scale_factor

    def axis(size: int | None, factor: float | None) -> Axis:
        return lambda x: F.interpolate(x[0], size, factor, mode, corners, recompute)[None]

    sizes, factors = _tuple(layer.size, axes, layer), _tuple(layer.scale_factor, axes, layer)
    return [axis(*each) for each in zip(sizes, factors, strict=True)]
