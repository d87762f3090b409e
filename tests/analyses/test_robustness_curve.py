"""The robustness curve, against attacks at each radius."""

import math

import pytest

from opnorm.analyses import robustness_curve
from opnorm.attacks import pgd
from tests.analyses.toys import after, data, pixels, trained

NETWORK = trained


def test_a_curve_never_rises_and_agrees_with_its_points(model):
    toy = data(80)
    x, y = pixels(toy.test)
    eps = (0, 2 / 255, 4 / 255, 8 / 255, 16 / 255)
    (row,) = robustness_curve(eps=eps, points=None)(model, toy)
    right = model(x).argmax(1) == y
    minimal = [math.inf if d is None else d for d in row["minimal_eps"]]
    assert len(minimal) == row["points"] == len(y)
    assert [d == 0 for d in minimal] == (~right).tolist()
    assert row["eps"] == list(eps)
    assert row["accuracy"] == [sum(d > e for d in minimal) / len(y) for e in eps]
    assert row["accuracy"] == sorted(row["accuracy"], reverse=True)
    assert row["accuracy"][0] == pytest.approx(float(right.double().mean()))
    for radius, share in list(zip(eps, row["accuracy"], strict=True))[1:]:
        plain = float((right & after(model, pgd(math.inf, radius, 20), x, y)).double().mean())
        assert share <= plain + 0.02
