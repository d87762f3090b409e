"""Values that are linear on either side of a hyperplane, picked by its sign: Householder activations, MaxMin by a mask, |x|.

A forward that writes ``torch.where(s > 0, a, b)``, or ``a * (s > 0) + b * (s <= 0)``, picks by the values themselves, which
may jump. Where s, a and b are linear, entry by entry, in values x_1, ..., x_r of the same shape, and a - b is a multiple of
s, it does not: the function is continuous and piecewise linear, so that the norm of its Jacobian on either side bounds it.

Several such values side by side have at each entry a matrix M (k x r) on each side, and the bound max ‖M‖_p times that of
x_1, ..., x_r side by side. A Householder reflection where v·x > 0, and the identity elsewhere, has the constant 1.

Source: Singla, Singla & Feizi 2022, Theorem 2 (Householder activations).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from opnorm.norms.network.pointwise import SAME
from opnorm.norms.network.sorting import Made
from opnorm.norms.network.walk import operation_of

__all__ = ["PICKS", "by_sign"]

ADD, SUB = frozenset(("add", "iadd")), frozenset(("sub", "isub", "subtract"))
MUL, DIV = frozenset(("mul", "imul", "multiply")), frozenset(("div", "divide", "true_divide", "truediv"))
SIDES = {"gt": 1, "ge": 1, "greater": 1, "greater_equal": 1, "lt": -1, "le": -1, "less": -1, "less_equal": -1}
NOT = frozenset(("logical_not", "invert", "bitwise_not"))
LARGER, SMALLER = frozenset(("max", "maximum")), frozenset(("min", "minimum"))
TYPES = SAME | {"type", "type_as"}
PICKS = frozenset(("where",)) | ADD | SUB | MUL
"""Operations whose result may be continuous where those of its parts jump."""
TOLERANCE = 1e-6  # of the slopes: sines and cosines that are computed in float32
MAX_DEPTH = 64


class _Linear(NamedTuple):
    """Σ slope · root + constant, entry by entry."""

    slopes: Mapping[fx.Node, Tensor]
    constant: Tensor

    def plus(self, other: "_Linear", factor: float = 1.0) -> "_Linear":
        roots = dict.fromkeys((*self.slopes, *other.slopes))
        zero = torch.zeros((), dtype=torch.float64)
        slopes = {n: self.slopes.get(n, zero) + factor * other.slopes.get(n, zero) for n in roots}
        return _Linear(slopes, self.constant + factor * other.constant)

    def times(self, by: Tensor) -> "_Linear":
        return _Linear({n: s * by for n, s in self.slopes.items()}, self.constant * by)

    def rows(self, roots: Sequence[fx.Node], shape: torch.Size) -> Tensor:
        """The slopes and the constant of every entry, (entries, r + 1)."""
        zero = torch.zeros((), dtype=torch.float64)
        columns = [*(self.slopes.get(n, zero) for n in roots), self.constant]
        return torch.stack([c.expand(shape) for c in columns], -1).flatten(0, -2)


class _Picked(NamedTuple):
    """One linear function where the hyperplane's is positive, another one where it is negative."""

    positive: _Linear
    negative: _Linear
    side: _Linear | None  # None: both are the same


def by_sign(
    parts: Sequence[fx.Node],
    made: Mapping[fx.Node, Made],
    constants: Mapping[fx.Node, tuple[Any, int]],
    written: Collection[fx.Node],
    bound: Callable[[Sequence[fx.Node]], float],
    ord: float,
) -> float | None:
    """A bound of values of the same shape side by side, or None where they are no such functions or may jump.

    Args:
        parts: the values.
        made: how each node was made.
        constants: the values of nodes that do not depend on the input, with the versions of those that are tensors.
        written: nodes whose values were written to after they were made.
        bound: of values side by side.
        ord: p.
    """
    shapes = {made[n].shape for n in parts}
    if len(shapes) != 1:
        return None
    shape = torch.Size(shapes.pop())
    reader = _Reader(made, constants, written, shape)
    try:
        picked = [reader.of(n) for n in parts]
    except _Unknown:
        return None
    sides = [p.side for p in picked if p.side is not None]
    roots = list(dict.fromkeys(n for p in picked for half in (p.positive, p.negative) for n in half.slopes))
    if not sides or not roots or not all(map(reader.is_continuous, picked)):
        return None
    try:
        aligned = [reader.aligned(p, sides[0]) for p in picked]
    except _Unknown:
        return None
    largest = 0.0
    for half in ("positive", "negative"):
        M = torch.stack([getattr(p, half).rows(roots, shape)[:, :-1] for p in aligned], 1)
        M = M.flatten(1).unique(dim=0).unflatten(1, M.shape[1:])
        largest = max(largest, float(torch.linalg.matrix_norm(M, ord).max()))
    return largest * bound(roots) * (1 + 1e-12)


