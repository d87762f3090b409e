"""Functions of one variable that a forward writes out, such as ``x * torch.sigmoid(1.702 * x)``: lines as of activations.

No rule bounds a product of two values that depend on the input; but it is f(x), entry by entry, with f: R -> R, and the
lines of :mod:`opnorm.certificates.activation_lines` are for any f with bounded slopes. What is computed has the rounding of
every operation on the way: with m_k at least the k-th value and e_k its error, u the unit of rounding,

    a + b:  e_a + e_b + u (m + e),      a b:  m_a e_b + m_b e_a + e_a e_b + u (m + e),
    φ(a):   L e_a + 8 u (m_φ + L (1 + m_a)),  L = sup |φ'|, as for an activation alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opnorm.certificates.activation_lines import ERROR, LARGEST, Curve
from opnorm.certificates.affine import TINY, UNIT
from opnorm.errors import BoundError
from opnorm.norms.network.one_variable import IDENTITY, Function, largest_slope
from opnorm.norms.network.pointwise import Pointwise, Start, TooLong, pointwise

__all__ = ["Expression", "WrittenOut", "expression_of"]

ADD, SUB = frozenset(("add", "iadd")), frozenset(("sub", "isub", "subtract"))
MUL, DIV = (
    frozenset(("mul", "imul", "multiply")),
    frozenset(("div", "truediv", "itruediv", "divide", "true_divide")),
)
NEG = frozenset(("neg", "negative"))
CAPS = {"sigmoid": 1.0, "tanh": 1.0, "erf": 1.0, "sin": 1.0, "cos": 1.0, "atan": 1.6}
"""Bounds of functions, by the last step."""
ROOM = 1e37  # larger values may overflow in float32


@dataclass(frozen=True, eq=False)
class Expression:
    """A function of one variable as the operations that compute it.

    Attributes:
        kind: "x", "number", "add", "mul" or "call".
        parts: the expressions that it takes.
        number: the number.
        function: what a call computes of its part, as a function of one variable.
        run: computes it, in float64.
    """

    kind: str
    parts: tuple["Expression", ...] = ()
    number: float = 0.0
    function: Function = IDENTITY
    run: Callable[[Tensor], Tensor] | None = None

    def values(self, x: Tensor) -> Tensor:
        """f(x), entry by entry, in float64."""
        if self.kind == "x":
            return x
        if self.kind == "number":
            return torch.full_like(x, self.number)
        given = [part.values(x) for part in self.parts]
        if self.kind == "call":
            assert self.run is not None, "a call has a function"
            return self.run(given[0].clone())
        return given[0] + given[1] if self.kind == "add" else given[0] * given[1]

    def size_and_error(self, size: Tensor, unit: float) -> tuple[Tensor, Tensor]:
        """Bounds on |f(x)| and on the error of what is computed, for |x| up to ``size``; infinite where it may overflow."""
        if self.kind == "x":
            return size, torch.zeros_like(size)
        if self.kind == "number":
            number = torch.full_like(size, abs(self.number))
            return number, unit * number
        given = [part.size_and_error(size, unit) for part in self.parts]
        if self.kind == "call":
            most, error = self._of_call(*given[0], unit)
        else:
            (a, of_a), (b, of_b) = given
            if self.kind == "add":
                most, error = a + b, of_a + of_b
            else:
                most, error = a * b, a * of_b + b * of_a + of_a * of_b
            error = error + unit * (most + error)
        return most, torch.where((most < ROOM) & (error < ROOM), 1.01 * error + TINY, torch.inf)

    def _of_call(self, a: Tensor, of_a: Tensor, unit: float) -> tuple[Tensor, Tensor]:
        name, *arguments = self.function[-1]
        if name == "power" and len(self.function) == 2:
            n = int(arguments[1])
            most, moved = a**n, (a + of_a) ** n
            return most, moved - most + 4 * n * unit * moved
        assert self.run is not None, "a call has a function"
        steep = largest_slope(self.function)
        most = self.run(torch.zeros_like(a)).abs() + steep * a
        cap = max(map(abs, arguments[1:])) if name == "clamp" else CAPS.get(name, torch.inf)
        most = most.clamp(max=cap)
        own = ERROR * unit * (most + steep * (1 + a))
        return most, (steep * of_a).clamp(max=2 * cap) + own

    def slopes(self) -> list[float]:
        """The steepest slope of each function that is called; infinite where there is none."""
        own = [] if self.kind != "call" or self._is_power else [largest_slope(self.function)]
        return [*own, *(s for part in self.parts for s in part.slopes())]

    @property
    def _is_power(self) -> bool:
        return len(self.function) == 2 and self.function[-1][0] == "power"


class WrittenOut(Curve):
    """Lines for an expression."""

    def __init__(self, expression: Expression, function: Function, out_shape: tuple[int, ...]) -> None:
        super().__init__(expression.values, function, out_shape)
        self.expression = expression

    def check(self) -> None:
        """BoundError unless all slopes are bounded."""
        if max([largest_slope(self.function), *self.expression.slopes()]) == float("inf"):
            raise BoundError("a function of one variable whose slope has no bound")

    def _rounding(self, low: Tensor, high: Tensor, unit: float = UNIT) -> Tensor:
        size = torch.maximum(low.abs(), high.abs())
        return torch.where(size < LARGEST, self.expression.size_and_error(size, unit)[1], torch.inf)


def expression_of(
    operation: str,
    layer: nn.Module | None,
    operands: Sequence[Any],
    settings: dict[str, Any],
    run: Callable[[Tensor], Tensor],
) -> Expression | None:
    """The expression of one operation, or None where it is none of those that are known.

    Args:
        operation: its name.
        layer: the activation that does it, instead.
        operands: its arguments; those that depend on the input as expressions.
        settings: its named arguments.
        run: the operation on another value in the place of its only argument that depends on the input.
    """
    name = operation.removesuffix("_") if not operation.endswith("__") else operation
    depending = [x for x in operands if isinstance(x, Expression)]
    if layer is None and name in ADD | SUB | MUL | DIV | NEG:
        return None if settings else _arithmetic(name, operands)
    if len(depending) != 1 or operands[0] is not depending[0]:
        return None
    start = Pointwise(Start(1.0, ()), IDENTITY)
    try:
        form = pointwise(operation, layer, [start, *operands[1:]], settings)
    except TooLong:
        return None
    if form is None or start.start.constants:
        return None
    if form.function == IDENTITY:
        return Expression("mul", (depending[0], Expression("number", number=1.0)))
    return Expression("call", (depending[0],), function=form.function, run=run)


def _arithmetic(name: str, operands: Sequence[Any]) -> Expression | None:
    parts = [x if isinstance(x, Expression) else _number(x) for x in operands]
    if None in parts or len(parts) != (1 if name in NEG else 2):
        return None
    minus = Expression("number", number=-1.0)
    a, *rest = (p for p in parts if p is not None)
    if name in NEG:
        return Expression("mul", (a, minus))
    (b,) = rest
    if name in ADD | MUL:
        return Expression("add" if name in ADD else "mul", (a, b))
    if name in SUB:
        return Expression("add", (a, Expression("mul", (b, minus))))
    if b.kind != "number" or not b.number:
        return None
    inverse = Expression("number", number=1 / b.number)
    return Expression("mul", (a, Expression("mul", (inverse, Expression("number", number=1.0)))))


def _number(value: Any) -> Expression | None:
    """A constant, if all its entries are one number."""
    if isinstance(value, Tensor):
        if not value.numel() or value.is_complex() or not bool((value == value.flatten()[0]).all()):
            return None
        value = float(value.flatten()[0])
    finite = isinstance(value, int | float) and abs(value) < ROOM
    return Expression("number", number=float(value)) if finite else None
