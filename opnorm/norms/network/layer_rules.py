"""Rules for the functions that do what a layer does."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.batch_norm import channel_scale
from opnorm._core.layers import CONV, TRANSPOSED
from opnorm.errors import BoundError
from opnorm.norms.exact.separable import Resize
from opnorm.norms.network.rules import OF_TWO, RULES, FunctionCall, constant, depends, rule
from opnorm.norms.nonlinear import copies
from opnorm.norms.normalization_constants import normalizing

__all__ = ["BUILDERS", "RULES", "convolution_layer", "matrix_layer"]

BUILDERS: dict[str, Callable[..., nn.Module]] = {}
"""By the name of a function that does what a layer does: the layer from its arguments after the first."""


def as_layer(names: str, build: Callable[..., nn.Module]) -> None:
    """Functions that do what a layer does: ``build`` makes it from the arguments after the first."""
    BUILDERS.update(dict.fromkeys(names.split(), build))

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
    as_layer(f"lp_pool{_axes}d", getattr(nn, f"LPPool{_axes}d"))
    as_layer(f"adaptive_max_pool{_axes}d", getattr(nn, f"AdaptiveMaxPool{_axes}d"))
as_layer("tanh", lambda: nn.Tanh())
as_layer("sigmoid", lambda: nn.Sigmoid())
as_layer("softmax", lambda dim=None, *_, **__: nn.Softmax(dim))
as_layer("softmin", lambda dim=None, *_, **__: nn.Softmin(dim))
as_layer("log_softmax", lambda dim=None, *_, **__: nn.LogSoftmax(dim))


def _resize(
    size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> nn.Module:  # fmt: skip
    if antialias:
        return Resize(size, scale_factor, mode, align_corners)
    return nn.Upsample(size, scale_factor, mode, align_corners, recompute_scale_factor)


as_layer("interpolate upsample", _resize)
as_layer("upsample_nearest", nn.UpsamplingNearest2d)
as_layer("upsample_bilinear", nn.UpsamplingBilinear2d)
as_layer("fold", nn.Fold)
as_layer("unfold", nn.Unfold)


def _windows(call: FunctionCall) -> float:
    """The method of tensors with the name of ``torch.nn.functional.unfold``: windows along one axis."""
    x, bound = call.only_input()
    names = ("dimension", "size", "step")
    window = [call.argument(i, name) for i, name in enumerate(names, 1)]
    count = copies(lambda places: places.view(x.shape).unfold(*window), tuple(x.shape))
    return bound * count ** (1 / call.ord)


RULES["unfold"] = _windows


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


def matrix_layer(W: Tensor) -> nn.Module:
    """The layer x -> x Wᵀ."""
    return _with_weight(nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta"), W)


def _with_weight(layer: Any, weight: Tensor) -> nn.Module:
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return layer


def times_matrix(call: FunctionCall, x: Tensor, W: Tensor) -> float:
    """The constant of x Wᵀ."""
    return call.factor(matrix_layer(W), tuple(x.shape))


@rule("matmul mm imatmul")
def _(call: FunctionCall) -> float:
    (a, of_a), (b, of_b) = (
        call.operand(0, "input"),
        call.operand(1, "mat2" if call.function == "mm" else "other"),
    )
    fixed, x = (a, b) if depends(of_b) else (b, a)
    if depends(of_a) and depends(of_b):
        raise BoundError(OF_TWO)
    if fixed.ndim != 2 or x.ndim < 2:
        raise BoundError("only a product with a fixed matrix is known")
    if fixed is a:  # A x = (xᵀ Aᵀ)ᵀ
        return constant(of_b) * times_matrix(call, x.mT, a)
    return constant(of_a) * times_matrix(call, x, b.T)


@rule("addmm")
def _(call: FunctionCall) -> float:
    (x, of_x), (W, of_W) = call.operand(1, "mat1"), call.operand(2, "mat2")
    beta, alpha = call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1)
    if depends(of_W) or not all(isinstance(s, int | float) for s in (beta, alpha)):
        raise BoundError("only a product with a fixed matrix is known")
    product = constant(of_x) * times_matrix(call, x, W.T)
    return math.fsum((abs(beta) * call.broadcast(0, "input"), abs(alpha) * product))


@rule("linear")
def _(call: FunctionCall) -> float:
    x, bound = call.only_input()
    return bound * times_matrix(call, x, call.argument(1, "weight"))


def convolution_layer(kind: Any, call: FunctionCall) -> nn.Module:
    """The layer of a call of a convolution, without the bias."""
    K = call.argument(1, "weight")
    names = ["stride", "padding", "dilation", "groups"]
    if kind in TRANSPOSED:
        names = ["stride", "padding", "output_padding", "groups", "dilation"]
    given = dict(zip(names, call.args[3:], strict=False))
    settings = given | {name: call.kwargs[name] for name in names if name in call.kwargs}
    channels = [K.shape[1] * settings.get("groups", 1), K.shape[0]]
    if kind in TRANSPOSED:
        channels.reverse()
    return _with_weight(kind(*channels, tuple(K.shape[2:]), bias=False, device="meta", **settings), K)


def _convolution(kind: type[nn.Module], call: FunctionCall) -> float:
    x, bound = call.only_input()
    return bound * call.factor(convolution_layer(kind, call), tuple(x.shape))


for _axes in (1, 2, 3):
    rule(f"conv{_axes}d")(functools.partial(_convolution, CONV[_axes - 1]))
    rule(f"conv_transpose{_axes}d")(functools.partial(_convolution, TRANSPOSED[_axes - 1]))


rule("prelu")(lambda call: call.only_input()[1] * max(1.0, float(call.argument(1, "weight").abs().max())))


@rule("batch_norm instance_norm")
def _(call: FunctionCall) -> float:
    var, weight = call.argument(2, "running_var"), call.argument(3, "weight")
    eps, own = call.argument(7, "eps", 1e-5), call.argument(5, "training", False)
    if call.function == "instance_norm" and (var is None or call.argument(5, "use_input_stats", True)):
        x, bound = call.only_input()
        return bound * normalizing(eps, weight, call.ord, "it", math.prod(x.shape[2:]))
    if var is None or (call.function == "batch_norm" and own):
        raise BoundError("batch normalization by the batch's own statistics")
    scale = float(channel_scale(var.double(), eps, weight).abs().max())
    if not math.isfinite(scale):
        raise BoundError("its statistics or weights are not finite")
    return call.only_input()[1] * scale


for _name in ("batch_norm", "instance_norm"):  # those of torch.nn.functional; torch's take other arguments
    del RULES[getattr(torch, _name)]


@rule("rms_norm")
def _(call: FunctionCall) -> float:
    x, bound = call.only_input()
    eps = call.argument(3, "eps")
    if eps is None:  # as for nn.RMSNorm
        eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    size = math.prod(call.argument(1, "normalized_shape"))
    return bound * normalizing(eps, call.argument(2, "weight"), call.ord, "it", size, centered=False)


@rule("layer_norm group_norm")
def _(call: FunctionCall) -> float:
    x, bound = call.only_input()
    if call.function == "layer_norm":
        size = math.prod(call.argument(1, "normalized_shape"))
    else:
        size = math.prod(x.shape[1:]) // call.argument(1, "num_groups")
    eps, weight = call.argument(4, "eps", 1e-5), call.argument(2, "weight")
    return bound * normalizing(eps, weight, call.ord, "it", size)
