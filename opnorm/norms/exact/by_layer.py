"""Exact ℓ1 and ℓ∞ operator norms of layers, differentiable in their weights.

:func:`l1` and :func:`linf` take a layer and the shape of one input. What they know:

- Linear, Conv1d-3d, ConvTranspose1d-3d: one pass over the weights (:mod:`opnorm.norms.exact.kernel_sums`);
- BatchNorm in eval mode, alone or folded into the layer before it (:func:`folded`);
- average pooling, padding layers, nearest and linear upsampling: per-axis matrices without negative entries;
- layers that only move numbers, and dropout, which does nothing in eval mode.

Every other type is an error that names it; more join by ``@l1.register(MyLayer)``.
"""

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from opnorm._core.convolution import conv_geometry, transpose_geometry
from opnorm._core.layers import (
    ConvLayer,
    ConvTransposeLayer,
    Shape,
    check_channels,
    check_features,
    check_forward,
    check_lazy,
    check_weight,
    unwrap,
)
from opnorm.errors import NormError
from opnorm.norms.exact.kernel_sums import (
    Plan,
    conv_l1,
    conv_l2_bound,
    conv_linf,
    conv_plan,
    conv_transpose_l1,
    conv_transpose_linf,
    largest,
    largest_of_all,
    linear_l1,
    linear_linf,
    linear_plan,
)
from opnorm.norms.exact.separable import SEPARABLE, separable_norm

__all__ = [
    "batch_norm_gain",
    "conv_l1",
    "conv_l2_bound",
    "conv_linf",
    "conv_transpose_l1",
    "conv_transpose_linf",
    "exact_all",
    "fold_batch_norm",
    "folded",
    "l1",
    "linear_l1",
    "linear_linf",
    "linf",
]

Folds = TypeVar("Folds", bound=nn.Linear | ConvLayer | ConvTransposeLayer)


@functools.singledispatch
def l1(layer: nn.Module, in_shape: Shape) -> Tensor:
    """Exact ℓ1 operator norm of a layer in eval mode, differentiable in its weights.

    Args:
        layer: one of the types of this module, also parametrized or compiled; others join by ``@l1.register(MyLayer)``.
        in_shape: shape of one input, without the batch axis.

    Returns:
        A 0-d tensor on the layer's device: in the dtype of the weights, float32 for less precise ones, and float64 for
        layers without weights.

    Raises:
        NormError: no exact norm is known for this layer, or it does not take such inputs.

    Source: Liang & Huang 2021, Theorem 1, for convolutions.
    """
    return _unknown(l1, layer, in_shape)


@functools.singledispatch
def linf(layer: nn.Module, in_shape: Shape) -> Tensor:
    """Exact ℓ∞ operator norm of a layer; arguments and errors as :func:`l1`."""
    return _unknown(linf, layer, in_shape)


def _unknown(norm: Callable[[nn.Module, Shape], Tensor], layer: nn.Module, in_shape: Shape) -> Tensor:
    inner = unwrap(layer)
    if inner is not layer:
        return norm(inner, in_shape)
    check_lazy(layer)
    raise NormError(f"no exact norm is known for {type(layer).__name__}")


def exact_all(layers: Sequence[tuple[nn.Module, Shape]], p: float) -> Tensor:
    """The exact norms of many layers in one call, differentiable: for norm decay and for curves during training.

    Args:
        layers: (layer, shape of one input) for each.
        p: 1 or ``math.inf``.

    Returns:
        The norms (N,), in float64 when any of them is, else in float32.

    Raises:
        NormError: as :func:`l1`; p is neither 1 nor inf.
    """
    if p not in (1, math.inf):
        raise NormError(f"p={p!r}: exact norms are known for 1 and inf")
    norm = l1 if p == 1 else linf
    values: list[Tensor] = [torch.zeros(0)] * len(layers)
    read: list[tuple[Tensor, Plan]] = []
    where: list[int] = []
    for i, (layer, shape) in enumerate(layers):
        known = _readers.get(norm.dispatch(type(layer)))
        if known is None:
            values[i] = norm(layer, shape)
        else:
            read.append(known[0](layer, shape, known[1]))
            where.append(i)
    if read:
        found = largest_of_all(*zip(*read, strict=True))
        if isinstance(found, Tensor) and len(found) == len(layers):
            return found
        for i, value in zip(where, found, strict=True):
            values[i] = value
    return torch.stack(_alike(values)) if values else torch.zeros(0)


def _alike(values: list[Tensor]) -> list[Tensor]:
    if all(v.dtype == values[0].dtype and v.device == values[0].device for v in values):
        return values
    dtype = functools.reduce(torch.promote_types, (v.dtype for v in values))
    device = next((v.device for v in values if v.device.type != "cpu"), values[0].device)
    return [v.to(device, dtype) for v in values]


# ---------------------------------------------------------------- layers with weights


def _weight(layer: nn.Module, *bases: type[nn.Module]) -> Tensor:
    """The weight of a layer that does what its base does."""
    check_forward(layer, *bases)
    weight: Tensor = layer.weight  # type: ignore[assignment]  # computed anew by some parametrizations: ask once
    check_weight(weight)
    return weight


def _linear(layer: nn.Linear, in_shape: Shape, side: int) -> tuple[Tensor, Plan]:
    weight = _weight(layer, nn.Linear)
    check_features(layer, in_shape)
    return weight, linear_plan(side, weight.shape)


