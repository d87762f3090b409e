"""Layer families, and the checks that come before a formula for a layer is used."""

import copy
import functools
import itertools
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.nn.parameter import is_lazy

from opnorm._core.argument_checks import check_module
from opnorm._core.derived_weights import computed_tensors, use_computed
from opnorm.errors import ModelError, NormError

__all__ = [
    "AVERAGE_POOL",
    "BATCH_NORM",
    "CONV",
    "IDENTITY",
    "LINEAR",
    "LINEAR_OR_CONV",
    "TRANSPOSED",
    "WEIGHTED",
    "ConvLayer",
    "ConvTransposeLayer",
    "Shape",
    "changed_by_hooks",
    "check_channels",
    "check_features",
    "check_forward",
    "check_initialized",
    "check_lazy",
    "check_weight",
    "check_weights",
    "hooks_of_all_modules",
    "in_float64",
    "is_empty_sequence",
    "is_standard",
    "missing_values",
    "overrides",
    "plain_copy",
    "unwrap",
]

Shape = tuple[int, ...]
ConvLayer = nn.Conv1d | nn.Conv2d | nn.Conv3d
ConvTransposeLayer = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Layer = TypeVar("Layer", bound=nn.Module)

LINEAR = (nn.Linear,)
CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR_OR_CONV = (*LINEAR, *CONV)
WEIGHTED = (*LINEAR, *CONV, *TRANSPOSED)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
AVERAGE_POOL = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
IDENTITY: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
"""Layers that in eval mode only rearrange their input."""
CHECKS = ("_check_input_dim",)
"""Methods of torch's layers that compute nothing."""


