"""Intervals of decimal numbers: 19 digits, rounded outward, exponents up to 10^17, so that e^(-10^15) is no 0.

An interval is a pair (low, high) of :class:`decimal.Decimal` that contains the value. ``decimal`` rounds +, ·, / as it is
told to, and exp, ln and the square root to nearest; the functions of ``math`` are taken for right to 16 units of rounding.
"""

import decimal
import functools
import math
from collections.abc import Callable
from decimal import Decimal

__all__ = [
    "CONTEXT",
    "HUGE",
    "INFINITE",
    "WHOLE",
    "Interval",
    "add",
    "atan",
    "cos",
    "erf",
    "exp",
    "float_above",
    "hull",
    "intersection",
    "interval",
    "log",
    "minus",
    "mul",
    "power",
    "reciprocal",
    "sin",
    "sizes",
    "square_root",
]

Interval = tuple[Decimal, Decimal]

_RANGE = {"prec": 19, "Emin": -(10**17), "Emax": 10**17, "traps": []}
CONTEXT = decimal.Context(**_RANGE)  # type: ignore[arg-type]
"""For numbers that need no rounding in one direction, such as where to cut an interval."""
_DOWN = decimal.Context(rounding=decimal.ROUND_FLOOR, **_RANGE)  # type: ignore[arg-type]
_UP = decimal.Context(rounding=decimal.ROUND_CEILING, **_RANGE)  # type: ignore[arg-type]
INFINITE = Decimal("Infinity")
WHOLE = (-INFINITE, INFINITE)
HUGE = Decimal(10) ** 400  # beyond every float64
_FAR = Decimal(10) ** 15  # the exponential of it has a number of digits that is within the range
_MATH_ERROR = Decimal(2) ** -49  # relative: 16 units of rounding to nearest
_SMALLEST = Decimal("1e-300")  # below it float64 loses digits
ZERO, ONE = Decimal(0), Decimal(1)


def interval(x: float | Decimal) -> Interval:
    """The number, exactly."""
    return Decimal(x), Decimal(x)


def float_above(x: Decimal) -> float:
    """The next float64 that is not below."""
    near = float(x)
    return near if Decimal(near) >= x else math.nextafter(near, math.inf)


def hull(a: Interval, b: Interval) -> Interval:
    """The smallest interval that contains both."""
    return min(a[0], b[0]), max(a[1], b[1])


def intersection(a: Interval, b: Interval) -> Interval:
    """What two intervals that contain the same number have in common."""
    return max(a[0], b[0]), min(a[1], b[1])


def add(a: Interval, b: Interval) -> Interval:
    """The sum."""
    low, high = _DOWN.add(a[0], b[0]), _UP.add(a[1], b[1])
    return WHOLE if low.is_nan() or high.is_nan() else (low, high)


def minus(a: Interval) -> Interval:
    """-a."""
    return a[1].copy_negate(), a[0].copy_negate()  # unlike -x these are not rounded


def sizes(a: Interval) -> Interval:
    """The smallest and the largest absolute value."""
    first, second = a[0].copy_abs(), a[1].copy_abs()
    return ZERO if a[0] <= 0 <= a[1] else min(first, second), max(first, second)


def mul(a: Interval, b: Interval) -> Interval:
    """The product; 0 times an end at infinity is 0, because no number is infinite."""
    if a[0] > 0 and b[0] > 0:
        return _DOWN.multiply(a[0], b[0]), _UP.multiply(a[1], b[1])
    pairs = [(x, y) for x in a for y in b if x and y]
    zero = [ZERO] * (len(pairs) < 4)
    return min([_DOWN.multiply(*p) for p in pairs] + zero), max([_UP.multiply(*p) for p in pairs] + zero)


def reciprocal(a: Interval) -> Interval:
    """1 / a; everything where a contains 0 inside, and unbounded on one side where 0 is an end."""
    low, high = a
    if low < 0 < high or low == high == 0:
        return WHOLE
    if low == 0:
        return _DOWN.divide(ONE, high), INFINITE
    if high == 0:
        return -INFINITE, _UP.divide(ONE, low)
    return _DOWN.divide(ONE, high), _UP.divide(ONE, low)