class _Unknown(Exception):  # noqa: N818 - never seen outside
    """A value is none of these functions."""


class _Reader:
    """Reads what nodes compute, back to values of the same shape that are something else: the roots."""

    def __init__(
        self, made: Mapping[fx.Node, Made], constants: Mapping[fx.Node, tuple[Any, int]], written: Collection[fx.Node],
        shape: torch.Size,
    ) -> None:  # fmt: skip
        self.made, self.constants, self.written, self.shape = made, constants, written, shape
        self.known: dict[fx.Node, _Picked] = {}
        self.depth = 0

    def of(self, value: Any) -> _Picked:
        """The function of a node, or of a constant."""
        if isinstance(value, fx.Node) and (value in self.written or self.depth > MAX_DEPTH):
            raise _Unknown
        if not isinstance(value, fx.Node) or value in self.constants:
            constant, version = self.constants[value] if isinstance(value, fx.Node) else (value, 0)
            changed = isinstance(constant, Tensor) and constant._version != version
            if not isinstance(constant, Tensor | int | float) or changed:
                raise _Unknown
            fixed = torch.as_tensor(constant).detach().cpu().double()
            if (
                not bool(fixed.isfinite().all())
                or torch.broadcast_shapes(fixed.shape, self.shape) != self.shape
            ):
                raise _Unknown
            linear = _Linear({}, fixed)
            return _Picked(linear, linear, None)
        if value not in self.known:
            self.depth += 1
            made = self._made(value)
            self.depth -= 1
            self.known[value] = self._root(value) if made is None else made
        return self.known[value]

    def _root(self, n: fx.Node) -> _Picked:
        if self.made[n].shape != self.shape or self.made[n].several:
            raise _Unknown
        one = _Linear({n: torch.ones((), dtype=torch.float64)}, torch.zeros((), dtype=torch.float64))
        return _Picked(one, one, None)

    def _made(self, n: fx.Node) -> _Picked | None:
        """By the operation; None where it is none of those that are read."""
        args, layer = n.args, n.op == "call_module"
        name = self.made[n].operation if layer else operation_of(n)
        if (
            n.op not in ("call_function", "call_method", "call_module")
            or not args
            or layer > (name == "relu")
        ):
            return None
        if n.kwargs.keys() - ({"inplace"} if name == "relu" else set()):  # what is written to is not read
            return None
        if name in TYPES or name == "float":
            return self.of(args[0]) if len(args) == 1 or name in ("to", "type", "type_as") else None
        if len(args) == 1:
            return self._of_one(name, args[0])
        if len(args) == 2:
            return self._of_two(name, *args)
        if name != "where" or len(args) != 3:
            return None
        mask, first, second = map(self.of, args)
        return self._sum(self._product(mask, first), self._product(self._complement(mask), second))

    def _of_one(self, name: str, arg: Any) -> _Picked | None:
        if name in ("relu", "abs", "absolute"):
            return self._kink(self.of(arg), 0.0 if name == "relu" else -1.0)
        if name in ("neg", "negative"):
            return self._times(self.of(arg), torch.tensor(-1.0, dtype=torch.float64))
        return self._complement(self.of(arg)) if name in NOT else None

    def _of_two(self, name: str, a: Any, b: Any) -> _Picked | None:
        if name not in ADD | SUB | MUL | DIV | LARGER | SMALLER | SIDES.keys():
            return None
        first, second = self.of(a), self.of(b)
        if name in ADD | SUB:
            return self._sum(first, second, 1.0 if name in ADD else -1.0)
        if name in MUL:
            return self._product(first, second)
        if name in DIV:
            return self._product(first, self._inverse(second))
        difference = self._sum(first, second, -1.0)
        if name in LARGER | SMALLER:
            sign = 1.0 if name in LARGER else -1.0  # a + max(b - a, 0), a - max(a - b, 0)
            above = self._kink(self._times(difference, torch.tensor(-sign, dtype=torch.float64)), 0.0)
            return self._sum(first, above, sign)
        side = self._plain(difference)
        one, zero = (_Linear({}, torch.tensor(v, dtype=torch.float64)) for v in (1.0, 0.0))
        return _Picked(one, zero, side) if SIDES[name] > 0 else _Picked(zero, one, side)

    def _plain(self, p: _Picked) -> _Linear:
        """The function of one without sides."""
        if p.side is not None or not p.positive.slopes:
            raise _Unknown
        return p.positive

    def _kink(self, p: _Picked, left: float) -> _Picked:
        u = self._plain(p)
        return _Picked(u, u.times(torch.tensor(left, dtype=torch.float64)), u)

    def _times(self, p: _Picked, by: Tensor) -> _Picked:
        return _Picked(p.positive.times(by), p.negative.times(by), p.side)

    def _complement(self, mask: _Picked) -> _Picked:
        """1 - mask."""
        if mask.positive.slopes or mask.negative.slopes:
            raise _Unknown
        one = _Linear({}, torch.ones((), dtype=torch.float64))
        return _Picked(one.plus(mask.positive, -1.0), one.plus(mask.negative, -1.0), mask.side)

    def _inverse(self, p: _Picked) -> _Picked:
        if p.side is not None or p.positive.slopes or bool((p.positive.constant == 0).any()):
            raise _Unknown
        linear = _Linear({}, 1 / p.positive.constant)
        return _Picked(linear, linear, None)

    def _sum(self, a: _Picked, b: _Picked, factor: float = 1.0) -> _Picked:
        side = a.side or b.side
        a, b = (p if side is None else self.aligned(p, side) for p in (a, b))
        return _Picked(a.positive.plus(b.positive, factor), a.negative.plus(b.negative, factor), side)

    def _product(self, a: _Picked, b: _Picked) -> _Picked:
        """Of two functions of which on each side one is constant."""
        side = a.side or b.side
        a, b = (p if side is None else self.aligned(p, side) for p in (a, b))
        return _Picked(_times_constant(a.positive, b.positive), _times_constant(a.negative, b.negative), side)

    def aligned(self, p: _Picked, side: _Linear) -> _Picked:
        """The same function with its sides named by another multiple of the hyperplane's; _Unknown for another one."""
        if p.side is None or p.side is side:
            return p._replace(side=side)
        roots = list(dict.fromkeys((*side.slopes, *p.side.slopes)))
        own, other = p.side.rows(roots, self.shape), side.rows(roots, self.shape)
        factor = _multiple(own, other, own.abs())
        if factor is None or bool((factor == 0).any()):
            raise _Unknown
        same = (factor > 0).view(self.shape)
        if bool(same.all()):
            return p._replace(side=side)
        inside, outside = same.double(), (~same).double()
        positive = p.positive.times(inside).plus(p.negative.times(outside))
        return _Picked(positive, p.negative.times(inside).plus(p.positive.times(outside)), side)

    def is_continuous(self, p: _Picked) -> bool:
        """Whether both functions agree on the hyperplane, up to the rounding of their constants."""
        if p.side is None:
            return True
        roots = list(dict.fromkeys(n for part in p for n in part.slopes))  # type: ignore[union-attr]
        a, b, side = (part.rows(roots, self.shape) for part in p)  # type: ignore[union-attr]
        return _multiple(a - b, side, torch.maximum(a.abs(), b.abs())) is not None


def _times_constant(x: _Linear, y: _Linear) -> _Linear:
    if x.slopes and y.slopes:
        raise _Unknown
    return x.times(y.constant) if x.slopes else y.times(x.constant)


def _multiple(rows: Tensor, of: Tensor, sizes: Tensor) -> Tensor | None:
    """The factors f with rows = f · of, (entries,); None where there are none.

    The slopes may be off by a tolerance times the largest one of ``sizes``, the constant, last, times its own size.
    """
    size = of.abs().amax(1, keepdim=True)
    if not bool((size > 0).all()):
        return None
    unit = of / size
    factor = (rows * unit).sum(1, keepdim=True) / unit.square().sum(1, keepdim=True)
    allowed = torch.maximum(sizes, (factor * unit).abs())
    allowed[:, :-1] = allowed[:, :-1].amax(1, keepdim=True)
    off = (rows - factor * unit).abs() > TOLERANCE * allowed
    return None if bool(off.any()) else (factor / size)[:, 0]
