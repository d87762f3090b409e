"""Exact ℓ1 and ℓ∞ operator norms of layers, differentiable in their weights.

:func:`l1` and :func:`linf` take a layer and the shape of one input. What they know:

- Linear, Conv1d-3d, ConvTranspose1d-3d: one pass over the weights (:mod:`opnorm.norms.exact.kernel_sums`);
- BatchNorm in eval mode, alone or folded into the layer before it (:func:`opnorm.norms.folded`);
- average pooling, padding layers, nearest and linear upsampling: per-axis matrices without negative entries;
- layers that only move numbers, and dropout, which does nothing in eval mode.

A subclass with a forward of its own goes through its explicit matrix. Every other type is an error that names it; more join
by ``@l1.register(MyLayer)``.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.argument_checks import by_layer_type
from opnorm._core.batch_norm import batch_norm_scale
from opnorm._core.convolution import conv_geometry, transpose_geometry
from opnorm._core.derived_weights import weight_of
from opnorm._core.layers import (
    BATCH_NORM,
    CONV,
    IDENTITY,
    LINEAR,
    TRANSPOSED,
    ConvLayer,
    ConvTransposeLayer,
    Shape,
    check_channels,
    check_features,
    check_lazy,
    check_weight,
    is_empty_sequence,
    overrides,
    unwrap,
)
from opnorm._core.linear_map import MATRIX, linear_map
from opnorm._core.modes import evaluating, in_default_modes
from opnorm.errors import NormError
from opnorm.norms.exact.kernel_sums import conv_plan, largest_sum, linear_plan
from opnorm.norms.exact.separable import SEPARABLE, separable_norm

__all__ = ["l1", "linf"]


@in_default_modes
@by_layer_type
def l1(layer: nn.Module, in_shape: Shape) -> Tensor:
    """Exact ℓ1 operator norm of a layer in eval mode, differentiable in its weights.

    Args:
        layer: one of the types of this module, also parametrized or compiled; others join by ``@l1.register(MyLayer)``. One
            of a subclass with a forward of its own, if that is affine, goes through its matrix.
        in_shape: shape of one input, without the batch axis.

    Returns:
        A 0-d tensor on the layer's device: in the dtype of the weights, float32 for less precise ones, and float64 for
        layers without weights.

    Raises:
        NormError: no exact norm is known for this layer, or it does not take such inputs.

    Source: Liang & Huang 2021, Theorem 1, for convolutions.
    """
    return _unknown(l1, layer, in_shape)


@in_default_modes
@by_layer_type
def linf(layer: nn.Module, in_shape: Shape) -> Tensor:
    """Exact ℓ∞ operator norm of a layer; arguments and errors as :func:`l1`."""
    return _unknown(linf, layer, in_shape)


def _unknown(norm: Callable[[nn.Module, Shape], Tensor], layer: nn.Module, in_shape: Shape) -> Tensor:
    inner = unwrap(layer)
    if inner is not layer:
        return norm(inner, in_shape)
    check_lazy(layer)
    if is_empty_sequence(layer):
        return torch.ones((), dtype=torch.float64)
    raise NormError(f"no exact norm is known for {type(layer).__name__}")


# ---------------------------------------------------------------- by type: side 0 is ℓ1, side 1 is ℓ∞


def _weight(layer: nn.Module) -> Tensor:
    weight = weight_of(layer)
    check_weight(weight)
    return weight


def _linear(layer: nn.Linear, in_shape: Shape, side: int) -> Tensor:
    weight = _weight(layer)
    check_features(layer, in_shape)
    return largest_sum(weight, linear_plan(side, weight.shape))


def _conv(layer: ConvLayer, in_shape: Shape, side: int) -> Tensor:
    weight = _weight(layer)
    check_channels(layer, in_shape)
    return largest_sum(weight, conv_plan(side, weight.shape, conv_geometry(layer), in_shape[1:]))


def _conv_transpose(layer: ConvTransposeLayer, in_shape: Shape, side: int) -> Tensor:
    weight = _weight(layer)
    check_channels(layer, in_shape)
    geometry, size = transpose_geometry(layer, in_shape[1:])
    # the adjoint of a convolution: its columns are that one's rows
    return largest_sum(weight, conv_plan(1 - side, weight.shape, geometry, size, in_shape[1:]))


def _batch_norm(layer: nn.modules.batchnorm._BatchNorm, in_shape: Shape, side: int) -> Tensor:
    gain = batch_norm_scale(layer).abs().max()
    if not in_shape or in_shape[0] != layer.num_features:
        raise NormError(
            f"{type(layer).__name__} takes {layer.num_features} channels, got an input of shape {in_shape}"
        )
    return gain


def _identity(layer: nn.Module, in_shape: Shape, side: int) -> Tensor:
    return torch.ones((), dtype=torch.float64)


_FORMULAS: dict[tuple[type[nn.Module], ...], Callable[[Any, Shape, int], Tensor]] = {
    LINEAR: _linear,
    CONV: _conv,
    TRANSPOSED: _conv_transpose,
    BATCH_NORM: _batch_norm,
    IDENTITY: _identity,
    SEPARABLE: separable_norm,
}


def _norm(
    layer: nn.Module,
    in_shape: Shape,
    side: int,
    kinds: tuple[type[nn.Module], ...],
    formula: Callable[..., Tensor],
) -> Tensor:
    """By the formula, if the layer's forward is that of one of the kinds; else by its matrix."""
    return _of_matrix(layer, in_shape, side) if overrides(layer, *kinds) else formula(layer, in_shape, side)


def _of_matrix(layer: nn.Module, in_shape: Shape, side: int) -> Tensor:
    """max_j Σ_i |A_ij|, or max_i Σ_j, of the explicit matrix in float64; its gradient by that of A = f(I) - f(0)."""
    linear = linear_map(layer, in_shape)
    exact = linear.to_dense(MATRIX)
    sums = exact.abs().sum(side)
    own = next((p for p in layer.parameters() if p.is_floating_point()), None)
    dtype = torch.float64 if own is None else torch.promote_types(own.dtype, torch.float32)
    norm = sums.max().to(dtype)
    if own is None or not torch.is_grad_enabled() or not any(p.requires_grad for p in layer.parameters()):
        return norm
    n = linear.shape[1]
    basis = torch.eye(n, dtype=own.dtype, device=own.device).view(n, *in_shape)
    with evaluating(layer), torch.enable_grad():
        A = (layer(basis) - layer(torch.zeros_like(basis[:1]))).reshape(n, -1).T.to(dtype)
    differentiable = (exact.sign().to(dtype) * A).sum(side)[sums.argmax()]
    return norm + (differentiable - differentiable.detach())


for _kinds, _formula in _FORMULAS.items():
    for _kind in _kinds:
        for _side, _function in enumerate((l1, linf)):
            _function.register(_kind, functools.partial(_norm, side=_side, kinds=_kinds, formula=_formula))
