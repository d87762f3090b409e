"""What each function does to the Lipschitz bounds of its arguments. What has no rule here is not known."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.batch_norm import channel_scale
from opnorm.norms.network.interpreter import RULES, Call, Rule, Unknown, depends, number, p_norm, rule
from opnorm.norms.nonlinear import copies, normalizing

__all__: list[str] = []  # they register themselves


def _spread(x: Any, output: Tensor, p: float) -> float:
    """m^(1/p) for a tensor that was broadcast m times."""
    if not isinstance(x, Tensor) or x.numel() in (0, output.numel()):
        return 1.0
    return (output.numel() / x.numel()) ** (1 / p)


# what only says something of the shape or the type


@rule(
    "size", "dim", "ndimension", "numel", "nelement", "is_floating_point", "is_complex", "stride", "get_device",
    "element_size", "is_contiguous", "zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones",
    "new_full", "new_empty", "new_tensor",
)  # fmt: skip
def _(call: Call) -> Any:
    if len(call.bounds) > 1 and depends(call.bounds[1:]):
        raise Unknown("something else than its first argument depends on the input")
    return None


@rule("getattr")
def _(call: Call) -> Any:
    if call.args[1] in (
        "shape",
        "dtype",
        "device",
        "ndim",
        "is_cuda",
        "requires_grad",
        "layout",
        "is_quantized",
        "is_meta",
    ):
        return None
    if isinstance(call.bounds[0], tuple) and call.args[1] == "values":
        return call.bounds[0][0]
    if call.args[1] in ("T", "mT"):
        return number(call.bounds[0])
    raise Unknown(f"the attribute {call.args[1]!r} is not known")


RULES[getattr] = RULES["getattr"]

# what moves numbers about


@rule(
    "view", "reshape", "flatten", "unflatten", "ravel", "transpose", "permute", "t", "swapaxes", "swapdims", "movedim",
    "moveaxis", "squeeze", "unsqueeze", "contiguous", "clone", "detach", "narrow", "select", "chunk", "split",
    "tensor_split", "unbind", "flip", "fliplr", "flipud", "roll", "rot90", "float", "double", "half", "bfloat16", "to",
    "type", "cpu", "cuda", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "diagonal",
    "hsplit", "vsplit", "view_as", "reshape_as", "type_as", "requires_grad_",
)  # fmt: skip
def _(call: Call) -> Any:
    """Each output is another input: ℓp norms do not grow."""
    bound = number(call.bounds[0])  # the other arguments give shapes only
    if call.what == "view" and any(isinstance(a, torch.dtype) for a in (*call.args, *call.kwargs.values())):
        raise Unknown("reads the bits of numbers as others")

    def part(output: Any) -> Any:
        if isinstance(output, tuple | list):
            return tuple(part(o) for o in output)
        if not output.is_floating_point():
            raise Unknown("rounds to whole numbers")
        return bound

    return part(call.output)


@rule("expand", "expand_as", "repeat", "tile", "broadcast_to", "repeat_interleave")
def _(call: Call) -> float:
    x, bound = call.args[0], number(call.bounds[0])
    return bound * _spread(x, call.output, call.p)  # every entry equally often


@rule("index_select", "gather", "take", "take_along_dim")
def _(call: Call) -> float:
    raise Unknown("picks by an index; write x[:, index] for a fixed one")


@rule("getitem")
def _(call: Call) -> Any:
    if isinstance(call.bounds[0], tuple | list | Mapping):
        return call.bounds[0][call.args[1]]
    x, bound = call.first()
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if all(isinstance(i, int | slice | None | type(...)) for i in index):
        return bound
    moved = copies(lambda numbers: numbers.view(x.shape).to(x.device)[call.args[1]].cpu(), tuple(x.shape))
    return bound * moved ** (1 / call.p)


@rule("pad")
def _(call: Call) -> float:
    x, bound = call.first()
    mode = call.value(2, "mode", "constant")
    if mode == "constant":
        return bound
    pads = call.value(1, "pad")
    moved = copies(lambda numbers: F.pad(numbers.view(x.shape), pads, mode), tuple(x.shape))
    return bound * moved ** (1 / call.p)


# arithmetic


def _sum(call: Call, first: float = 1.0) -> float:
    if len(call.args) < 2:
        raise Unknown("two arguments are expected")
    scale = call.kwargs.get("alpha", 1)
    if not isinstance(scale, int | float) or isinstance(scale, bool):
        raise Unknown("alpha is not a number")
    parts = zip(call.args[:2], call.bounds[:2], (1.0, abs(scale)), strict=True)
    return math.fsum(s * number(b) * _spread(a, call.output, call.p) for a, b, s in parts)


for _name in ("add", "iadd", "sub", "isub", "subtract"):
    rule(_name)(_sum)


def _scaled(call: Call, size: Callable[[Tensor], Tensor], position: int, constant: Any) -> float:
    """Multiplied by a constant, of which ``size`` is what counts."""
    numbers = (
        constant.detach().double()
        if isinstance(constant, Tensor)
        else torch.tensor(float(constant), dtype=torch.float64)
    )
    scale = float(size(numbers.abs())) if numbers.numel() else 0.0
    if not math.isfinite(scale):
        raise Unknown("the constant that it scales by is not finite")
    x, bound = call.args[position], number(call.bounds[position])
    return bound * scale * _spread(x, call.output, call.p)


@rule("mul", "imul", "multiply")
def _(call: Call) -> float:
    moving = [depends(b) for b in call.bounds[:2]]
    if all(moving) or len(call.args) != 2:
        raise Unknown(
            "a product of two values that both depend on the input has no Lipschitz constant by itself"
        )
    position = moving.index(True)
    return _scaled(call, Tensor.max, position, call.args[1 - position])


@rule("div", "truediv", "itruediv", "divide", "true_divide")
def _(call: Call) -> float:
    if len(call.args) != 2 or depends(call.bounds[1]) or call.kwargs.get("rounding_mode"):
        raise Unknown("division by what depends on the input, or with rounding, has no Lipschitz constant")
    return _scaled(call, lambda t: (1 / t).max(), 0, call.args[1])


@rule("matmul", "mm", "imatmul")
def _(call: Call) -> float:
    x, bound = call.first()
    W = call.args[1]
    if W.ndim != 2 or x.ndim < 2:
        raise Unknown("only a product with a fixed matrix from the right is known")
    return bound * call.walk.factor(_linear(W.T), tuple(x.shape[1:]))


# coordinate by coordinate


@rule(
    "neg",
    "negative",
    "positive",
    "pos",
    "abs",
    "absolute",
    "sin",
    "cos",
    "atan",
    "arctan",
    "asinh",
    "arcsinh",
)
@rule("clamp", "clip", "clamp_min", "clamp_max")
def _(call: Call) -> float:
    x, bound = call.first()
    return bound * _spread(x, call.output, call.p)


@rule("erf")
def _(call: Call) -> float:
    return call.first()[1] * 1.1283791670955126  # 2/√π, rounded up


@rule("maximum", "minimum")
def _(call: Call) -> float:
    """|max(a, b) - max(a', b')| <= max(|a - a'|, |b - b'|), coordinate by coordinate."""
    parts = zip(call.args[:2], call.bounds[:2], strict=True)
    return p_norm([number(b) * _spread(a, call.output, call.p) for a, b in parts], call.p)


@rule("where", "masked_fill")
def _(call: Call) -> float:
    """Each entry is one of the two, by a fixed mask."""
    mask = 0 if call.what == "where" else 1
    if len(call.args) != 3 or depends(call.bounds[mask]):
        raise Unknown("picks by the values themselves")
    parts = [(call.args[i], call.bounds[i]) for i in range(3) if i != mask]
    return p_norm([number(b) * _spread(a, call.output, call.p) for a, b in parts], call.p)


# sums over axes, concatenation


def _reduced(call: Call, factor: Callable[[float], float]) -> float:
    x, bound = call.first()
    return bound * factor(x.numel() / max(1, call.output.numel()))


@rule("mean")
def _(call: Call) -> float:
    """|mean|^p <= k^{-p} k^{p-1} Σ |x_i|^p (Hölder), reached by equal entries: k^{-1/p}."""
    return _reduced(call, lambda k: k ** (-1 / call.p))


@rule("sum")
def _(call: Call) -> float:
    """As k times the mean: k^{1 - 1/p}."""
    return _reduced(call, lambda k: k ** (1 - 1 / call.p))


@rule("amax", "amin", "logsumexp")
def _(call: Call) -> float:
    """Of disjoint groups, each changes by no more than its entry that changes most."""
    return call.first()[1]


@rule("max", "min")
def _(call: Call) -> Any:
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):
        return RULES["maximum"](call)
    bound = call.first()[1]
    return (bound, Unknown("the place of a maximum jumps")) if isinstance(call.output, tuple) else bound


@rule("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack")
def _(call: Call) -> float:
    parts = call.bounds[0] if call.bounds else call.named["tensors"]
    return p_norm([number(b) for b in parts], call.p)


# functions that are layers


def _like(*names: str, build: Callable[..., nn.Module]) -> None:
    """Functions that do what a layer does: ``build`` makes it from the arguments after the first."""

    @rule(*names)
    def _(call: Call) -> float:
        x, bound = call.first()
        if not isinstance(call.output, Tensor):
            raise Unknown("returns more than one tensor")
        return bound * call.walk.factor(build(*call.args[1:], **call.kwargs), tuple(x.shape[1:]))


for _names, _build in {
    ("relu",): nn.ReLU, ("relu6",): nn.ReLU6, ("leaky_relu",): nn.LeakyReLU, ("elu",): nn.ELU, ("celu",): nn.CELU,
    ("selu",): nn.SELU, ("gelu",): nn.GELU, ("silu",): nn.SiLU, ("mish",): nn.Mish, ("hardtanh",): nn.Hardtanh,
    ("tanhshrink",): nn.Tanhshrink, ("softsign",): nn.Softsign, ("softplus",): nn.Softplus, ("logsigmoid",): nn.LogSigmoid,
    ("hardsigmoid",): nn.Hardsigmoid, ("hardswish",): nn.Hardswish, ("softshrink",): nn.Softshrink,
    ("hardshrink",): nn.Hardshrink, ("threshold",): nn.Threshold, ("glu",): nn.GLU,
    ("avg_pool1d",): nn.AvgPool1d, ("avg_pool2d",): nn.AvgPool2d, ("avg_pool3d",): nn.AvgPool3d,
    ("adaptive_avg_pool1d",): nn.AdaptiveAvgPool1d, ("adaptive_avg_pool2d",): nn.AdaptiveAvgPool2d,
    ("adaptive_avg_pool3d",): nn.AdaptiveAvgPool3d, ("adaptive_max_pool1d",): nn.AdaptiveMaxPool1d,
    ("adaptive_max_pool2d",): nn.AdaptiveMaxPool2d, ("adaptive_max_pool3d",): nn.AdaptiveMaxPool3d,
}.items():  # fmt: skip
    _like(*_names, build=_build)

_like("tanh", build=lambda: nn.Tanh())
_like("sigmoid", build=lambda: nn.Sigmoid())
_like("softmax", build=lambda dim=None, *_, **__: nn.Softmax(dim))
_like("softmin", build=lambda dim=None, *_, **__: nn.Softmin(dim))
_like("log_softmax", build=lambda dim=None, *_, **__: nn.LogSoftmax(dim))


def _resize(
    size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> nn.Module:  # fmt: skip
    if antialias:
        raise Unknown("antialiased resizing is not known")
    return nn.Upsample(size, scale_factor, mode, align_corners, recompute_scale_factor)


_like("interpolate", "upsample", build=_resize)


def _max_pool(
    kind: type[nn.Module], kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> nn.Module:  # fmt: skip
    return kind(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


for _axes, _kind in enumerate((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), start=1):
    _like(f"max_pool{_axes}d", build=functools.partial(_max_pool, _kind))


@rule("dropout", "alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d")
def _(call: Call) -> float:
    if call.value(2, "training", call.kwargs.get("train", True)):
        raise Unknown("drops at random even in eval mode")
    return call.first()[1]


def _linear(W: Tensor) -> nn.Linear:
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(W.detach(), requires_grad=False)
    return layer


@rule("linear")
def _(call: Call) -> float:
    x, bound = call.first()
    return bound * call.walk.factor(_linear(call.value(1, "weight")), tuple(x.shape[1:]))


def _convolution(axes: int, transposed: bool) -> Rule:
    kinds: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    names: tuple[str, ...] = ("stride", "padding", "dilation", "groups")
    if transposed:
        kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        names = ("stride", "padding", "output_padding", "groups", "dilation")
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}

    def apply(call: Call) -> float:
        x, bound = call.first()
        K = call.value(1, "weight")
        settings = {name: call.value(3 + i, name, defaults[name]) for i, name in enumerate(names)}
        channels = [K.shape[1] * settings["groups"], K.shape[0]][:: -1 if transposed else 1]
        layer = kinds[axes - 1](*channels, tuple(K.shape[2:]), bias=False, device="meta", **settings)
        layer.weight = nn.Parameter(K.detach(), requires_grad=False)
        return bound * call.walk.factor(layer, tuple(x.shape[1:]))

    return apply


for _axes in (1, 2, 3):
    rule(f"conv{_axes}d")(_convolution(_axes, transposed=False))
    rule(f"conv_transpose{_axes}d")(_convolution(_axes, transposed=True))


@rule("prelu")
def _(call: Call) -> float:
    _, bound = call.first()
    return bound * max(1.0, float(call.value(1, "weight").abs().max()))


@rule("batch_norm")
def _(call: Call) -> float:
    _, bound = call.first()
    var, weight = call.value(2, "running_var"), call.value(3, "weight")
    if F.batch_norm is torch.batch_norm or call.value(5, "training", False) or var is None:
        raise Unknown("batch normalization by the batch's own statistics")
    gain = channel_scale(var.double(), call.value(7, "eps", 1e-5), weight)
    if not torch.isfinite(gain).all():
        raise Unknown("its numbers are not finite")
    return bound * float(gain.abs().max())


@rule("layer_norm", "group_norm")
def _(call: Call) -> float:
    _, bound = call.first()
    return bound * normalizing(call.value(4, "eps", 1e-5), call.value(2, "weight"), call.p, "it")


@rule(
    "normalize",
    "cosine_similarity",
    "rsqrt",
    "sqrt",
    "log",
    "exp",
    "pow",
    "square",
    "reciprocal",
    "bmm",
    "einsum",
)
def _(call: Call) -> float:
    raise Unknown("has no Lipschitz constant on all inputs, or none that is known here")


@rule(
    "round", "floor", "ceil", "sign", "argmax", "argmin", "gt", "lt", "ge", "le", "eq", "ne", "topk", "sort"
)
def _(call: Call) -> float:
    raise Unknown("jumps, or picks by the values themselves")