def power(a: Interval, n: int) -> Interval:
    """a^n for n = 0, 1, 2, ..."""
    low, high = (_power(end.copy_abs(), n) for end in a)
    if n % 2:
        ends = [p if end >= 0 else minus(p) for p, end in zip((low, high), a, strict=True)]
        return ends[0][0], ends[1][1]
    least = ZERO if n and a[0] <= 0 <= a[1] else min(low[0], high[0])
    return least, max(low[1], high[1])


def _power(x: Decimal, n: int) -> Interval:
    p = (x, x) if n else interval(1)
    for _ in range(n - 1):
        p = mul(p, (x, x))
    return p


def _monotone(function: Callable[[Decimal], Interval], a: Interval) -> Interval:
    return function(a[0])[0], function(a[1])[1]


def exp(a: Interval) -> Interval:
    """e^a."""
    return _monotone(_exp, a)


@functools.lru_cache(maxsize=256)  # σ, σ' and σ'' want the same ones
def _exp(x: Decimal) -> Interval:
    if x > _FAR:
        return _exp(_FAR)[0], INFINITE
    if x < -_FAR:
        return ZERO, _exp(_FAR.copy_negate())[1]
    return _around(_DOWN.exp(x))


def _around(rounded: Decimal) -> Interval:
    """The interval of numbers that round to this one."""
    return _DOWN.next_minus(rounded), _UP.next_plus(rounded)


def log(a: Interval) -> Interval:
    """The natural logarithm; everything where some number of a has none."""
    if a[0] < 0:
        return WHOLE
    low = _around(_DOWN.ln(a[0]))[0] if a[0] else -INFINITE
    return low, _around(_DOWN.ln(a[1]))[1] if a[1] else INFINITE


def square_root(a: Interval) -> Interval:
    """√a; everything where some number of a has none."""
    if a[0] < 0:
        return WHOLE
    return max(ZERO, _around(_DOWN.sqrt(a[0]))[0]), _around(_UP.sqrt(a[1]))[1]


def erf(a: Interval) -> Interval:
    """The error function."""
    return _monotone(_erf, a)


def _erf(x: Decimal) -> Interval:
    if x < 0:
        return minus(_erf(x.copy_negate()))
    if x > 6:  # 1 - erf x <= e^(-x²) for x >= 1
        return _DOWN.subtract(ONE, _exp(_DOWN.multiply(x, x).copy_negate())[1]), ONE
    return _of_math(math.erf, x)


def _of_math(function: Callable[[float], float], x: Decimal) -> Interval:
    """An odd function whose slope is at most 1.2, at a number of at most 2^20."""
    if not x:
        return ZERO, ZERO
    near = Decimal(function(float(x)))
    error = _UP.multiply(_UP.add(near.copy_abs(), x.copy_abs()), _MATH_ERROR)  # float(x) is rounded
    error = _UP.add(error, _SMALLEST)
    return _DOWN.subtract(near, error), _UP.add(near, error)


def atan(a: Interval) -> Interval:
    """The inverse tangent."""
    return _monotone(_atan, a)


def _atan(x: Decimal) -> Interval:
    if x.copy_abs() > 2**20:
        low, high = _of_math(math.atan, ONE)
        near, far = _UP.multiply(low, Decimal("1.99999")), _UP.multiply(high, Decimal(2))
        return (near, far) if x > 0 else minus((near, far))
    return _of_math(math.atan, x)


def sin(a: Interval) -> Interval:
    """The sine; [-1, 1] far from 0."""
    if sizes(a)[1] > 2**20 or _UP.subtract(a[1], a[0]) > 6:
        return -ONE, ONE
    low, high = (Decimal(math.sin(float(end))) for end in a)
    quarters = [float(end) / (math.pi / 2) for end in a]
    # a place of ±1 lies inside if there is an odd quarter turn between the ends, or so near that rounding might hide it
    turns = range(math.ceil(quarters[0] - 1e-9), math.floor(quarters[1] + 1e-9) + 1)
    error = _UP.multiply(_UP.add(ONE, sizes(a)[1]), _MATH_ERROR)
    low, high = _DOWN.subtract(min(low, high), error), _UP.add(max(low, high), error)
    return -ONE if any(t % 4 == 3 for t in turns) else low, ONE if any(t % 4 == 1 for t in turns) else high


def cos(a: Interval) -> Interval:
    """The cosine."""
    if sizes(a)[1] > 2**20:
        return -ONE, ONE
    quarter = Decimal("1.57079632679489661923132169164")
    return sin((_DOWN.add(a[0], quarter), _UP.add(a[1], quarter)))