def _conv(layer: ConvLayer, in_shape: Shape, side: int) -> tuple[Tensor, Plan]:
    weight = _weight(layer, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    check_channels(layer, in_shape)
    return weight, conv_plan(side, weight.shape, conv_geometry(layer, any_mode=True), in_shape[1:])


def _conv_transpose(layer: ConvTransposeLayer, in_shape: Shape, side: int) -> tuple[Tensor, Plan]:
    weight = _weight(layer, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    check_channels(layer, in_shape)
    geometry, size = transpose_geometry(layer, in_shape[1:])
    # the adjoint of a convolution: its columns are that one's rows
    return weight, conv_plan(1 - side, weight.shape, geometry, size, in_shape[1:])


Reader = Callable[[Any, Shape, int], tuple[Tensor, Plan]]
_readers: dict[Any, tuple[Reader, int]] = {}  # by what is registered: how it reads the norm off the weight


def _register(reader: Reader, *kinds: type[nn.Module]) -> None:
    for side, norm in enumerate((l1, linf)):

        def value(layer: nn.Module, in_shape: Shape, side: int = side) -> Tensor:
            return largest(*reader(layer, in_shape, side))

        _readers[value] = reader, side
        for kind in kinds:
            norm.register(kind)(value)


_register(_linear, nn.Linear)
_register(_conv, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_register(_conv_transpose, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

_kind: type[nn.Module]


# ---------------------------------------------------------------- batch norm


def batch_norm_gain(layer: nn.modules.batchnorm._BatchNorm) -> Tensor:
    """max_c |γ_c| / sqrt(running_var_c + eps): every (p, p) norm of BatchNorm in eval mode, a diagonal map.

    Raises:
        NormError: it keeps no running statistics, so that it is not linear even in eval mode.
    """
    return _scale(layer).abs().max()


def _scale(layer: nn.modules.batchnorm._BatchNorm) -> Tensor:
    """γ / sqrt(running_var + eps), (C,)."""
    check_forward(layer, nn.BatchNorm2d, nn.SyncBatchNorm)
    if layer.running_var is None:
        raise NormError(f"{type(layer).__name__} keeps no running statistics, so it is not linear")
    for name in ("running_var", "weight"):
        if (tensor := getattr(layer, name)) is not None:
            check_weight(tensor, name)
    scale = (layer.running_var.to(torch.float64) + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale.to(layer.weight.dtype) * layer.weight
    return scale


def _batch_norm(layer: nn.modules.batchnorm._BatchNorm, in_shape: Shape) -> Tensor:
    gain = batch_norm_gain(layer)
    if not in_shape or in_shape[0] != layer.num_features:
        raise NormError(
            f"{type(layer).__name__} takes {layer.num_features} channels, got an input of shape {in_shape}"
        )
    return gain


for _norm in (l1, linf):
    for _kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        _norm.register(_kind)(_batch_norm)


def fold_batch_norm(layer: nn.Module, norm: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """The weight and the bias of a layer followed by a batch norm in eval mode, as one layer; differentiable in both.

    With a_c = γ_c / sqrt(running_var_c + eps), channel c of the weight is a_c K_c, and of the bias
    a_c (b_c - running_mean_c) + β_c.

    Args:
        layer: Linear, Conv1d-3d or ConvTranspose1d-3d.
        norm: the batch norm after it.

    Returns:
        weight, of the layer's shape, and bias (C_out,).

    Raises:
        NormError: another layer, another number of channels, or a batch norm without running statistics.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    if not isinstance(layer, kinds):
        raise NormError(f"a batch norm folds into Linear and convolutions, not into {type(layer).__name__}")
    check_weight(layer.weight)
    scale = _scale(norm)
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if len(scale) != channels:
        raise NormError(f"the layer has {channels} output channels and the batch norm {len(scale)}")
    weight = layer.weight
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):  # (C_in, C_out / groups, *kernel)
        groups = layer.groups
        by_group = scale.view(groups, 1, -1, *(1,) * (weight.ndim - 2))
        weight = (weight.unflatten(0, (groups, -1)) * by_group).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *(1,) * (weight.ndim - 1))
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias
    if norm.running_mean is not None:
        bias = bias - norm.running_mean
    bias = bias * scale
    return weight, bias if norm.bias is None else bias + norm.bias


def folded(layer: Folds, norm: nn.modules.batchnorm._BatchNorm) -> Folds:
    """The layer and the batch norm after it as one layer of the same type, of which any norm can be asked.

    Its weights are computed from those of both, so that norms are differentiable in all of them; the layers themselves
    are left alone. Arguments and errors as :func:`fold_batch_norm`.
    """
    weight, bias = fold_batch_norm(layer, norm)
    one = copy.copy(layer)
    one.__dict__["_parameters"] = {k: v for k, v in layer._parameters.items() if k not in ("weight", "bias")}
    one.__dict__.update(weight=weight, bias=bias)
    return one


# ---------------------------------------------------------------- layers that only move numbers

STILL: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


def _one(layer: nn.Module, in_shape: Shape) -> Tensor:
    check_forward(layer, *STILL)
    return torch.ones((), dtype=torch.float64)


for _norm in (l1, linf):
    for _kind in STILL:
        _norm.register(_kind)(_one)


# ---------------------------------------------------------------- pooling, padding and upsampling

for _kind in SEPARABLE:
    l1.register(_kind)(functools.partial(separable_norm, side=0))
    linf.register(_kind)(functools.partial(separable_norm, side=1))
