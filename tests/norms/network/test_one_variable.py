"""Largest slopes of functions of one variable: the known ones to 1e-9, and never below what secants show."""

import math
import random

import mpmath
import pytest

from opnorm.norms.network.one_variable import IDENTITY as X
from opnorm.norms.network.one_variable import apply, constant, largest_slope
from opnorm.norms.nonlinear import ELEMENTWISE, GELU, nn


def add(*functions):
    total = functions[0]
    for f in functions[1:]:
        total = apply("add", total, f)
    return total


def times(a, b):
    return apply("mul", *(f if isinstance(f, tuple) else constant(f) for f in (a, b)))


def over(a, b):
    return times(a, apply("reciprocal", b))


one, sigmoid, tanh = constant(1), apply("sigmoid", X), apply("tanh", X)
size, square = apply("kink", X, -1, 1), times(X, X)
inner = times(math.sqrt(2 / math.pi), add(X, times(0.044715, apply("power", X, 3))))
KNOWN = {
    "GELU": (times(times(0.5, X), add(one, apply("erf", times(math.sqrt(0.5), X)))), GELU["none"]),
    "GELU by tanh": (times(times(0.5, X), add(one, apply("tanh", inner))), GELU["tanh"]),
    "SiLU": (times(X, sigmoid), ELEMENTWISE[nn.SiLU]),
    "SiLU by exp": (over(X, add(one, apply("exp", times(-1, X)))), ELEMENTWISE[nn.SiLU]),
    "QuickGELU": (times(X, apply("sigmoid", times(1.702, X))), ELEMENTWISE[nn.SiLU]),
    "Mish": (times(X, apply("tanh", apply("softplus", X))), ELEMENTWISE[nn.Mish]),
    "Hardswish": (times(1 / 6, times(X, apply("clamp", add(X, constant(3)), 0, 6))), 1.5),
    "softsign": (over(X, add(one, size)), 1.0),
    "softplus": (apply("log", add(apply("exp", X), one)), 1.0),
    "pseudo-Huber": (apply("sqrt", add(one, square)), 1.0),
    "x / sqrt(1 + x²)": (over(X, apply("sqrt", add(square, one))), 1.0),
    "Gaussian": (apply("exp", times(-1, square)), math.sqrt(2 / math.e)),
    "Snake": (add(X, apply("power", apply("sin", X), 2)), 2.0),
    "tanh shrink": (add(X, times(-1, tanh)), 1.0),
    "1 / (1 + x²)": (apply("reciprocal", add(one, square)), 3 * math.sqrt(3) / 8),
    "log(1 + x²)": (apply("log", add(one, square)), 1.0),
    "tanh²": (apply("power", tanh, 2), 4 / math.sqrt(27)),
    "leaky, by parts": (add(apply("kink", X, 0, 1), times(-0.1, apply("kink", times(-1, X), 0, 1))), 1.0),
    "0": (add(X, times(-1, X)), 0.0),
    "atan": (times(3, apply("atan", X)), 3.0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_slopes(name):
    function, truth = KNOWN[name]
    assert truth * (1 - 1e-15) <= largest_slope(function) <= truth * (1 + 3e-9)


@pytest.mark.parametrize(
    "function",
    [
        square, times(X, apply("kink", X, 0, 1)), apply("exp", X), apply("sqrt", size), apply("reciprocal", X),
        apply("reciprocal", add(X, constant(-3))), apply("power", X, 3), times(X, apply("sin", X)),
        times(X, apply("log", add(one, square))), apply("sin", square), times(tanh, square),
        over(X, add(one, times(-1, size))), apply("log", X), apply("exp", apply("exp", X)),
    ],
)  # fmt: skip
def test_functions_without_a_largest_slope(function):
    assert largest_slope(function) == math.inf


# ---------------------------------------------------------------- random functions, beside mpmath

UNARY = {
    "sigmoid": lambda u: 1 / (1 + mpmath.exp(-u)),
    "tanh": mpmath.tanh,
    "softplus": lambda u: mpmath.log1p(mpmath.exp(u)),
    "erf": mpmath.erf,
    "sin": mpmath.sin,
    "cos": mpmath.cos,
    "atan": mpmath.atan,
    "exp": mpmath.exp,
}


def random_function(r, depth):
    """A function by steps, and the same one by mpmath."""
    kind = (
        r.choice(["x", "number", "add", "mul", "mul", *UNARY, *UNARY, "kink", "clamp", "power", "bounded"])
        if depth
        else "x"
    )
    if kind == "x":
        return X, lambda x: x
    if kind == "number":
        c = r.choice([-2.0, -0.3, 0.5, 1.0, 1.702])
        return constant(c), lambda x: mpmath.mpf(c)
    f, of_f = random_function(r, depth - 1)
    if kind in ("add", "mul"):
        g, of_g = random_function(r, depth - 1)
        return apply(kind, f, g), lambda x: of_f(x) + of_g(x) if kind == "add" else of_f(x) * of_g(x)
    if kind == "kink":
        a, b = r.choice([(0.0, 1.0), (-1.0, 1.0), (0.1, 1.0), (1.0, 0.0)])
        return apply("kink", f, a, b), lambda x: (b if of_f(x) > 0 else a) * of_f(x)
    if kind == "clamp":
        return apply("clamp", f, -0.5, 2), lambda x: min(max(of_f(x), mpmath.mpf(-0.5)), mpmath.mpf(2))
    if kind == "power":
        return apply("power", f, 2), lambda x: of_f(x) ** 2
    if kind == "bounded":
        return apply("reciprocal", add(one, apply("power", f, 2))), lambda x: 1 / (1 + of_f(x) ** 2)
    return apply(kind, f), lambda x: UNARY[kind](of_f(x))


def check(seed):
    """No secant of the function is steeper than the bound, which is known or not."""
    r = random.Random(seed)
    function, of = random_function(r, 4)
    bound = largest_slope(function)
    with mpmath.workdps(50):
        for scale in (1e-2, 1.0, 10.0, 1e3):
            for _ in range(10):
                x = mpmath.mpf(r.gauss(0, scale))
                for h in (mpmath.mpf("1e-20"), mpmath.mpf(r.uniform(0, 3))):
                    if bound < math.inf:
                        slope = abs(of(x + h) - of(x)) / h
                        assert slope <= bound * (1 + mpmath.mpf("1e-15")), (seed, function, x, h)
    return bound < math.inf


def test_no_random_function_is_steeper_than_its_bound():
    assert sum(map(check, range(12))) > 5


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 1100, 50))
def test_a_thousand_random_functions(first):
    """Fifty a test, about 6 s of one core: all of them in one took 2 minutes, beyond the time limit on a busy machine."""
    assert sum(map(check, range(first, first + 50))) > 10
