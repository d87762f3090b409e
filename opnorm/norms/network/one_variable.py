"""Functions of one variable, f: R -> R, as lists of steps, and certified bounds on sup |f'|.

The slope is bounded over intervals of x that cover all numbers up to 1e400 in absolute value, by interval arithmetic with
outward rounding (:mod:`opnorm._core.decimal_intervals`): the natural extension of f' and, where f is smooth, the mean value
form f'(c) + f''(X) (X - c). The interval with the largest upper bound is cut in two until it is within 1e-9 of a slope that
f has somewhere; if that takes too long, the largest upper bound is still one.

A function with finite sup |f'| wherever f is differentiable is Lipschitz with that constant, because the steps are
continuous: those that jump are not among them.
"""

import decimal
import functools
import heapq
import itertools
import math
from decimal import Decimal
from typing import Any, NamedTuple

from opnorm._core import decimal_intervals as iv
from opnorm._core.decimal_intervals import HUGE, INFINITE, Interval, add, mul
from opnorm.norms.network.jets import OPERATIONS, Jet, chain, product, total

__all__ = [
    "IDENTITY",
    "MAX_STEPS",
    "Function",
    "Slopes",
    "apply",
    "constant",
    "kinks",
    "largest_slope",
    "slope_and_curvature",
    "slopes_between",
]

Step = tuple
"""The name of an operation and its arguments: an int is the number of an earlier step, a float a number."""
Function = tuple[Step, ...]
"""The steps; the last one is the value."""

IDENTITY: Function = (("x",),)
MAX_STEPS = 64
TOLERANCE = Decimal("1e-9")  # relative, between the bound and a slope that was found
MAX_WORK = 10_000  # steps, of all intervals


def constant(value: float) -> Function:
    """The function that is this number everywhere."""
    return (("number", float(value)),)


def apply(operation: str, *given: Function | float) -> Function:
    """An operation, ``add``, ``mul`` or one of ``OPERATIONS``, of functions and then of settings."""
    name, *operands = _simplified(operation, *given)
    steps: dict[Step, int] = {}
    arguments = [_insert(steps, f) if isinstance(f, tuple) else float(f) for f in operands]
    place = steps.setdefault((name, *arguments), len(steps))
    return tuple(steps)[: place + 1]


def _insert(steps: dict[Step, int], function: Function) -> int:
    """Add the steps of a function to others; those that are there already are not added again."""
    places: list[int] = []
    for name, *arguments in function:
        step = (name, *(places[a] if isinstance(a, int) else a for a in arguments))
        places.append(steps.setdefault(step, len(steps)))
    return places[-1]


def _simplified(name: str, *operands: Any) -> tuple[Any, ...]:
    """The same function in a form whose bounds do not grow where one variable stands twice, or e^x is out of range."""
    f: Any = operands[0]
    if name == "mul" and f == operands[1]:
        return _simplified("power", f, 2)
    if name == "power" and operands[1] == 2 and f[-1][0] in ("sin", "cos"):  # (1 -+ cos 2u) / 2
        half, double = constant(-0.5 if f[-1][0] == "sin" else 0.5), apply("mul", constant(2), _part(f, 1))
        return "add", constant(0.5), apply("mul", half, apply("cos", double))
    if name in ("log", "reciprocal", "sqrt") and f[-1][0] == "add":
        for one, other in ((1, 2), (2, 1)):
            number, rest = _part(f, one)[-1], _part(f, other)
            if number == ("number", 1.0) and rest[-1][0] == "exp" and name != "sqrt":
                u = _part(rest, 1)
                return ("softplus", u) if name == "log" else ("sigmoid", apply("mul", constant(-1), u))
            if (
                number[0] == "number"
                and number[1] > 0
                and rest[-1][0] == "power"
                and rest[-1][2] == 2
                and name == "sqrt"
            ):
                return "hypotenuse", _part(rest, 1), number[1]
    return name, *operands


def _part(f: Function, argument: int) -> Function:
    """An argument of the last step."""
    return f[: f[-1][argument] + 1]


# ---------------------------------------------------------------- sup |f'|


def _jet(function: Function, x: Interval) -> Jet:
    """The jet of the last step, for x in an interval."""
    jets: list[Jet] = []
    for name, *arguments in function:
        if name == "x":
            jets.append(Jet(x, iv.interval(1), iv.interval(0)))
        elif name == "number":
            jets.append(Jet(iv.interval(arguments[0]), iv.interval(0), iv.interval(0)))
        elif name in ("add", "mul"):
            jets.append((total if name == "add" else product)(jets[arguments[0]], jets[arguments[1]]))
        else:
            inner = jets[arguments[0]]
            jets.append(chain(inner, OPERATIONS[name](inner.value, *arguments[1:])))
    return jets[-1]


@functools.lru_cache(maxsize=4096)
def largest_slope(function: Function) -> float:
    """An upper bound on sup |f'|, infinite where none is certified; at most 1e-9 above it for most functions.

    Example:
        >>> square = apply("mul", IDENTITY, IDENTITY)
        >>> largest_slope(square)
        inf
        >>> round(largest_slope(apply("mul", IDENTITY, apply("sigmoid", IDENTITY))), 8)  # SiLU
        1.09983932
    """
    with decimal.localcontext(iv.CONTEXT):
        return _largest_slope(function)


