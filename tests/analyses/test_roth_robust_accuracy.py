"""The curve of Roth, Kilcher & Hofmann, against the same by hand."""

import math

import pytest
import torch

from opnorm.analyses import roth_robust_accuracy
from opnorm.attacks import pgd
from tests.analyses.toys import data, pixels, trained


@pytest.fixture(scope="module")
def model():
    return trained().eval()


def test_each_radius_is_attacked_by_itself(model):
    toy = data()
    x, y = pixels(toy.test)
    rows = roth_robust_accuracy(eps=(0.5, 0, 0.2))(model, toy)
    assert [row["eps"] for row in rows] == [0, 0.2, 0.5]
    right = model(x).argmax(1) == y
    for row in rows:
        attack = pgd(2, row["eps"], 10, 0.25 * row["eps"] or None, ascent="roth")
        after = model(attack(model, x[right], y[right])).argmax(1) == y[right]
        assert (row["correct"], row["points"]) == (int(after.sum()), 700)
        assert row["accuracy"] == row["correct"] / 700
        assert row["sem"] == pytest.approx(math.sqrt(row["accuracy"] * (1 - row["accuracy"]) / 700))
    assert rows[0]["correct"] == int(right.sum()) > rows[-1]["correct"]
    assert rows[1]["attack"] == 'pgd(norm=2, eps=0.2, steps=10, bf16=False, ascent="roth")'
    assert "pgd(norm=2, steps=10" in roth_robust_accuracy().sentence(rows)


def test_random_points(model):
    toy = data()
    (row,) = roth_robust_accuracy(math.inf, (0,), points=50, seed=1)(model, toy)
    x, y = pixels(toy.test)
    chosen = torch.randperm(700, generator=torch.Generator().manual_seed(1))[:50]
    assert row["correct"] == int((model(x[chosen]).argmax(1) == y[chosen]).sum())
    assert row["points"] == 50
