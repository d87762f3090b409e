"""Values of a network that are a function of one variable, entry by entry, of a value before them.

``x * torch.sigmoid(x)`` multiplies two values that both depend on the input, so no rule for products bounds it; but it is
f(x) with f: R -> R, and ‖f(x) - f(y)‖_p <= sup |f'| ‖x - y‖_p in every ℓp.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.layers import Shape, is_standard
from opnorm.errors import BoundError
from opnorm.norms.network.layer_rules import BUILDERS
from opnorm.norms.network.one_variable import IDENTITY, MAX_STEPS, Function, apply, constant, largest_slope

__all__ = ["Pending", "Pointwise", "Start", "TooLong", "layer_function", "pointwise"]

MAX_CONSTANTS = 16  # different sets of constants in one value, such as the slopes of channels


class Start:
    """A value that functions of one variable begin at.

    Attributes:
        bound: its Lipschitz bound.
        shape: its own.
        constants: tensors of constants in the functions, of which an entry may have its own; copies.
    """

    def __init__(self, bound: float, shape: Shape) -> None:
        self.bound, self.shape = bound, shape
        self.constants: list[Tensor] = []


class Pointwise(NamedTuple):
    """A value that is, entry by entry, a function of the entry of another one at the same place."""

    start: Start
    function: Function  # a step ("constant", k) is the entry of start.constants[k]

    def bound(self) -> float:
        """Of the value, infinite where it is not known."""
        used = sorted({int(k) for name, *arguments in self.function if name == "constant" for k in arguments})
        slopes = [largest_slope(f) for f in self._with_constants(used)]
        return max(slopes) * self.start.bound if self.start.bound else 0.0

    def best(self, by_rule: "float | BoundError") -> "float | BoundError":
        """The smaller one of the bound and another one; the reason where both are not known."""
        try:
            bound = self.bound()
        except BoundError as e:
            return e if isinstance(by_rule, BoundError) else by_rule
        if isinstance(by_rule, float):
            return min(bound, by_rule)
        return bound if math.isfinite(bound) else by_rule

    def _with_constants(self, used: list[int]) -> list[Function]:
        if not used:
            return [self.function]
        tensors = torch.broadcast_tensors(*(self.start.constants[k] for k in used))
        rows = torch.stack([t.flatten() for t in tensors], 1).unique(dim=0).tolist()
        if len(rows) > MAX_CONSTANTS:
            raise BoundError(f"it has {len(rows)} different constants; at most {MAX_CONSTANTS} are tried")
        found = []
        for row in rows:
            values = dict(zip(used, row, strict=True))
            found.append(
                tuple(("number", values[int(s[1])]) if s[0] == "constant" else s for s in self.function)
            )
        return found


class Pending(BoundError):  # noqa: N818 - it is one only for what cannot wait
    """A bound that is computed when something else than a function of one variable wants it.

    Attributes:
        form: the value as a function of one variable.
        fallback: the bound by the rule of the last operation, or the BoundError that it raised.
    """

    def __init__(self, form: Pointwise, fallback: float | BoundError) -> None:
        super().__init__(str(fallback))
        self.form, self.fallback = form, fallback


# ---------------------------------------------------------------- which operation is which function


def _minus(f: Function) -> Function:
    return apply("mul", constant(-1), f)


def _plus(*functions: Function | float) -> Function:
    total, *rest = (f if isinstance(f, tuple) else constant(f) for f in functions)
    for f in rest:
        total = apply("add", total, f)
    return total


def _times(a: Function | float, b: Function | float) -> Function:
    return apply("mul", *(f if isinstance(f, tuple) else constant(f) for f in (a, b)))


def _over(a: Function, b: Function) -> Function:
    return _times(a, apply("reciprocal", b))


def _larger(a: Function, b: Function) -> Function:
    return _plus(b, apply("kink", _plus(a, _minus(b)), 0, 1))


def _smaller(a: Function, b: Function) -> Function:
    return _minus(_larger(_minus(a), _minus(b)))


def _clamped(f: Function, low: float | None = None, high: float | None = None) -> Function:
    if low is not None and high is not None:
        if low > high:
            raise _NoFunction
        return apply("clamp", f, low, high)
    if low is not None:
        return _larger(f, constant(low))
    return f if high is None else _smaller(f, constant(high))


def _to_power(f: Function, exponent: float) -> Function:
    if exponent == 0.5:
        return apply("sqrt", f)
    if exponent != int(exponent) or abs(exponent) > 64:
        raise _NoFunction
    raised = apply("power", f, abs(exponent)) if exponent else constant(1)
    return apply("reciprocal", raised) if exponent < 0 else raised


def _expm1(f: Function) -> Function:
    return _plus(apply("exp", f), -1.0)


def _elu(f: Function, alpha: float = 1.0, scale: float = 1.0, inner: float = 1.0) -> Function:
    """Scale · u right of 0 and scale · alpha (e^(u / inner) - 1) left of it."""
    left = _expm1(_times(1 / inner, apply("kink", f, 1, 0)))
    return _plus(apply("kink", f, 0, scale), _times(scale * alpha, left))


def _gelu(f: Function, approximate: str = "none") -> Function:
    if approximate == "tanh":
        bell = apply("tanh", _times(math.sqrt(2 / math.pi), _plus(f, _times(0.044715, apply("power", f, 3)))))
    else:
        bell = apply("erf", _times(math.sqrt(0.5), f))
    return _times(_times(0.5, f), _plus(1.0, bell))


class TooLong(Exception):  # noqa: N818 - caught by the interpreter
    """A function has too many steps: it is to begin at a later value."""


class _NoFunction(Exception):  # noqa: N818 - never seen outside
    """An operation is no function of one variable with these arguments."""


def _hard_sigmoid(f: Function) -> Function:
    return _times(1 / 6, apply("clamp", _plus(f, 3.0), 0, 6))


LAYERS: dict[type[nn.Module], Callable[[Function, Any], Function]] = {
    nn.ReLU: lambda f, layer: apply("kink", f, 0, 1),
    nn.LeakyReLU: lambda f, layer: apply("kink", f, layer.negative_slope, 1),
    nn.ReLU6: lambda f, layer: apply("clamp", f, 0, 6),
    nn.Hardtanh: lambda f, layer: _clamped(f, layer.min_val, layer.max_val),
    nn.Tanh: lambda f, layer: apply("tanh", f),
    nn.Sigmoid: lambda f, layer: apply("sigmoid", f),
    nn.LogSigmoid: lambda f, layer: _minus(apply("softplus", _minus(f))),
    nn.Softsign: lambda f, layer: _over(f, _plus(1.0, apply("kink", f, -1, 1))),
    nn.Tanhshrink: lambda f, layer: _plus(f, _minus(apply("tanh", f))),
    nn.Hardsigmoid: lambda f, layer: _hard_sigmoid(f),
    nn.Hardswish: lambda f, layer: _times(f, _hard_sigmoid(f)),
    nn.SiLU: lambda f, layer: _times(f, apply("sigmoid", f)),
    nn.Mish: lambda f, layer: _times(f, apply("tanh", apply("softplus", f))),
    nn.GELU: lambda f, layer: _gelu(f, layer.approximate),
    nn.ELU: lambda f, layer: _elu(f, layer.alpha),
    nn.CELU: lambda f, layer: _elu(f, layer.alpha, inner=layer.alpha),
    nn.SELU: lambda f, layer: _elu(f, 1.6732632423543772, 1.0507009873554805),
}
"""Activations as functions; one with a jump is not among them."""

UNARY: dict[str, Callable[[Function], Function]] = {
    **dict.fromkeys(("neg", "negative"), _minus),
    **{name: lambda f: f for name in ("pos", "positive")},
    **{name: lambda f: apply("kink", f, -1, 1) for name in ("abs", "absolute")},
    **{name: lambda f, name=name: apply(name, f) for name in ("exp", "log", "sqrt", "sin", "cos", "tanh", "sigmoid", "erf")},  # type: ignore[misc]
    **{name: lambda f: apply("atan", f) for name in ("atan", "arctan")},
    "square": lambda f: apply("power", f, 2),
    "reciprocal": lambda f: apply("reciprocal", f),
    "rsqrt": lambda f: apply("reciprocal", apply("sqrt", f)),
    "expm1": _expm1,
    "log1p": lambda f: apply("log", _plus(1.0, f)),
    "erfc": lambda f: _plus(1.0, _minus(apply("erf", f))),
}  # fmt: skip

SAME = frozenset(
    ("clone", "contiguous", "detach", "to", "float", "double", "half", "bfloat16", "cpu", "cuda")
)
"""What gives its first argument, whatever the others are."""

BINARY: dict[str, Callable[[Function, Function], Function]] = {
    **dict.fromkeys(("mul", "imul", "multiply"), _times),
    **dict.fromkeys(("div", "truediv", "itruediv", "divide", "true_divide"), _over),
    **dict.fromkeys(("maximum", "max", "clamp_min"), _larger),
    **dict.fromkeys(("minimum", "min", "clamp_max"), _smaller),
}


def pointwise(
    operation: str, layer: nn.Module | None, operands: list["Pointwise | Any"], settings: dict[str, Any]
) -> Pointwise | None:
    """The result of an operation as a function of one variable, or None where it is none.

    Args:
        operation: its name, that of a function of torch or a method.
        layer: the activation that does it, instead.
        operands: its arguments; those that depend on the input as ``Pointwise``.
        settings: its named arguments.

    Raises:
        TooLong: it would be a function of more than ``MAX_STEPS`` steps.
    """
    known = [a for a in operands if isinstance(a, Pointwise)]
    if not known or any(a.start is not known[0].start for a in known):
        return None
    start = known[0].start
    try:
        function = _function(operation, layer, operands, dict(settings), start)
    except _NoFunction:
        return None
    if len(function) > MAX_STEPS:
        raise TooLong
    return Pointwise(start, function)


def layer_function(layer: nn.Module) -> Function | None:
    """An activation as a function of one variable, or None where it is none that is known."""
    start = Start(1.0, ())
    try:
        return _function("", layer, [Pointwise(start, IDENTITY)], {}, start)
    except _NoFunction:
        return None


def _function(
    operation: str, layer: nn.Module | None, operands: list[Any], settings: dict[str, Any], start: Start
) -> Function:
    if layer is not None:
        kind = next((k for k in LAYERS if is_standard(layer, k)), None)
        softplus = is_standard(layer, nn.Softplus) and layer.threshold >= 15 and layer.beta > 0  # type: ignore[operator]
        if len(operands) != 1 or (kind is None and not softplus):
            raise _NoFunction
        f = operands[0].function
        if kind is not None:
            return LAYERS[kind](f, layer)
        beta = float(layer.beta)  # type: ignore[arg-type]
        return _times(1 / beta, apply("softplus", _times(beta, f)))
    name = operation.removesuffix("_") if not operation.endswith("__") else operation
    if name in SAME and isinstance(operands[0], Pointwise):
        return operands[0].function
    alpha = settings.pop("alpha", 1)
    if name in ("add", "iadd", "sub", "isub", "subtract") and len(operands) == 2 and not settings:
        a, b = (_operand(x, start) for x in operands)
        factor = alpha if name in ("add", "iadd") else -alpha
        return _plus(a, b if factor == 1 else _times(factor, b))
    if settings.pop("rounding_mode", None) or alpha != 1:
        raise _NoFunction
    if name in ("clamp", "clip", "pow") or name in UNARY:
        return _with_settings(name, operands, settings)
    if name in BUILDERS and isinstance(operands[0], Pointwise):
        return _function("", _built(BUILDERS[name], operands[1:], settings), operands[:1], {}, start)
    if name not in BINARY or len(operands) != 2 or settings:
        raise _NoFunction
    return BINARY[name](*(_operand(x, start) for x in operands))


def _built(build: Callable[..., nn.Module], arguments: list[Any], settings: dict[str, Any]) -> nn.Module:
    try:
        return build(*arguments, **settings)
    except (TypeError, ValueError, BoundError) as e:  # of torch's own constructors
        raise _NoFunction from e


def _with_settings(name: str, operands: list[Any], settings: dict[str, Any]) -> Function:
    """Functions of one value and of numbers."""
    numbers = [*operands[1:], *settings.values()]
    if not isinstance(operands[0], Pointwise) or any(
        not isinstance(n, int | float | None) or isinstance(n, bool) for n in numbers
    ):
        raise _NoFunction
    f = operands[0].function
    if name in UNARY:
        if numbers:
            raise _NoFunction
        return UNARY[name](f)
    if name == "pow":
        if len(numbers) != 1:
            raise _NoFunction
        return _to_power(f, numbers[0])
    limits = dict(zip(("min", "max"), operands[1:], strict=False)) | settings
    return _clamped(f, limits.pop("min", None), limits.pop("max", None))


def _operand(value: Any, start: Start) -> Function:
    """A function, or a constant: one number, or a tensor with one for each entry or channel."""
    if isinstance(value, Pointwise):
        return value.function
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise _NoFunction
        return constant(value)
    if (
        not isinstance(value, Tensor)
        or value.is_complex()
        or not bool(value.isfinite().all())
        or not value.numel()
    ):
        raise _NoFunction
    value = value.detach().double().cpu()
    first = float(value.flatten()[0])
    if bool((value == first).all()):
        return constant(first)
    for k, known in enumerate(start.constants):
        if known.shape == value.shape and torch.equal(known, value):
            return (("constant", float(k)),)
    start.constants.append(value.clone())
    return (("constant", float(len(start.constants) - 1)),)
