"""The markers ``each_value`` and ``each_pair``: which combinations of parameters `make test` runs."""

from itertools import combinations, product

import pytest


@pytest.mark.each_value
@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("c", ["x", "y", "z"])
@pytest.mark.parametrize("d", [True, pytest.param(False)])
def test_some(a, b, c, d):
    assert a * b > 0


@pytest.mark.each_pair
@pytest.mark.parametrize("a", range(5))
@pytest.mark.parametrize(("b", "c"), [(1, 2), (3, 4), (5, 6)])
@pytest.mark.parametrize("d", "xyz")
def test_pairs(a, b, c, d):
    assert c == b + 1


def combinations_of(test, request):
    """The parameters of those that `make test` runs."""
    items = [item for item in request.session.items if item.function is test]
    if not items:
        pytest.skip("it looks at another test of this file, which was not asked for")
    return [item.callspec.params for item in items if not item.get_closest_marker("slow")]


def test_each_value_is_in_one_combination(request):
    found = combinations_of(test_some, request)
    assert len(found) == 4
    assert {(p["a"], p["b"]) for p in found} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert {p["c"] for p in found} == {"x", "y", "z"}
    assert {p["d"] for p in found} == {True, False}


def test_each_pair_of_values_is_in_one_combination(request):
    found = combinations_of(test_pairs, request)
    assert 15 <= len(found) < 25, "of 45"
    for (one, values), (other, others) in combinations(
        {"a": range(5), "b": (1, 3, 5), "d": "xyz"}.items(), 2
    ):
        assert {(p[one], p[other]) for p in found} == set(product(values, others))
