"""Rules for the functions that do what a layer does."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.batch_norm import channel_scale
from opnorm._core.layers import CONV, TRANSPOSED
from opnorm.errors import BoundError
from opnorm.norms.network.rules import RULES, FunctionCall, rule
from opnorm.norms.nonlinear import normalizing

__all__ = ["RULES"]


def as_layer(names: str, build: Callable[..., nn.Module]) -> None:
    """Functions that do what a layer does: ``build`` makes it from the arguments after the first."""

    @rule(names)
    def _(call: FunctionCall) -> float:
        x, bound = call.only_input()
        if not isinstance(call.output, Tensor):
            raise BoundError("returns more than one tensor")
        settings = {k: v for k, v in call.kwargs.items() if k != "input"}
        try:
            layer = build(*call.args[1:], **settings)
        except (TypeError, ValueError) as e:  # of torch's own constructors
            raise BoundError(f"there is no layer with these settings ({e})") from e
        return bound * call.factor(layer, tuple(x.shape))


for _kind in (
    nn.ReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardtanh, nn.Tanhshrink, nn.Softsign,
    nn.Softplus, nn.LogSigmoid, nn.Hardsigmoid, nn.Hardswish, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.GLU,
):  # fmt: skip
    as_layer(_kind.__name__.lower(), _kind)
as_layer("leaky_relu", nn.LeakyReLU)
for _axes in (1, 2, 3):
    as_layer(f"avg_pool{_axes}d", getattr(nn, f"AvgPool{_axes}d"))
    as_layer(f"adaptive_avg_pool{_axes}d", getattr(nn, f"AdaptiveAvgPool{_axes}d"))
    as_layer(f"adaptive_max_pool{_axes}d", getattr(nn, f"AdaptiveMaxPool{_axes}d"))
as_layer("tanh", lambda: nn.Tanh())
as_layer("sigmoid", lambda: nn.Sigmoid())
as_layer("softmax", lambda dim=None, *_, **__: nn.Softmax(dim))
as_layer("softmin", lambda dim=None, *_, **__: nn.Softmin(dim))
as_layer("log_softmax", lambda dim=None, *_, **__: nn.LogSoftmax(dim))


def _resize(*args: Any, antialias: bool = False, **settings: Any) -> nn.Module:
    if antialias:
        raise BoundError("antialiased resizing is not known")
    return nn.Upsample(*args, **settings)


as_layer("interpolate upsample", _resize)


def _max_pool(
    kind: type[nn.Module], kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> nn.Module:  # fmt: skip
    return kind(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


for _axes in (1, 2, 3):
    as_layer(f"max_pool{_axes}d", functools.partial(_max_pool, getattr(nn, f"MaxPool{_axes}d")))


@rule("dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d")
def _(call: FunctionCall) -> float:
    if call.argument(2, "training", call.kwargs.get("train", True)):
        raise BoundError("drops at random even in eval mode")
    return call.only_input()[1]


def layer_factor(call: FunctionCall, kind: Any, weight: Tensor, *arguments: Any, **settings: Any) -> float:
    """The constant of a layer of this kind with the weight."""
    layer = kind(*arguments, bias=False, device="meta", **settings)
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return call.factor(layer, tuple(call.argument(0, "input").shape))


@rule("matmul mm imatmul")
def _(call: FunctionCall) -> float:
    x, bound = call.only_input()
    W, _ = call.operand(1, "mat2" if call.function == "mm" else "other")
    if W.ndim != 2 or x.ndim < 2:
        raise BoundError("only a product with a fixed matrix from the right is known")
    return bound * layer_factor(call, nn.Linear, W.T, W.shape[0], W.shape[1])


@rule("linear")
def _(call: FunctionCall) -> float:
    _, bound = call.only_input()
    W = call.argument(1, "weight")
    return bound * layer_factor(call, nn.Linear, W, W.shape[1], W.shape[0])


def _convolution(kind: type[nn.Module], call: FunctionCall) -> float:
    _, bound = call.only_input()
    K = call.argument(1, "weight")
    names = ["stride", "padding", "dilation", "groups"]
    if kind in TRANSPOSED:
        names = ["stride", "padding", "output_padding", "groups", "dilation"]
    given = dict(zip(names, call.args[3:], strict=False))
    settings = given | {name: call.kwargs[name] for name in names if name in call.kwargs}
    channels = [K.shape[1] * settings.get("groups", 1), K.shape[0]]
    if kind in TRANSPOSED:
        channels.reverse()
    return bound * layer_factor(call, kind, K, *channels, tuple(K.shape[2:]), **settings)


for _axes in (1, 2, 3):
    rule(f"conv{_axes}d")(functools.partial(_convolution, CONV[_axes - 1]))
    rule(f"conv_transpose{_axes}d")(functools.partial(_convolution, TRANSPOSED[_axes - 1]))


rule("prelu")(lambda call: call.only_input()[1] * max(1.0, float(call.argument(1, "weight").abs().max())))


@rule("batch_norm")
def _(call: FunctionCall) -> float:
    var, weight = call.argument(2, "running_var"), call.argument(3, "weight")
    if F.batch_norm is torch.batch_norm or call.argument(5, "training", False) or var is None:
        raise BoundError("batch normalization by the batch's own statistics")
    scale = float(channel_scale(var.double(), call.argument(7, "eps", 1e-5), weight).abs().max())
    if not math.isfinite(scale):
        raise BoundError("its statistics or weights are not finite")
    return call.only_input()[1] * scale


@rule("layer_norm group_norm")
def _(call: FunctionCall) -> float:
    eps, weight = call.argument(4, "eps", 1e-5), call.argument(2, "weight")
    return call.only_input()[1] * normalizing(eps, weight, call.ord, "it")
