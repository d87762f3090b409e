"""Intervals contain the true values, by 60 digits of mpmath, and are narrow at a point."""

import decimal
import math
from decimal import Decimal

import mpmath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opnorm._core import decimal_intervals as iv

numbers = st.one_of(
    st.floats(-20, 20), st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, -1.0, 6.0, 1e-300, 5e-324])
)
FUNCTIONS = {
    "exp": (iv.exp, mpmath.exp),
    "log": (iv.log, mpmath.log),
    "square_root": (iv.square_root, mpmath.sqrt),
    "erf": (iv.erf, mpmath.erf),
    "atan": (iv.atan, mpmath.atan),
    "sin": (iv.sin, mpmath.sin),
    "cos": (iv.cos, mpmath.cos),
    "reciprocal": (iv.reciprocal, lambda x: 1 / x),
    "minus": (iv.minus, lambda x: -x),
    "cube": (lambda a: iv.power(a, 3), lambda x: x**3),
    "square": (lambda a: iv.power(a, 2), lambda x: x**2),
}
POSITIVE = ("log", "square_root")


def exact(x):
    return mpmath.mpf(str(x)) if x.is_finite() else mpmath.mpf("inf") * (1 if x > 0 else -1)


def contains(interval, value):
    return exact(interval[0]) <= value <= exact(interval[1])


@pytest.mark.parametrize("name", FUNCTIONS)
@given(numbers, numbers, st.floats(0, 1))
def test_intervals_contain_the_values(name, a, b, t):
    function, truth = FUNCTIONS[name]
    if name in POSITIVE:
        a, b = abs(a), abs(b)
    low, high = sorted((Decimal(a), Decimal(b)))
    inside = low + (high - low) * Decimal(t)
    if not low <= inside <= high or (name in ("log", "reciprocal") and inside == 0):
        return
    with mpmath.workdps(60):
        assert contains(function((low, high)), truth(exact(inside)))
        at_a_point = function((inside, inside))
        assert contains(at_a_point, truth(exact(inside)))
        width = exact(at_a_point[1]) - exact(at_a_point[0])
        # of these three, the error grows with the argument
        x, value = abs(exact(inside)), abs(truth(exact(inside)))
        assert width <= (1e-14 * (1 + x) if name in ("sin", "cos", "atan") else 1e-13 * (1 + value))


@given(numbers, numbers, numbers, numbers, st.floats(0, 1), st.floats(0, 1))
def test_sums_and_products(a, b, c, d, s, t):
    first, second = sorted((Decimal(a), Decimal(b))), sorted((Decimal(c), Decimal(d)))
    x, y = (e[0] + (e[1] - e[0]) * Decimal(r) for e, r in ((first, s), (second, t)))
    if not (first[0] <= x <= first[1] and second[0] <= y <= second[1]):
        return
    with mpmath.workdps(60):
        assert contains(iv.add(tuple(first), tuple(second)), exact(x) + exact(y))
        assert contains(iv.mul(tuple(first), tuple(second)), exact(x) * exact(y))


def test_the_range_is_beyond_that_of_float64():
    far = iv.exp(iv.interval(Decimal("-1e308")))
    assert 0 == far[0] < far[1] < Decimal("1e-1000000")
    grown = iv.mul(far, iv.power(iv.interval(Decimal("1e308")), 9))
    assert grown[1] < Decimal("1e-1000000")
    assert iv.exp(iv.interval(Decimal("1e308")))[1] == iv.INFINITE


def test_what_is_not_defined_is_everything():
    assert iv.log((Decimal(-1), Decimal(1))) == iv.WHOLE
    assert iv.square_root((Decimal(-1), Decimal(1))) == iv.WHOLE
    assert iv.reciprocal((Decimal(-1), Decimal(1))) == iv.WHOLE
    assert iv.add(iv.WHOLE, iv.WHOLE) == iv.WHOLE
    assert iv.mul((Decimal(0), Decimal(0)), iv.WHOLE) == (0, 0)


def test_a_callers_decimal_context_changes_nothing():
    before = iv.erf(iv.interval(0.3)), iv.sin((Decimal(1), Decimal(2)))
    with decimal.localcontext(decimal.Context(prec=3, rounding=decimal.ROUND_UP)):
        tenth = iv.interval(0.1)
        assert iv.minus(iv.minus(tenth)) == tenth
        with mpmath.workdps(60):
            assert contains(iv.erf(iv.interval(0.3)), mpmath.erf(mpmath.mpf(0.3)))
    assert before == (iv.erf(iv.interval(0.3)), iv.sin((Decimal(1), Decimal(2))))


def test_floats_above():
    assert iv.float_above(Decimal("0.1")) == 0.1 or Decimal(iv.float_above(Decimal("0.1"))) >= Decimal("0.1")
    assert Decimal(iv.float_above(Decimal(1) + Decimal("1e-18"))) > 1
    assert iv.float_above(Decimal("1e400")) == math.inf
