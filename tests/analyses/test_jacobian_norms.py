"""Norms of the Jacobian at test points, against explicit matrices."""

import math

import pytest
import torch

from opnorm.analyses import jacobian_norms
from opnorm.errors import NormError
from opnorm.jacobian import explicit
from tests.analyses.toys import data, pixels, trained

NETWORK = trained


def test_the_intervals_hold_the_singular_values(model):
    toy = data()
    (row,) = jacobian_norms(points=None)(model, toy)
    x, _ = pixels(toy.test)
    want = torch.linalg.matrix_norm(explicit(model, x).flatten(2).double(), 2)
    assert row["points"] == len(row["lower"]) == 700
    assert sorted(row["lower"]) == pytest.approx(sorted(want.tolist()), rel=1e-4)
    assert sorted(row["upper"]) == pytest.approx(sorted(want.tolist()), rel=1e-4)


def test_the_iteration_as_published_and_of_a_finite_step(model):
    exact, published, short = (
        jacobian_norms(points=30, **settings)(model, data())[0]
        for settings in ({}, {"alpha": math.inf, "steps": 50, "restarts": 1}, {"alpha": 1e-3, "steps": 2})
    )
    assert published["lower"] == pytest.approx(exact["lower"], rel=1e-3)
    assert published["upper"] == [None] * 30
    assert all(s < p for s, p in zip(short["lower"], published["lower"], strict=True))
    assert (exact["alpha"], published["alpha"], short["alpha"]) == (None, "inf", "0.001")
    sentence = jacobian_norms().sentence([short])
    assert "logits is at least" in sentence
    assert "(power iteration with α = 0.001, 2 steps from 8 starts: a lower bound)" in sentence


def test_pairs_and_what_is_refused(model):
    (row,) = jacobian_norms(1, math.inf, points=5)(model, data())
    assert row["algorithm"] == "exact: largest column norm"
    assert "The 1→∞ norm" in jacobian_norms().sentence([row])
    with pytest.raises(NormError, match="alpha=0"):
        jacobian_norms(alpha=0)
    with pytest.raises(NormError, match="p=3"):
        jacobian_norms(3, alpha=0.5)
    with pytest.raises(NormError, match=r"q=0\.5"):
        jacobian_norms(q=0.5)