def unwrap(layer: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``; any other module itself.

    ModelError for what is no module.
    """
    check_module(layer)
    while True:
        inner = vars(layer).get("_modules", {}).get("_orig_mod")
        if inner is None and isinstance(layer, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = layer.module
        if not isinstance(inner, nn.Module):
            return layer
        layer = inner


def in_float64(layer: Layer) -> Layer:
    """A copy in float64, as :func:`plain_copy`."""
    return plain_copy(layer, torch.float64)


def plain_copy(layer: Layer, dtype: torch.dtype | None = None) -> Layer:
    """A copy in eval mode, without gradients; weights that are computed from others are parameters with their values now.

    Args:
        layer: any module, also one that deepcopy refuses since a weight of it has a history.
        dtype: of its floating-point tensors; their own when None.
    """
    values: dict[int, Tensor] = {}  # what deepcopy takes in the place of each tensor
    for module in layer.modules():
        for t in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(t, Tensor) and not is_lazy(t):
                value = t.detach().to(dtype if dtype and t.is_floating_point() else t.dtype, copy=True)
                values[id(t)] = nn.Parameter(value, False) if isinstance(t, nn.Parameter) else value
    twin = copy.deepcopy(layer, values).eval().requires_grad_(False)
    for module, copied in list(zip(layer.modules(), twin.modules(), strict=True)):
        if computed := computed_tensors(module):
            use_computed(copied, {name: value.to(dtype or value.dtype) for name, value in computed.items()})
    return twin


def overrides(layer: nn.Module, *bases: type[nn.Module]) -> bool:
    """Whether a layer computes its output in another way than its bases, so that their formula does not apply to it.

    That is with another forward, or another of the methods that their forward calls, as of ``_conv_forward``.
    """
    kinds: tuple[Any, ...] = bases
    return not any(all(_method(layer, m) is getattr(kind, m) for m in _methods(kind)) for kind in kinds)


def _method(layer: nn.Module, name: str) -> Any:
    own = vars(layer).get(name)  # set on the one layer, as some libraries do
    return getattr(type(layer), name) if own is None else getattr(own, "__func__", own)


@functools.cache
def _methods(base: Any) -> tuple[str, ...]:
    """The names of the methods that compute a layer's output: its forward, and those that this calls, at any depth."""
    found, waiting = ["__call__", "_wrapped_call_impl", "_call_impl", "forward"], ["forward"]
    while waiting:
        code = getattr(getattr(base, waiting.pop()), "__code__", None)
        for name in code.co_names if code else ():
            own = getattr(base, name, None) is not getattr(nn.Module, name, None)
            if own and isinstance(getattr(base, name), FunctionType) and name not in (*found, *CHECKS):
                found.append(name)
                waiting.append(name)
    return tuple(found)


def is_standard(layer: nn.Module, *bases: type[nn.Module]) -> bool:
    """Whether a layer is of one of these types, or of a subclass with the same forward."""
    return isinstance(layer, bases) and not overrides(layer, *bases)


def changed_by_hooks(layer: nn.Module) -> bool:
    """Whether hooks, its own or those of all modules, may change the output; those of torch.nn.utils compute the weight."""
    pre = [type(h).__module__ for h in layer._forward_pre_hooks.values()]
    own = bool(layer._forward_hooks) or any(not module.startswith("torch.nn.utils") for module in pre)
    return own or hooks_of_all_modules()


def hooks_of_all_modules() -> bool:
    """Whether hooks are registered that run before or behind the forward of every module."""
    # torch has no public list of them
    return bool(every_module._global_forward_hooks or every_module._global_forward_pre_hooks)


def is_empty_sequence(layer: nn.Module) -> bool:
    """Whether a layer is an ``nn.Sequential()`` of nothing, the identity, as shortcuts often are."""
    return is_standard(layer, nn.Sequential) and not layer._modules


def check_forward(layer: nn.Module, *bases: type[nn.Module]) -> None:
    """NormError when the layer overrides the forward of its base, as a convolution of standardized weights does."""
    if overrides(layer, *bases):
        raise NormError(f"{type(layer).__name__} has a forward of its own, so its norm is not known")


def check_features(layer: nn.Linear, in_shape: Shape) -> None:
    """NormError unless the last axis has the layer's number of features."""
    if tuple(in_shape[-1:]) != (layer.in_features,):
        raise NormError(f"Linear takes {layer.in_features} features, got an input of shape {in_shape}")


def check_channels(layer: nn.modules.conv._ConvNd, in_shape: Shape) -> None:
    """NormError unless the input has the channels and the spatial axes that a convolution takes."""
    axes = len(layer.kernel_size)
    if len(in_shape) != axes + 1 or in_shape[0] != layer.in_channels:
        raise NormError(
            f"{type(layer).__name__} takes {layer.in_channels} channels and {axes} spatial axes, "
            f"got an input of shape {in_shape}"
        )


# ---------------------------------------------------------------- weights


def missing_values(tensor: Tensor) -> str:
    """The reason that a parameter has no values yet; empty where it has some."""
    if is_lazy(tensor):
        return "is not there yet: a lazy layer has none before its first forward pass"
    if tensor.is_meta:
        return "is on the meta device: it has a shape and no values; load the weights first"
    return ""


def check_lazy(layer: nn.Module) -> None:
    """NormError when a parameter or buffer is not there yet."""
    for name, tensor in itertools.chain(layer.named_parameters(), layer.named_buffers()):
        if is_lazy(tensor):
            raise NormError(f"{name} {missing_values(tensor)}")


def check_initialized(model: nn.Module, who: str) -> None:
    """ModelError, which names ``who``, for what is no module, and when a parameter has no values yet."""
    check_module(model, who)
    for name, p in model.named_parameters():
        if is_lazy(p):
            raise ModelError(f"{who}: {name!r} {missing_values(p)}; pass a batch through the model first")


def check_weight(weight: Tensor, name: str = "weight") -> None:
    """NormError for weights without floating-point values: lazy, meta, integer or quantized ones."""
    if reason := missing_values(weight):
        raise NormError(f"{name} {reason}")
    if weight.layout != torch.strided:
        raise NormError(
            f"{name} is sparse ({weight.layout}); expected a dense tensor, as weight.to_dense() gives it"
        )
    if weight.is_complex():
        raise NormError(f"{name} has dtype {weight.dtype}; norms are known for real numbers only")
    if not weight.is_floating_point():
        raise NormError(
            f"{name} has dtype {weight.dtype}; expected floating point, so dequantize or convert it"
        )


def check_weights(layer: nn.Module) -> None:
    """NormError when a layer is quantized, or a weight or buffer has no values or is not finite."""
    check_module(layer)
    if ".quantized" in type(layer).__module__:
        raise NormError(f"{type(layer).__name__} is quantized: it rounds, so it is not linear")
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if name.rpartition(".")[2] == "weight" or tensor.layout != torch.strided or tensor.is_complex():
            check_weight(tensor, name)
        elif reason := missing_values(tensor):
            raise NormError(f"{name} {reason}")
        _check_finite(name, tensor)
    for path, module in layer.named_modules():
        for name, tensor in computed_tensors(module).items():
            _check_finite(f"{path}.{name}".removeprefix("."), tensor)


def _check_finite(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and tensor.itemsize == 1:
        tensor = tensor.float()  # torch has no isfinite for float8
    if bad := int((~torch.isfinite(tensor)).sum()):
        raise NormError(
            f"{name} has {bad} of {tensor.numel()} entries that are NaN or infinite; diverged training?"
        )
