"""The marker ``each_value``: which combinations of parameters `make test` runs."""

import pytest


@pytest.mark.each_value
@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("c", ["x", "y", "z"])
@pytest.mark.parametrize("d", [True, pytest.param(False)])
def test_some(a, b, c, d):
    assert a * b > 0


def test_each_value_is_in_one_combination(request):
    items = [item for item in request.session.items if item.function is test_some]
    if not items:
        pytest.skip("it looks at the other test of this file, which was not asked for")
    found = [item.callspec.params for item in items if not item.get_closest_marker("slow")]
    assert len(found) == 4
    assert {(p["a"], p["b"]) for p in found} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert {p["c"] for p in found} == {"x", "y", "z"}
    assert {p["d"] for p in found} == {True, False}
