"""Rules for Lipschitz bounds: the bound of a function's result from the bounds of its arguments."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opnorm.errors import BoundError
from opnorm.norms.network.interpreter import FunctionCall, Rule, constant, depends, p_norm
from opnorm.norms.nonlinear import copies

__all__ = ["RULES", "rule"]

RULES: dict[Any, Rule] = {}
"""By function, and by name for methods of tensors."""


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


refuse("index_select gather take take_along_dim", "picks by an index; write x[:, index] for a fixed one")
refuse(
    "normalize cosine_similarity rsqrt sqrt log exp pow square reciprocal bmm einsum",
    "has no Lipschitz constant on all inputs, or none that is known here",
)
refuse(
    "round floor ceil sign argmax argmin gt lt ge le eq ne topk sort",
    "jumps, or picks by the values themselves",
)

# ---------------------------------------------------------------- shapes and types


@rule(
    "size dim ndimension numel nelement is_floating_point is_complex stride get_device element_size is_contiguous "
    "zeros_like ones_like empty_like full_like new_zeros new_ones new_full new_empty new_tensor"
)
def _(call: FunctionCall) -> None:
    if depends(call.bounds[1:]):
        raise BoundError("something else than its first argument depends on the input")


@rule("getattr")
def _(call: FunctionCall) -> Any:
    name = call.args[1]
    if name in [
        "shape",
        "dtype",
        "device",
        "ndim",
        "is_cuda",
        "requires_grad",
        "layout",
        "is_quantized",
        "is_meta",
    ]:
        return None
    if isinstance(call.bounds[0], tuple) and name == "values":
        return call.bounds[0][0]
    if name in ("T", "mT"):
        return constant(call.bounds[0])
    raise BoundError(f"the attribute {name!r} is not known")


RULES[getattr] = RULES["getattr"]

# ---------------------------------------------------------------- entries that move or are copied


def repetition(x: Any, output: Tensor, p: float) -> float:
    """m^(1/p) for a tensor that was broadcast m times."""
    if not isinstance(x, Tensor) or x.numel() in (0, output.numel()):
        return 1.0
    return (output.numel() / x.numel()) ** (1 / p)


def terms(call: FunctionCall, positions: tuple[int, ...] = (0, 1)) -> list[float]:
    """The bounds of arguments, broadcast to the output."""
    return [constant(call.bounds[i]) * repetition(call.args[i], call.output, call.ord) for i in positions]


@rule(
    "view reshape flatten unflatten ravel transpose permute t swapaxes swapdims movedim moveaxis squeeze unsqueeze "
    "contiguous clone detach narrow select chunk split tensor_split unbind flip fliplr flipud roll rot90 float double "
    "half bfloat16 to type cpu cuda pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle diagonal "
    "hsplit vsplit view_as reshape_as type_as requires_grad_"
)
def _(call: FunctionCall) -> Any:
    """Each output is another input: ℓp norms do not grow."""
    bound = constant(call.bounds[0])  # the other arguments give shapes only
    values = (*call.args, *call.kwargs.values())
    if call.function == "view" and any(isinstance(a, torch.dtype) for a in values):
        raise BoundError("reads the bits of numbers as others")

    def bound_of(output: Any) -> Any:
        if isinstance(output, tuple | list):
            return tuple(map(bound_of, output))
        if not output.is_floating_point():
            raise BoundError("rounds to whole numbers")
        return bound

    return bound_of(call.output)


rule("expand expand_as repeat tile broadcast_to repeat_interleave")(lambda call: terms(call, (0,))[0])


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


@rule("pad")
def _(call: FunctionCall) -> float:
    x, bound = call.only_input()
    mode, pads = call.argument(2, "mode", "constant"), call.argument(1, "pad")
    if mode == "constant":
        return bound
    return bound * copies(lambda places: F.pad(places.view(x.shape), pads, mode), tuple(x.shape)) ** (
        1 / call.ord
    )


# ---------------------------------------------------------------- arithmetic


@rule("add iadd sub isub subtract")
def _(call: FunctionCall) -> float:
    if len(call.args) < 2:
        raise BoundError("two arguments are expected")
    alpha = call.kwargs.get("alpha", 1)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise BoundError("alpha is not a number")
    first, second = terms(call)
    return math.fsum((first, abs(alpha) * second))


def scaled(call: FunctionCall, position: int, factor: Any, largest: Callable[[Tensor], Tensor]) -> float:
    """The bound of an argument times the largest absolute value of a fixed factor."""
    fixed = (
        factor.detach().double()
        if isinstance(factor, Tensor)
        else torch.tensor(float(factor), dtype=torch.float64)
    )
    scale = float(largest(fixed.abs())) if fixed.numel() else 0.0
    if not math.isfinite(scale):
        raise BoundError("the constant that it scales by is not finite")
    return terms(call, (position,))[0] * scale


@rule("mul imul multiply")
def _(call: FunctionCall) -> float:
    moving = [depends(b) for b in call.bounds[:2]]
    if all(moving) or len(call.args) != 2:
        raise BoundError(
            "a product of two values that both depend on the input has no Lipschitz constant by itself"
        )
    position = moving.index(True)
    return scaled(call, position, call.args[1 - position], Tensor.max)


@rule("div truediv itruediv divide true_divide")
def _(call: FunctionCall) -> float:
    if len(call.args) != 2 or depends(call.bounds[1]) or call.kwargs.get("rounding_mode"):
        raise BoundError("division by what depends on the input, or with rounding, has no Lipschitz constant")
    return scaled(call, 0, call.args[1], lambda t: (1 / t).max())


# ---------------------------------------------------------------- coordinate by coordinate, maxima and means


rule(
    "neg negative positive pos abs absolute sin cos atan arctan asinh arcsinh clamp clip clamp_min clamp_max"
)(lambda call: call.only_input()[1] * repetition(call.args[0], call.output, call.ord))
rule("erf")(lambda call: call.only_input()[1] * 1.1283791670955126)  # 2/√π, rounded up
# |max(a, b) - max(a', b')| <= max(|a - a'|, |b - b'|), coordinate by coordinate
rule("maximum minimum")(lambda call: p_norm(terms(call), call.ord))


@rule("where masked_fill")
def _(call: FunctionCall) -> float:
    """Each entry is one of the two, by a fixed mask."""
    mask = 0 if call.function == "where" else 1
    if len(call.args) != 3 or depends(call.bounds[mask]):
        raise BoundError("picks by the values themselves")
    return p_norm(terms(call, (1, 2) if mask == 0 else (0, 2)), call.ord)


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
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):
        return RULES["maximum"](call)
    bound = call.only_input()[1]
    return (bound, BoundError("the place of a maximum jumps")) if isinstance(call.output, tuple) else bound


@rule("cat concat concatenate stack hstack vstack dstack")
def _(call: FunctionCall) -> float:
    tensors = call.bounds[0] if call.bounds else call.kwarg_bounds["tensors"]
    return p_norm([constant(b) for b in tensors], call.ord)
