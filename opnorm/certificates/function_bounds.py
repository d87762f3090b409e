"""Bounds on functions in the graph of a forward: those of the layer that does the same, or of a rule here."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.layers import CONV, TRANSPOSED, Shape
from opnorm._core.linear_map import linear_map
from opnorm.certificates.affine import averaged, combination, diagonal, selection
from opnorm.certificates.layer_bounds import LayerBounds, ReLU, check_layer, layer_bounds
from opnorm.errors import BoundError
from opnorm.norms.network.layer_rules import BUILDERS, convolution_layer, matrix_layer
from opnorm.norms.network.rules import FunctionCall
from opnorm.norms.network.trace import leaves

__all__ = ["OF_SHAPES", "Call", "function_bounds"]


class Call(NamedTuple):
    """A call with values that depend on the input.

    Attributes:
        function: its name, arguments and output, for a batch of two points.
        values: those that depend on the input, in the order of the arguments.
        run: the function on other values in their place, with its constants in float64.
    """

    function: FunctionCall
    values: list[Tensor]
    run: Callable[[Sequence[Tensor]], Any]

    @property
    def shapes(self) -> list[Shape]:
        """Of the values, without the batch axis."""
        return [tuple(v.shape[1:]) for v in self.values]

    def of_layer(self, layer: nn.Module) -> LayerBounds:
        """The bounds of a layer that does the same."""
        if len(self.values) != 1 or self.values[0] is not self.function.argument(0, "input"):
            raise BoundError("something else than its first argument depends on the input")
        check_layer(layer)
        return layer_bounds(layer, self.shapes[0])


OF_SHAPES = frozenset(["zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"])
"""Functions of the shape of a value alone."""

Rule = Callable[[Call], LayerBounds | list[Any]]
RULES: dict[str, Rule] = {}


def function_bounds(name: str) -> Rule:
    """The rule of an operation; in place, too: the walk treats the value that it overwrites."""
    plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    for candidate in (name, plain):
        if candidate in RULES:
            return RULES[candidate]
        if candidate in BUILDERS:
            return functools.partial(_as_layer, BUILDERS[candidate])
    raise BoundError("no bounds are known for it")


def _as_layer(build: Callable[..., nn.Module], call: Call) -> LayerBounds:
    settings = {k: v for k, v in call.function.kwargs.items() if k not in ("input", "inplace")}
    return call.of_layer(build(*call.function.args[1:], **settings))


def rule(names: str) -> Callable[[Rule], Rule]:
    """Register a rule for functions and methods of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names.split(), function))
        return function

    return register


@rule(
    "view reshape flatten unflatten ravel transpose permute t swapaxes swapdims movedim moveaxis squeeze unsqueeze "
    "contiguous clone detach narrow select chunk split tensor_split unbind flip fliplr flipud roll rot90 pixel_shuffle "
    "pixel_unshuffle channel_shuffle native_channel_shuffle diagonal hsplit vsplit view_as reshape_as expand expand_as "
    "broadcast_to repeat tile repeat_interleave getitem index_select cat concat concatenate stack hstack vstack dstack pad "
    "dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d positive pos getattr"
)
def _(call: Call) -> LayerBounds | list[Any]:
    if call.function.function.endswith("_"):
        raise BoundError("it moves entries in place")
    if any(isinstance(a, torch.dtype) for a in leaves((call.function.args, call.function.kwargs))):
        raise BoundError("it reads its input as another type")
    found = selection(call.run, call.shapes, call.values[0].device)
    return found if isinstance(call.function.output, tuple | list) else found[0]


@rule("float double to type type_as")
def _(call: Call) -> LayerBounds:
    return diagonal(call.shapes[0], *_one_and_zero(call.values[0]))


@rule("add iadd sub isub subtract neg negative mul imul multiply div truediv itruediv divide true_divide")
def _(call: Call) -> LayerBounds:
    """Sums of values and constants, and products with constants."""
    function = call.function
    settings = {k: v for k, v in function.kwargs.items() if k not in ("input", "other")}
    alpha = settings.pop("alpha", 1)
    output: Tensor = function.output
    if any(settings.values()) or len(function.args) > 2 or any(v.ndim != output.ndim for v in call.values):
        raise BoundError("with these settings, or with axes that it adds in front")
    operands = [*function.args, *(function.kwargs[k] for k in ("input", "other") if k in function.kwargs)]
    depending = [any(x is v for v in call.values) for x in operands]
    name = function.function.removesuffix("_")
    if name not in ("add", "iadd", "sub", "isub", "subtract"):
        if sum(depending) > 1 or (name.endswith(("div", "divide")) and not depending[0]):
            raise BoundError("a product or quotient of two values that depend on the input is not linear")
        factor = torch.tensor(-1.0, dtype=torch.float64, device=output.device)
        if len(operands) == 2:
            factor = _constant(operands[1 - depending.index(True)], output)
        if name.endswith(("div", "divide")):
            factor = 1 / factor
        return combination(
            call.shapes, [_checked(factor, output)], output.new_zeros(output.shape[1:]).double()
        )
    signs = [1.0, -float(alpha) if "sub" in name else float(alpha)]
    weights = [_checked(torch.tensor(s, dtype=torch.float64, device=output.device), output) for s in signs]
    fixed = [w * _constant(x, output) for w, x, d in zip(weights, operands, depending, strict=True) if not d]
    bias = sum(fixed, output.new_zeros(output.shape[1:]).double())
    return combination(
        call.shapes, [w for w, d in zip(weights, depending, strict=True) if d], _checked(bias, output)
    )