def _largest_slope(function: Function) -> float:
    if _grows(function):
        return math.inf
    edges = [-HUGE, *(Decimal(e) for e in _edges(function)), HUGE]
    heap: list[tuple[Decimal, Decimal, Decimal]] = []
    reached = Decimal(0)
    for low, high in itertools.pairwise(edges):
        reached = max(reached, _push(heap, function, low, high))
    for cuts in range(MAX_WORK // len(function)):
        largest, low, high = heap[0]
        middle = _middle(low, high)
        if (
            -largest <= reached * (1 + TOLERANCE)
            or not low < middle < high
            or (-largest == INFINITE and cuts > 200)
        ):
            break
        heapq.heappop(heap)
        reached = max(reached, _push(heap, function, low, middle), _push(heap, function, middle, high))
    bound = iv.float_above(heap[0][0].copy_negate())
    return bound if bound < 1e30 else math.inf


class Slopes(NamedTuple):
    """Upper bounds for all x of an interval; infinite where none is certified.

    Attributes:
        slope: on |f'|.
        change: on the difference of two values of f'.
        curvature: on |f''|.
    """

    slope: float
    change: float
    curvature: float


CUTS = 512  # steps, of all parts of an interval


def slopes_between(function: Function, low: float, high: float) -> Slopes:
    """Bounds on f' and f'' on the interval [low, high].

    Example:
        >>> square = apply("power", IDENTITY, 2)
        >>> slopes_between(square, 1.0, 3.0)
        Slopes(slope=6.0, change=4.0, curvature=2.0)
    """
    with decimal.localcontext(iv.CONTEXT):
        edges = sorted({Decimal(e) for e in (low, *kinks(function), high) if low <= e <= high})
        parts = max(1, CUTS // len(function) // len(edges))
        slopes, curvature = [], Decimal(0)
        for a, b in itertools.pairwise(edges) if len(edges) > 1 else [(edges[0], edges[0])]:
            places = [a + (b - a) * k / parts for k in range(parts)] + [b]
            for ends in itertools.pairwise(places):
                jet = _jet(function, ends)
                slopes.append(_slope(function, *ends, jet)[0])
                curvature = max(curvature, iv.sizes(jet.curvature)[1])
        least, most = min(s[0] for s in slopes), max(s[1] for s in slopes)
        largest = max(iv.sizes(s)[1] for s in slopes)
        return Slopes(
            *map(iv.float_above, (largest, add((most, most), iv.minus((least, least)))[1], curvature))
        )


def _push(heap: list, function: Function, low: Decimal, high: Decimal) -> Decimal:
    """Add an interval with the upper bound of its slopes; a lower bound of the largest one among them."""
    slope, point = _slope(function, low, high, _jet(function, (low, high)))
    heapq.heappush(heap, (iv.sizes(slope)[1].copy_negate(), low, high))
    lowest, _ = iv.sizes(point)
    return lowest if lowest < INFINITE else Decimal(0)


def _slope(function: Function, low: Decimal, high: Decimal, whole: Jet) -> tuple[Interval, Interval]:
    """All slopes between two ends, by the jet there and by the mean value form; and that in the middle."""
    middle = _middle(low, high)
    point = _jet(function, (middle, middle)).slope
    by_mean_value = add(point, mul(whole.curvature, add((low, high), iv.minus((middle, middle)))))
    return iv.intersection(whole.slope, by_mean_value), point


def _middle(low: Decimal, high: Decimal) -> Decimal:
    """Halfway, in logarithm where the ends are of another size."""
    if low < 0 < high:
        return Decimal(0)
    near, far = iv.sizes((low, high))
    sign = 1 if low >= 0 else -1
    if near == 0:
        return sign * (min(far / 2, Decimal(1)) if far > 1 else far / 2)
    return sign * (near * far).sqrt() if far > 4 * near else (low + high) / 2


def slope_and_curvature(function: Function, x: Interval) -> tuple[Interval, Interval]:
    """Intervals that contain f' and f'' on an interval; f'' of everything where f' jumps inside."""
    jet = _jet(function, x)
    return jet.slope, jet.curvature


def _edges(function: Function) -> list[float]:
    """Where to begin: 0, 1 and -1, and the kinks."""
    return sorted({0.0, -1.0, 1.0, *kinks(function)})


def kinks(function: Function) -> list[float]:
    """Where the function may have kinks, as far as they are at zeros of a x + b."""
    lines: list[Any] = []  # (a, b) of the steps that are a x + b
    edges: set[float] = set()
    for name, *arguments in function:
        ends = [lines[a] for a in arguments if isinstance(a, int)]
        line = None
        if name == "x":
            line = (1.0, 0.0)
        elif name == "number":
            line = (0.0, arguments[0])
        elif None not in ends and name == "add":
            line = (ends[0][0] + ends[1][0], ends[0][1] + ends[1][1])
        elif None not in ends and name == "mul" and 0.0 in (ends[0][0], ends[1][0]):
            (a, b), (c, d) = ends
            line = (a * d + c * b, b * d)
        elif name == "reciprocal" and ends[0] and ends[0][1] and not ends[0][0]:
            line = (0.0, 1 / ends[0][1])
        elif name in ("kink", "clamp") and ends[0] and ends[0][0]:
            places = [0.0] if name == "kink" else arguments[1:]
            edges.update((place - ends[0][1]) / ends[0][0] for place in places)
        lines.append(line)
    return sorted(e for e in edges if abs(e) < 1e300)


def _grows(function: Function) -> bool:
    """Whether |f'| still grows between 1e100, 1e200 and 1e400, as that of x log x does."""
    for sign in (1, -1):
        ends = [sign * Decimal(10) ** digits for digits in (100, 200, 400)]
        found = [iv.sizes(_jet(function, (x, x)).slope) for x in ends]
        if all(far[0] > near[1] * (1 + Decimal("1e-6")) for near, far in itertools.pairwise(found)):
            return True
    return False
