"""Batch normalization in eval mode: a diagonal map, alone or folded into the layer before it."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from opnorm._core.argument_checks import check_module
from opnorm._core.derived_weights import weight_of
from opnorm._core.layers import ConvLayer, ConvTransposeLayer, check_forward, check_weight
from opnorm.errors import NormError

__all__ = ["batch_norm_scale", "channel_scale", "fold_batch_norm", "folded"]

Foldable = TypeVar("Foldable", bound=nn.Linear | ConvLayer | ConvTransposeLayer)


def channel_scale(var: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
    """γ / sqrt(var + eps) of each channel, (C,); differentiable."""
    scale = (var + eps).rsqrt()
    return scale if weight is None else scale * weight


def batch_norm_scale(layer: nn.modules.batchnorm._BatchNorm) -> Tensor:
    """γ / sqrt(running_var + eps) of a layer in eval mode, (C,); its largest absolute value is every (p, p) norm.

    Raises:
        NormError: the layer keeps no running statistics, so that it is not linear even in eval mode.
    """
    check_module(layer)
    if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
        raise NormError(f"{type(layer).__name__} is no batch norm; expected BatchNorm1d, 2d or 3d")
    check_forward(layer, nn.BatchNorm2d, nn.SyncBatchNorm)
    if layer.running_var is None:
        raise NormError(f"{type(layer).__name__} keeps no running statistics, so it is not linear")
    weight = weight_of(layer)
    for name, tensor in (("running_var", layer.running_var), ("weight", weight)):
        if tensor is not None:
            check_weight(tensor, name)
    scale = channel_scale(layer.running_var.double(), layer.eps)
    return scale if weight is None else scale.to(weight.dtype) * weight


# torch.nn.utils.fusion gives parameters without a history, and ignores the groups of transposed convolutions
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
    if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
        raise NormError(f"a batch norm folds into Linear and convolutions, not into {type(layer).__name__}")
    weight = weight_of(layer)
    check_weight(weight)
    scale = batch_norm_scale(norm)
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if len(scale) != channels:
        raise NormError(f"the layer has {channels} output channels and the batch norm {len(scale)}")
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


def folded(layer: Foldable, norm: nn.modules.batchnorm._BatchNorm) -> Foldable:
    """A layer and the batch norm after it as one layer of the same type, with norms differentiable in all weights.

    The layers themselves are unchanged. Arguments and errors as :func:`fold_batch_norm`.
    """
    weight, bias = fold_batch_norm(layer, norm)
    one = copy.copy(layer)
    one.__dict__["_parameters"] = {k: v for k, v in layer._parameters.items() if k not in ("weight", "bias")}
    one.__dict__.update(weight=weight, bias=bias)
    return one
