"""Rules for Lipschitz bounds: the bound of a function's result from the bounds of its arguments.

The bound of a value is a float L; None for a value that does not depend on the input; a BoundError, the reason, where no L
is known; and a tuple or dict of these for a tuple or dict of values.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.layers import Shape
from opnorm.errors import BoundError
from opnorm.norms.network.trace import leaves
from opnorm.norms.nonlinear import copies

__all__ = ["AT_THE_DATA", "OF_TWO", "RULES", "FunctionCall", "constant", "depends", "p_norm", "rule"]


class FunctionCall(NamedTuple):
    """A call in the graph, with its values and their bounds."""

    function: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    bounds: tuple[Any, ...]  # of args
    kwarg_bounds: dict[str, Any]
    output: Any
    ord: float
    factor: Callable[
        [nn.Module, Shape], float
    ]  # of a layer's constant for a tensor of a shape: upper bound or BoundError

    def operand(self, position: int, name: str) -> tuple[Any, Any]:
        """An argument by position or name, and its bound; BoundError where it is missing."""
        if position < len(self.args):
            return self.args[position], self.bounds[position]
        if name not in self.kwargs:
            raise BoundError(f"its argument {name!r} is missing")
        return self.kwargs[name], self.kwarg_bounds[name]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def only_input(self) -> tuple[Tensor, float]:
        """The first argument and its bound; BoundError where another argument depends on the input."""
        value, bound = self.operand(0, "input")
        others = (self.bounds[1:], {k: b for k, b in self.kwarg_bounds.items() if k != "input"})
        if depends(others):
            raise BoundError("something else than its first argument depends on the input")
        return value, constant(bound)

    def broadcast(self, position: int, name: str) -> float:
        """The bound of an argument that is broadcast to the output: m copies of each entry count m^(1/p)."""
        value, bound = self.operand(position, name)
        if not isinstance(value, Tensor) or value.numel() in (0, self.output.numel()):
            return constant(bound)
        return constant(bound) * (self.output.numel() / value.numel()) ** (1 / self.ord)


Rule = Callable[[FunctionCall], Any]
RULES: dict[Any, Rule] = {}
"""By function, and by name for methods of tensors."""


def depends(bound: Any) -> bool:
    """Whether a value depends on the input."""
    return any(b is not None for b in leaves(bound))


def constant(bound: Any) -> float:
    """The bound of one tensor as a float, 0 for a value that does not depend on the input; or its BoundError."""
    if isinstance(bound, BoundError):
        raise bound
    if bound is None:
        return 0.0
    if not isinstance(bound, float):
        raise BoundError("a tuple, where one tensor was expected")
    return bound


def p_norm(values: Sequence[float], p: float) -> float:
    """(Σ v^p)^(1/p) of numbers that are not negative, without overflow."""
    largest = max(values, default=0.0)
    if largest == 0 or math.isinf(p):
        return largest
    return largest * math.fsum((v / largest) ** p for v in values) ** (1 / p)


def rule(names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the functions of torch, torch.nn.functional and operator, and the methods, of these names."""

    def register(function: Rule) -> Rule:
        for name in names.split():
            found = {getattr(place, n, None) for place in (torch, F) for n in (name, f"{name}_")}
            found.add(getattr(operator, name, None))
            RULES.update(dict.fromkeys((name, *filter(callable, found)), function))
        return function

    return register


def refuse(names: str, reason: str) -> None:
    """Register functions that have no bound, with the reason."""

    @rule(names)
    def _(call: FunctionCall) -> float:
        raise BoundError(reason)


AT_THE_DATA = "opnorm.local_lipschitz bounds it on a ball around a point"
OF_TWO = f"a product of two values that both depend on the input has no Lipschitz constant by itself; {AT_THE_DATA}"

NOT_EVERYWHERE = "has no Lipschitz constant on all inputs, or none that is known here"

refuse("normalize cosine_similarity einsum", NOT_EVERYWHERE)
refuse("rsqrt sqrt log exp pow square reciprocal bmm", f"{NOT_EVERYWHERE}; {AT_THE_DATA}")
refuse(
    "scaled_dot_product_attention multi_head_attention_forward",
    f"dot-product attention has no Lipschitz constant on all inputs (Kim, Papamakarios & Mnih 2021); {AT_THE_DATA}",
)
refuse(
    "round floor ceil sign argmax argmin gt lt ge le eq ne",
    "jumps, or picks by the values themselves",
)

