"""Normalization that a forward writes out, found in the graph: x / sqrt(mean(x²) + eps), and x minus its mean.

A product of two values that depend on the input has no constant by itself; this one has that of the layer it writes out.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from torch import fx

from opnorm.norms.network.rules import FunctionCall
from opnorm.norms.network.walk import operation_of
from opnorm.norms.normalization_constants import normalizing

__all__ = ["Quotient", "normalization", "quotient"]

MUL, DIV, SUB = ("mul", "multiply"), ("div", "divide", "true_divide", "truediv"), ("sub", "subtract")


def normalization(
    n: fx.Node, call: FunctionCall, bound_of: Callable[[Any], float], written: Collection[fx.Node]
) -> float | None:
    """The bound at a node that divides a value by its root mean square, or subtracts its mean; None at any other.

        y = x / sqrt(mean(x²) + eps):  as for RMSNorm, and as for LayerNorm where x is another value minus its mean;
        y = x - mean(x):               J = I - 1 1ᵀ / n:  ‖J‖_2 = 1,  ‖J‖_1 = ‖J‖_∞ = 2 (1 - 1/n).

    Args:
        n: of the graph.
        call: with its values.
        bound_of: the bound of an argument, or BoundError.
        written: nodes whose values were written to after they were computed, which are not what they seem.
    """
    graph = _Graph(written)
    if (mean := graph.arguments(n, SUB)) and len(mean) == 2 and not n.kwargs:
        x, axes = mean[0], graph.mean_of(mean[1])
        if axes is not None and graph.is_same(axes[0], x):
            size = call.args[0].numel() / max(1, call.args[1].numel())
            return bound_of(x) * (1.0 if call.ord == 2 else 2 * (1 - 1 / size))
    found = quotient(n, written)
    if found is None:
        return None
    size = call.output.numel() // max(1, min(a.numel() for a in call.args))
    before = graph.centered(found.x, found.axes)
    x = found.x if before is None else before
    return bound_of(x) * normalizing(found.eps, None, call.ord, "it", size, before is not None)


class Quotient(NamedTuple):
    """A value divided by its root mean square: x / sqrt(mean(x²) + eps).

    Attributes:
        x: the value.
        size: the node of sqrt(mean(x²) + eps), or of its inverse.
        inverse: whether it is the inverse.
        eps: a number.
        axes: of the mean.
    """

    x: fx.Node
    size: fx.Node
    inverse: bool
    eps: float
    axes: Any


def quotient(n: fx.Node, written: Collection[fx.Node]) -> Quotient | None:
    """What a node divides by its root mean square; None at any other node."""
    graph = _Graph(written)
    for x, other, inverse in graph.quotients(n):
        found = graph.root_mean_square(other, x, inverse)
        if found is not None:
            return Quotient(x, other, inverse, *found)
    return None


class _Graph:
    """What nodes of a graph compute, unless they were written to."""

    def __init__(self, written: Collection[fx.Node]) -> None:
        self.written = written

    def arguments(self, n: Any, names: Collection[str]) -> tuple[Any, ...] | None:
        """Of a call of one of the functions or methods; None for anything else."""
        if not isinstance(n, fx.Node) or n.op not in ("call_function", "call_method") or n in self.written:
            return None
        name = operation_of(n)
        return n.args if name in names and n.args and "out" not in n.kwargs else None

    def quotients(self, n: fx.Node) -> list[tuple[Any, Any, bool]]:
        """(x, factor, True) of a product, (x, divisor, False) of a quotient."""
        if n.kwargs or len(n.args) != 2:
            return []
        a, b = n.args
        if self.arguments(n, DIV):
            return [(a, b, False)]
        return [(a, b, True), (b, a, True)] if self.arguments(n, MUL) else []

    def root_mean_square(self, s: Any, x: Any, inverse: bool) -> tuple[float, Any] | None:
        """The eps of s = (mean(x²) + eps)^(-1/2), or ^(1/2), and the axes of the mean; None of any other."""
        if not isinstance(s, fx.Node) or s.kwargs:
            return None
        root, power = (("rsqrt",), -0.5) if inverse else (("sqrt",), 0.5)
        args = self.arguments(s, (*root, "pow"))
        if args:
            inside = args[0] if args[1:] in ((), (power,)) else None
        elif inverse and (args := self.arguments(s, ("reciprocal",))):
            return self.root_mean_square(args[0], x, False)
        elif inverse and (args := self.arguments(s, DIV)) and args[0] == 1:
            return self.root_mean_square(args[1], x, False)
        else:
            return None
        args = self.arguments(inside, ("add",))
        if inside is None or not args or len(args) != 2 or inside.kwargs:
            return None
        for square, eps in (args, args[::-1]):
            mean = self.mean_of(square)
            if (
                mean is not None
                and isinstance(eps, int | float)
                and not isinstance(eps, bool)
                and self.is_square(mean[0], x)
            ):
                return float(eps), mean[1]
        return None

    def centered(self, x: Any, axes: Any) -> fx.Node | None:
        """The value that x is, minus its mean along these axes; None where it is not."""
        args = self.arguments(x, SUB)
        if not args or len(args) != 2 or x.kwargs:
            return None
        mean = self.mean_of(args[1])
        is_own = mean is not None and mean[1] == axes and self.is_same(mean[0], args[0])
        return args[0] if is_own else None

    def mean_of(self, n: Any) -> tuple[Any, Any] | None:
        """(x, axes) of mean(x, axes, keepdim=True)."""
        args = self.arguments(n, ("mean",))
        if not args or set(n.kwargs) - {"dim", "keepdim"}:
            return None
        axes = args[1] if len(args) > 1 else n.kwargs.get("dim")
        keep = args[2] if len(args) > 2 else n.kwargs.get("keepdim", False)
        return (args[0], axes) if axes is not None and keep is True and len(args) <= 3 else None

    def is_square(self, n: Any, x: fx.Node) -> bool:
        """Whether n = x², of floating-point numbers."""
        args = self.arguments(n, ("pow", "square", *MUL))
        if not args or n.kwargs:
            return False
        name = operation_of(n)
        powers = {"pow": (2,), "square": ()}
        by_power = args[1:] == powers[name] if name in powers else self.is_same(args[1], x)
        return self.is_same(args[0], x) and by_power

    def is_same(self, a: Any, b: Any) -> bool:
        """Whether two nodes are one, or subtract the same mean from the same value."""
        if a is b:
            return isinstance(a, fx.Node) and a not in self.written
        first, second = self.arguments(a, SUB), self.arguments(b, SUB)
        if first and second and len(first) == len(second) == 2 and not a.kwargs and not b.kwargs:
            return self.is_same(first[0], second[0]) and self.is_same_mean(first[1], second[1])
        return False

    def is_same_mean(self, a: Any, b: Any) -> bool:
        """Whether two nodes are one, or the mean of the same value along the same axes."""
        first, second = self.mean_of(a), self.mean_of(b)
        if first is None or second is None:
            return a is b and self.is_same(a, b)
        return first[1] == second[1] and self.is_same(first[0], second[0])
