"""What is known of a value of a network on the ball ‖x - x₀‖_2 ≤ r around a point, and how a function changes it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from opnorm._core.lp import lp_norm
from opnorm.errors import BoundError

__all__ = ["ROUNDING", "Entries", "Known", "Operand", "combined", "divided", "largest", "size", "through"]

ROUNDING = 1e-10
"""Of one operation in float64, relative to its scale: 2^-53 times the terms of its longest sum, with a large margin."""
LEAST = 1e-290
"""Of a scale: times ``ROUNDING`` it is 4e7 times the smallest normal number, more than sums lose by underflow."""


@dataclass(frozen=True)
class Known:
    """Bounds for one value v(x) with the Jacobian J(x) = ∂v/∂x, v₀ being the value that was computed at x₀.

    Attributes:
        norm: ‖J(x₀)‖_2 ≤ norm.
        change: ‖J(x) - J(x₀)‖_2 ≤ change on the ball.
        most: ‖J(x)‖_2 ≤ most on the ball, as the product of the operations' own constants there.
        error: ‖v(x₀) - v₀‖_2 ≤ error, by rounding.
        scale: ‖v₀‖_2.
        own: the part of ``change`` that the operation itself adds: its derivative is another one elsewhere.
        parts: ``change`` by the kinds of the operations that add to it.
        weights: w in [0, 1], to be broadcast to v: the derivative of the operation changes by diag(w) E, where ‖E‖_2 times
            ``lipschitz`` of the argument is ``own``; None for ones.
        entries: how far each entry of v can move alone, where that is known.
    """

    norm: float
    change: float
    most: float
    error: float
    scale: float
    own: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)
    weights: Tensor | None = None
    entries: "Entries | None" = None

    @property
    def lipschitz(self) -> float:
        """‖J(x)‖_2 on the ball, and with it the Lipschitz constant there, as a ball is convex."""
        return min(self.norm + self.change, self.most)


@dataclass(frozen=True)
class Entries:
    """A bound for single entries of v(x), of the form ``|v_i(x) - v_i(x₀)| ≤ row ‖z(x) - z(x₀)‖_2`` for all i.

    So it is for v = W z + b with ``row`` the largest ℓ2 norm of a row of W, which may be far below ‖W‖_2.

    Attributes:
        row: the factor.
        known: of z.
        value: z(x₀).
    """

    row: float
    known: Known
    value: Tensor


@dataclass(frozen=True)
class Operand:
    """An argument of a function: its value, what is known of it, and the radius of the ball of inputs."""

    value: Tensor
    known: Known
    radius: float

    @property
    def moved(self) -> float:
        """‖v(x) - v(x₀)‖_2 on the ball, at most."""
        return self.known.lipschitz * self.radius

    @property
    def each(self) -> float:
        """|v_i(x) - v_i(x₀)| on the ball, at most, for every entry i."""
        e = self.known.entries
        return self.moved if e is None else min(self.moved, e.row * e.known.lipschitz * self.radius)

    @property
    def reach(self) -> float:
        """‖v(x) - v₀‖_2 on the ball, at most: also of the value that was computed."""
        return self.moved + self.known.error


def through(
    a: Operand, output: Tensor, near: float, ball: float, change: float, weights: Tensor | None = None
) -> Known:
    """f(v) of a function with bounds on its derivative.

        J_f(x) - J_f(x₀) = (Df(v) - Df(v(x₀))) J(x) + Df(v(x₀)) (J(x) - J(x₀)).

    Args:
        a: v.
        output: f(v₀).
        near: ‖Df‖_2 within ``error`` of v₀.
        ball: within ``reach``; infinite where f has none.
        change: of Df between v(x₀) and v(x).
        weights: as in :class:`Known`.
    """
    k = a.known
    if not math.isfinite(ball):
        raise BoundError("its derivative has no bound on the ball; a smaller radius may have one")
    near = min(near, ball)
    most, norm = ball * k.lipschitz, near * k.norm
    own = min(change, ball + near) * k.lipschitz if a.radius else 0.0
    error = ball * k.error + ROUNDING * (size(output) + ball * k.scale)
    return Known(norm, own + near * k.change, most, error, size(output), own, weights=weights)


def divided(known: Any, kind: str, given: Sequence[Known]) -> Any:
    """The same with its ``parts``, from those of the arguments; inherited ones share what is not the operation's own."""
    if isinstance(known, tuple):
        return tuple(divided(k, kind, given) for k in known)
    if not isinstance(known, Known) or not known.change:
        return known
    parts: dict[str, float] = {}
    for name, part in (pair for k in given for pair in k.parts.items()):
        parts[name] = parts.get(name, 0.0) + part
    total = math.fsum(parts.values())
    parts = {name: part / total * (known.change - known.own) for name, part in parts.items()} if total else {}
    if known.own:
        parts[kind] = parts.get(kind, 0.0) + known.own
    return replace(known, parts=parts)


def combined(
    rule: Callable[[Callable[[Known], float]], Any], output: Any, radius: float, linear: bool
) -> Any:
    """What is known of the result of a rule for bounds, which is homogeneous in them.

    A linear function has one derivative: the rule of ‖J‖ is that of J(x) - J(x₀), too. Of any other function with a
    Lipschitz constant, ‖Df‖_2 is at most that constant, and a difference of two derivatives at most twice as much.

    Args:
        rule: the bounds of the outputs, given a bound of each input.
        output: the value, or a tuple of values.
        radius: of the ball.
        linear: whether the function is linear in all that depends on the input.
    """
    norm, error = rule(lambda k: k.norm), rule(lambda k: k.error + ROUNDING * k.scale)
    change, most = rule(lambda k: k.change), rule(lambda k: k.lipschitz)

    def known(norm: Any, change: Any, most: Any, error: Any, output: Any) -> Any:
        """Of one tensor, or of each of several."""
        if isinstance(norm, tuple):
            return tuple(map(known, norm, change, most, error, output))
        if not isinstance(norm, float):
            return norm  # a constant, or the reason why there is no bound
        own = norm + most if radius and not linear else 0.0
        return Known(norm, own or change, most, error + ROUNDING * size(output), size(output), own)

    return known(norm, change, most, error, output)


def size(t: Tensor) -> float:
    """‖t‖_2 of the finite entries (those of a mask may be -∞), but at least what underflow may take, over ``ROUNDING``."""
    return max(LEAST, float(lp_norm(torch.where(t.isinf(), 0, t).double().reshape(1, -1), 2)))


def largest(t: Tensor) -> float:
    """The largest absolute value."""
    return float(t.abs().max()) if t.numel() else 0.0