# ---------------------------------------------------------------- shapes and types

CONSTANT_ATTRIBUTES = [
    "shape",
    "dtype",
    "device",
    "ndim",
    "is_cuda",
    "requires_grad",
    "layout",
    "is_quantized",
    "is_meta",
]


@rule(
    "size dim ndimension numel nelement is_floating_point is_complex stride get_device element_size is_contiguous "
    "zeros_like ones_like empty_like full_like new_zeros new_ones new_full new_empty new_tensor"
)
def _(call: FunctionCall) -> None:
    others = (call.bounds[1:], {k: b for k, b in call.kwarg_bounds.items() if k != "input"})
    if depends(others):
        raise BoundError("something else than its first argument depends on the input")


@rule("getattr")
def _(call: FunctionCall) -> Any:
    name = call.args[1]
    if name in CONSTANT_ATTRIBUTES:
        return None
    if isinstance(call.bounds[0], tuple) and name == "values":
        return call.bounds[0][0]
    if name in ("T", "mT", "data"):
        return constant(call.bounds[0])
    raise BoundError(f"the attribute {name!r} is not known")


RULES[getattr] = RULES["getattr"]

# ---------------------------------------------------------------- entries that move or are copied


@rule(
    "view reshape flatten unflatten ravel transpose permute t swapaxes swapdims movedim moveaxis squeeze unsqueeze "
    "contiguous clone detach narrow select chunk split tensor_split unbind flip fliplr flipud roll rot90 float double "
    "half bfloat16 to type cpu cuda pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle diagonal "
    "hsplit vsplit requires_grad_"
)
def _(call: FunctionCall) -> Any:
    x, bound = call.only_input()
    if call.function == "view" and call.output.dtype != x.dtype:
        raise BoundError("reads the bits of its input as another type")
    return _of_floats(call.output, bound)


# of the second argument only the shape or the type counts
rule("view_as reshape_as type_as")(lambda call: _of_floats(call.output, constant(call.bounds[0])))
rule("expand expand_as repeat tile broadcast_to")(lambda call: call.broadcast(0, "input"))


def _of_floats(output: Any, bound: float) -> Any:
    """The bound for a tensor, or for each of several."""
    if isinstance(output, tuple | list):
        return tuple(_of_floats(part, bound) for part in output)
    if not output.is_floating_point():
        raise BoundError("rounds to whole numbers")
    return bound


@rule("repeat_interleave")
def _(call: FunctionCall) -> float:
    _, bound = call.only_input()
    repeats = torch.as_tensor(call.argument(1, "repeats"))
    return bound * int(repeats.max()) ** (1 / call.ord) if repeats.numel() else 0.0


@rule("getitem")
def _(call: FunctionCall) -> Any:
    if isinstance(call.bounds[0], tuple | list | Mapping):
        return call.bounds[0][call.args[1]]
    x, bound = call.only_input()
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if all(isinstance(i, int | slice | None | type(...)) for i in index):
        return bound
    count = copies(lambda places: places.view(x.shape).to(x.device)[call.args[1]].cpu(), tuple(x.shape))
    return bound * count ** (1 / call.ord)


@rule("index_select gather take take_along_dim")
def _(call: FunctionCall) -> float:
    x, bound = call.only_input()
    function = getattr(torch, call.function)
    settings = {k: v for k, v in call.kwargs.items() if k != "input"}

    def picked(places: Tensor) -> Tensor:
        return function(places.view(x.shape).to(x.device), *call.args[1:], **settings).cpu()

    return bound * copies(picked, tuple(x.shape)) ** (1 / call.ord)


@rule("pad")
def _(call: FunctionCall) -> float:
    x, bound = call.only_input()
    mode, pads = call.argument(2, "mode", "constant"), call.argument(1, "pad")
    if mode == "constant":
        return bound
    count = copies(lambda places: F.pad(places.view(x.shape), pads, mode), tuple(x.shape))
    return bound * count ** (1 / call.ord)


# ---------------------------------------------------------------- arithmetic


@rule("add iadd sub isub subtract")
def _(call: FunctionCall) -> float:
    alpha = call.argument(2, "alpha", 1)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise BoundError("alpha is not a number")
    return math.fsum((call.broadcast(0, "input"), abs(alpha) * call.broadcast(1, "other")))


