"""Rules for functions that place a value into a part of another one, at places that do not depend on the input.

The entries of the result are those of the one, where they are left, or copies of those of the other: its bound is the ℓp
norm of the two bounds, with m copies of an entry counting m^(1/p).
"""

import math
from typing import Any

import torch
from torch import Tensor

from opnorm.errors import BoundError
from opnorm.norms.network.rules import RULES, FunctionCall, constant, p_norm, rule
from opnorm.norms.network.shared_memory import most_copies, places_of, same_memory, storage_of
from opnorm.norms.network.trace import leaves
from opnorm.norms.nonlinear import copies

__all__ = ["RULES"]

SOURCE = {
    "slice_scatter": (1, "src"),
    "select_scatter": (1, "src"),
    "diagonal_scatter": (1, "src"),
    "index_put": (2, "values"),
    "masked_scatter": (2, "source"),
    "index_copy": (3, "source"),
    "index_add": (3, "source"),
    "index_fill": (3, "value"),
    "scatter": (3, "src"),
    "scatter_add": (3, "src"),
}
"""The position and the name of the value that is placed."""


@rule(" ".join(SOURCE))
def _(call: FunctionCall) -> float:
    name = call.function.removesuffix("_")
    position, argument = SOURCE[name]
    if len(call.args) <= position and argument not in call.kwargs:
        argument = "value"  # of scatter, a number
    (base, of_base), (source, of_source) = call.operand(0, "input"), call.operand(position, argument)
    settings = {k: v for k, v in call.kwargs.items() if k not in ("input", argument, "value", "alpha")}
    own = (*call.bounds[1:position], *call.bounds[position + 1 :])
    if _moves((own, {k: call.kwarg_bounds[k] for k in settings})):
        raise BoundError("the places depend on the input")
    if settings.get("reduce") is not None:
        raise BoundError("it reduces entries into the ones before")
    if not call.output.is_floating_point():
        raise BoundError("rounds to whole numbers")
    if not isinstance(source, Tensor):
        return constant(of_base)

    def placed(numbers: Tensor) -> Tensor:
        """By numbers in the place of the source, onto zeros."""
        onto = torch.zeros(base.shape, dtype=torch.float64, device=base.device)
        arguments, named = list(call.args[1:]), dict(settings)
        numbers = numbers.view(source.shape).to(base.device)
        if len(call.args) > position:
            arguments[position - 1] = numbers
        else:
            named[argument] = numbers
        return getattr(onto, name)(*arguments, **named).cpu()

    if name in ("index_add", "scatter_add") or call.argument(3 if name == "index_put" else 99, "accumulate"):
        together = placed(torch.ones(source.shape, dtype=torch.float64))
        times = math.ceil(float(together.sum()) / max(1, source.numel())) ** (1 / call.ord)
        times *= float(together.max()) ** (1 - 1 / call.ord) if together.numel() else 0.0  # Riesz and Thorin
        return math.fsum(
            (constant(of_base), abs(call.argument(99, "alpha", 1)) * times * constant(of_source))
        )
    count = copies(placed, tuple(source.shape))
    return p_norm([constant(of_base), constant(of_source) * count ** (1 / call.ord)], call.ord)


def _moves(bounds: Any) -> bool:
    """Whether places change with the input: those with the constant 0, such as the shape of a value gives, do not."""
    return any(b is not None and b != 0.0 for b in leaves(bounds))


@rule("copy")
def _(call: FunctionCall) -> float:
    if not call.output.is_floating_point():
        raise BoundError("rounds to whole numbers")
    return call.broadcast(1, "src")


@rule("fill")
def _(call: FunctionCall) -> float:
    return call.broadcast(1, "value")


rule("zero")(lambda call: 0.0)


@rule("setitem")
def _(call: FunctionCall) -> float:
    """The bound of the part that is written."""
    (whole, part, value), bounds = call.args, call.bounds
    if _moves(bounds[1]):
        raise BoundError("the places depend on the input")
    if not whole.is_floating_point():
        raise BoundError("rounds to whole numbers")
    written = whole[part]
    if not isinstance(value, Tensor) or same_memory(value, written):
        return 0.0
    together = storage_of(value) == storage_of(whole)
    if together and bool(torch.isin(places_of(value), places_of(whole)[part].contiguous()).any()):
        raise BoundError("copies a part of a value over another part that it shares entries with")
    return constant(bounds[2]) * (written.numel() / max(1, value.numel())) ** (1 / call.ord)


@rule("as_strided")
def _(call: FunctionCall) -> float:
    x, bound = call.only_input()
    read = places_of(call.output)
    if not bool(torch.isin(read, places_of(x)).all()):
        raise BoundError("reads memory beyond its input")
    return bound * most_copies(read) ** (1 / call.ord)
