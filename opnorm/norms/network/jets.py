"""Intervals of the value, the slope and the curvature of functions of one variable, over an interval."""

from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from opnorm._core import decimal_intervals as iv
from opnorm._core.decimal_intervals import WHOLE, Interval, add, mul

__all__ = ["OPERATIONS", "Jet", "chain", "product", "total"]

ZERO, ONE = iv.interval(0), iv.interval(1)


class Jet(NamedTuple):
    """Intervals that contain f(x), f'(x) and f''(x) for all x of an interval; f' wherever it exists."""

    value: Interval
    slope: Interval
    curvature: Interval


def chain(inner: Jet, outer: Jet) -> Jet:
    """φ(g): φ' g' and φ'' g'² + φ' g''."""
    curvature = add(mul(outer.curvature, iv.power(inner.slope, 2)), mul(outer.slope, inner.curvature))
    return Jet(outer.value, mul(outer.slope, inner.slope), curvature)


def total(a: Jet, b: Jet) -> Jet:
    """The sum."""
    return Jet(*map(add, a, b))


def product(a: Jet, b: Jet) -> Jet:
    """The product."""
    slope = add(mul(a.slope, b.value), mul(a.value, b.slope))
    both = mul(iv.interval(2), mul(a.slope, b.slope))
    return Jet(
        mul(a.value, b.value), slope, add(add(mul(a.curvature, b.value), mul(a.value, b.curvature)), both)
    )


def _kink(u: Interval, left: float, right: float) -> Jet:
    """Two lines that meet at 0: left · u and right · u."""
    a, b = iv.interval(left), iv.interval(right)
    ends = [mul(b if end > 0 else a, (end, end)) for end in u]
    value = iv.hull(*ends)
    if u[0] < 0 < u[1]:
        return Jet(iv.hull(value, ZERO), iv.hull(a, b), WHOLE)
    return Jet(value, b if u[0] >= 0 else a, ZERO)


def _clamp(u: Interval, low: float, high: float) -> Jet:
    least, most = Decimal(low), Decimal(high)
    value = min(max(u[0], least), most), min(max(u[1], least), most)
    if least <= u[0] and u[1] <= most:
        return Jet(u, ONE, ZERO)
    if u[1] <= least or u[0] >= most:
        return Jet(value, ZERO, ZERO)
    return Jet(value, iv.hull(ZERO, ONE), WHOLE)


def _power(u: Interval, n: float) -> Jet:
    k = int(n)
    one, two = iv.interval(k), iv.interval(k * (k - 1))
    return Jet(
        iv.power(u, k),
        mul(one, iv.power(u, max(0, k - 1))),
        mul(two, iv.power(u, max(0, k - 2))),
    )


def _reciprocal(u: Interval) -> Jet:
    r = iv.reciprocal(u)
    square = iv.power(r, 2)
    return Jet(r, iv.minus(square), mul(iv.interval(2), iv.power(r, 3)))


def _exp(u: Interval) -> Jet:
    e = iv.exp(u)
    return Jet(e, e, e)


def _log(u: Interval) -> Jet:
    if u[0] < 0:
        return Jet(WHOLE, WHOLE, WHOLE)
    r = iv.reciprocal(u)
    return Jet(iv.log(u), r, iv.minus(iv.power(r, 2)))


def _square_root(u: Interval) -> Jet:
    if u[0] < 0:
        return Jet(WHOLE, WHOLE, WHOLE)
    root = iv.square_root(u)
    r = iv.reciprocal(root)
    return Jet(root, mul(iv.interval(0.5), r), mul(iv.interval(-0.25), iv.power(r, 3)))


def _hypotenuse(u: Interval, c: float) -> Jet:
    """With h = √(c + u²), the increasing slope u / h and the curvature c / h³."""
    h = iv.square_root(add(iv.interval(c), iv.power(u, 2)))
    low, high = (mul((x, x), iv.reciprocal(_hypotenuse_at(x, c))) for x in u)
    return Jet(h, (low[0], high[1]), mul(iv.interval(c), iv.power(iv.reciprocal(h), 3)))


def _hypotenuse_at(x: Decimal, c: float) -> Interval:
    return iv.square_root(add(iv.interval(c), iv.power((x, x), 2)))


def _logistic_bell(u: Interval) -> Interval:
    """σ'(u) = q / (1 + q)² with q = e^(-|u|): it falls with |u|."""

    def at(x: Decimal) -> Interval:
        q = iv.exp(iv.minus((x, x)))
        return mul(q, iv.power(iv.reciprocal(add(ONE, q)), 2))

    near, far = iv.sizes(u)
    return at(far)[0], at(near)[1]


def _logistic(u: Interval) -> Interval:
    """σ(u) = q / (1 + q) for u < 0 and 1 / (1 + q) else, with q = e^(-|u|)."""

    def at(x: Decimal) -> Interval:
        q = iv.exp(iv.minus((x.copy_abs(), x.copy_abs())))
        r = iv.reciprocal(add(ONE, q))
        return mul(q, r) if x < 0 else r

    return at(u[0])[0], at(u[1])[1]


def _sigmoid(u: Interval) -> Jet:
    s, bell = _logistic(u), _logistic_bell(u)
    return Jet(s, bell, mul(bell, add(ONE, mul(iv.interval(-2), s))))


def _softplus(u: Interval) -> Jet:
    """log(1 + e^u) = max(u, 0) + log(1 + e^(-|u|))."""

    def at(x: Decimal) -> Interval:
        rest = iv.log(add(ONE, iv.exp(iv.minus((x.copy_abs(), x.copy_abs())))))
        return add((max(x, Decimal(0)),) * 2, rest)

    return Jet((at(u[0])[0], at(u[1])[1]), _logistic(u), _logistic_bell(u))


def _tanh(u: Interval) -> Jet:
    """2 σ(2u) - 1, with the slope 4 σ'(2u)."""
    double = mul(iv.interval(2), u)
    value = add(mul(iv.interval(2), _logistic(double)), iv.interval(-1))
    slope = mul(iv.interval(4), _logistic_bell(double))
    return Jet(value, slope, mul(iv.interval(-2), mul(value, slope)))


def _erf(u: Interval) -> Jet:
    """The slope is 2/√π e^(-u²)."""
    factor = (Decimal("1.12837916709551257"), Decimal("1.12837916709551258"))
    slope = mul(factor, iv.exp(iv.minus(iv.power(u, 2))))
    return Jet(iv.erf(u), slope, mul(iv.interval(-2), mul(u, slope)))


def _sin(u: Interval) -> Jet:
    s = iv.sin(u)
    return Jet(s, iv.cos(u), iv.minus(s))


def _cos(u: Interval) -> Jet:
    c = iv.cos(u)
    return Jet(c, iv.minus(iv.sin(u)), iv.minus(c))


def _atan(u: Interval) -> Jet:
    slope = iv.reciprocal(add(ONE, iv.power(u, 2)))
    return Jet(iv.atan(u), slope, mul(iv.interval(-2), mul(u, iv.power(slope, 2))))


OPERATIONS: dict[str, Callable[..., Jet]] = {
    "kink": _kink, "clamp": _clamp, "power": _power, "reciprocal": _reciprocal, "exp": _exp, "log": _log,
    "sqrt": _square_root, "hypotenuse": _hypotenuse,
    "sigmoid": _sigmoid, "softplus": _softplus, "tanh": _tanh, "erf": _erf, "sin": _sin, "cos": _cos, "atan": _atan,
}  # fmt: skip
"""By name, the jet of φ on an interval."""
