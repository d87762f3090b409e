"""Theorem 1 holds within a linear region."""

import pytest

from opnorm.analyses import power_method_agreement
from tests.analyses.toys import two_class_network, two_classes

NETWORK = two_class_network


def test_theorem_1_holds_within_a_region_and_ends_beyond(model):
    near, middle, far = power_method_agreement((1e-6, 0.1, 1), steps=5, points=30)(model, two_classes())
    assert near["same_region"] == 1
    assert near["worst_inside"] > 1 - 1e-9
    assert near["slope"] == pytest.approx(1, abs=1e-6)
    assert near["cosine"] == pytest.approx(1) == near["first_cosine"]
    assert far["same_region"] < middle["same_region"] + 1e-9
    assert far["cosine"] < middle["cosine"] < 1
    assert (near["p"], near["q"], near["eps"], near["steps"]) == ("2", "2", 1e-6, 5)


def test_the_sentence_gives_the_range_from_the_smallest_radius():
    rows = [
        {"eps": e, "cosine": c, "same_region": s} for e, c, s in ((0.1, 1, 0.9), (0.2, 0.8, 0.2), (0.3, 1, 0))
    ]
    text = power_method_agreement().sentence(rows)
    assert "(cosine 0.9 or more) up to ε = 0.1; most ascents stay in one linear region up to ε = 0.1" in text
    assert "not even at ε = 0.3" in power_method_agreement().sentence(rows[2:])