def _constant(value: Any, output: Tensor) -> Tensor:
    """A constant operand, of one output, in float64."""
    if not isinstance(value, Tensor | int | float):
        raise BoundError(f"its operand is {type(value).__name__}; expected a tensor or a number")
    wide = torch.as_tensor(value, device=output.device).detach().double().expand(output.shape)
    if not torch.equal(wide[0], wide[1]):
        raise BoundError("it treats the points of a batch in different ways")
    return wide[0]


def _checked(factors: Tensor, output: Tensor) -> Tensor:
    """Numbers that are computed with a small relative error; BoundError otherwise."""
    info = torch.finfo(output.dtype)
    size = factors.abs()
    if not bool(((size == 0) | ((size >= info.tiny) & (size <= info.max))).all()):
        raise BoundError(f"a constant is not finite, or too small for {output.dtype}")
    return factors


@rule("mean sum")
def _(call: Call) -> LayerBounds:
    if len(call.values) != 1 or call.function.kwargs.get("dtype") is not None:
        raise BoundError("it sums in another type")

    class Reduction(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return call.run([x])

    W = linear_map(Reduction(), call.shapes[0])
    return averaged(W, W.shape[1] // max(1, W.shape[0]))


def _with_bias(call: Call, layer: Any, place: int = 2) -> LayerBounds:
    bias = call.function.argument(place, "bias")
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return call.of_layer(layer)


@rule("linear")
def _(call: Call) -> LayerBounds:
    return _with_bias(call, matrix_layer(call.function.argument(1, "weight")))


@rule("matmul mm")
def _(call: Call) -> LayerBounds:
    W = call.function.argument(1, "other", call.function.kwargs.get("mat2"))
    if W.ndim != 2 or any(W is v for v in call.values):
        raise BoundError("only a product with a fixed matrix on the right has bounds")
    return call.of_layer(matrix_layer(W.T))


def _convolution(kind: type[nn.Module], call: Call) -> LayerBounds:
    return _with_bias(call, convolution_layer(kind, call.function))


for _axes in (1, 2, 3):
    RULES[f"conv{_axes}d"] = functools.partial(_convolution, CONV[_axes - 1])
    RULES[f"conv_transpose{_axes}d"] = functools.partial(_convolution, TRANSPOSED[_axes - 1])


@rule("batch_norm")
def _(call: Call) -> LayerBounds:
    rest = call.function.args[1:]
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, rest, strict=False)) | call.function.kwargs
    if given.get("training") or given.get("running_var") is None:
        raise BoundError("it normalizes by the batch's own statistics")
    layer = nn.BatchNorm1d(len(given["running_var"]), given.get("eps", 1e-5), device="meta")
    for name in ("running_mean", "running_var"):
        layer._buffers[name] = given[name]
    for name in ("weight", "bias"):
        value = given.get(name)
        layer._parameters[name] = None if value is None else nn.Parameter(value.detach(), requires_grad=False)
    layer._buffers.pop("num_batches_tracked")
    return call.of_layer(layer)


@rule("prelu")
def _(call: Call) -> LayerBounds:
    slope = call.function.argument(1, "weight")
    layer = nn.PReLU(slope.numel(), device="meta")
    layer.weight = nn.Parameter(slope.detach().reshape(-1), requires_grad=False)
    return call.of_layer(layer)


@rule("clamp clamp_min clip")
def _(call: Call) -> LayerBounds:
    low, high = call.function.argument(1, "min"), call.function.argument(2, "max")
    if isinstance(low, int | float) and isinstance(high, int | float) and low < high:
        return call.of_layer(nn.Hardtanh(low, high))
    if len(call.values) != 1 or low != 0 or high is not None:
        raise BoundError("only a clamp between two numbers, or at 0 from below, has bounds")
    return ReLU(call.shapes[0])


def _one_and_zero(like: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(torch.full((), v, dtype=torch.float64, device=like.device) for v in (1.0, 0.0))  # type: ignore[return-value]