def scaled(call: FunctionCall, position: int, factor: Any, largest: Callable[[Tensor], Tensor]) -> float:
    """The bound of an argument times the largest absolute value of a fixed factor."""
    fixed = torch.as_tensor(factor, dtype=torch.float64).detach()
    scale = float(largest(fixed.abs())) if fixed.numel() else 0.0
    if not math.isfinite(scale):
        raise BoundError("the constant that it scales by is not finite")
    return call.broadcast(position, ("input", "other")[position]) * scale


@rule("mul imul multiply")
def _(call: FunctionCall) -> float:
    (a, of_a), (b, of_b) = call.operand(0, "input"), call.operand(1, "other")
    if depends(of_a) and depends(of_b):
        raise BoundError(OF_TWO)
    return scaled(call, 0, b, Tensor.max) if depends(of_a) else scaled(call, 1, a, Tensor.max)


@rule("div truediv itruediv divide true_divide")
def _(call: FunctionCall) -> float:
    divisor, bound = call.operand(1, "other")
    if depends(bound) or call.kwargs.get("rounding_mode"):
        raise BoundError("division by what depends on the input, or with rounding, has no Lipschitz constant")
    return scaled(call, 0, divisor, lambda t: (1 / t).max())


# ---------------------------------------------------------------- coordinate by coordinate, maxima and means


@rule(
    "neg negative positive pos abs absolute sin cos atan arctan asinh arcsinh clamp clip clamp_min clamp_max"
)
def _(call: FunctionCall) -> float:
    call.only_input()
    return call.broadcast(0, "input")


rule("erf")(lambda call: call.only_input()[1] * 1.1283791670955126)  # 2/√π, rounded up


# |max(a, b) - max(a', b')| <= max(|a - a'|, |b - b'|), coordinate by coordinate
@rule("maximum minimum")
def _(call: FunctionCall) -> float:
    return p_norm([call.broadcast(0, "input"), call.broadcast(1, "other")], call.ord)


@rule("where masked_fill")
def _(call: FunctionCall) -> float:
    """Each entry is one of the two, by a fixed mask."""
    is_mask = [isinstance(a, Tensor) and a.dtype == torch.bool for a in call.args]
    if len(call.args) != 3 or is_mask.count(True) != 1 or depends(call.bounds[is_mask.index(True)]):
        raise BoundError("picks by the values themselves, or not by one fixed mask")
    return p_norm([call.broadcast(i, "") for i in range(3) if not is_mask[i]], call.ord)


def reduced(call: FunctionCall, exponent: float) -> float:
    """Times k^exponent, where k entries are reduced to one."""
    x, bound = call.only_input()
    return bound * (x.numel() / max(1, call.output.numel())) ** exponent


# |mean|^p <= k^{-p} k^{p-1} Σ |x_i|^p (Hölder), reached by equal entries: k^{-1/p}; the sum is k times the mean
rule("mean")(lambda call: reduced(call, -1 / call.ord))
rule("sum")(lambda call: reduced(call, 1 - 1 / call.ord))
# of disjoint groups, each changes by no more than its entry that changes most
rule("amax amin logsumexp")(lambda call: call.only_input()[1])


@rule("max min")
def _(call: FunctionCall) -> Any:
    if isinstance(call.argument(1, "other"), Tensor):
        return RULES["maximum"](call)
    _, bound = call.only_input()
    return (bound, BoundError("the place of a maximum jumps")) if isinstance(call.output, tuple) else bound


# the i-th largest entries of x and y differ by no more, in ℓp, than x and y: Σ |x_(i) - y_(i)|^p <= Σ |x_i - y_i|^p
@rule("sort msort topk kthvalue median")
def _(call: FunctionCall) -> Any:
    _, bound = call.only_input()
    if call.function == "topk" and not call.argument(4, "sorted", True):
        raise BoundError("in no order (sorted=False)")
    if not isinstance(call.output, tuple):
        return bound
    return bound, BoundError("the places of sorted entries jump")


@rule("cat concat concatenate stack hstack vstack dstack")
def _(call: FunctionCall) -> float:
    _, bounds = call.operand(0, "tensors")
    return p_norm([constant(b) for b in bounds], call.ord)
