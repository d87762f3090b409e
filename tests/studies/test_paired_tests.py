"""Comparisons of two trainings: against scipy, closed forms, and their rate of errors on made-up data."""

import math

import numpy as np
import pytest
from scipy import stats

from opnorm.errors import RunError
from opnorm.studies._shared.paired_tests import Comparison, holm

RNG = np.random.default_rng(0)


def shares(p_first, p_second, points=400, seeds=3, shared=0.8, rng=RNG):
    """Correct points of two methods, most of them the same in both."""
    pairs = []
    for _ in range(seeds):
        same, u = rng.random(points) < shared, rng.random(points)
        other = np.where(same, u, rng.random(points))
        pairs.append((u < p_first, other < p_second))
    return Comparison.of_shares("a against b", [a for a, _ in pairs], [b for _, b in pairs])


def test_one_seed_is_the_exact_test_of_mcnemar():
    first = np.array([True] * 12 + [False] * 3 + [True] * 85)
    second = np.array([False] * 12 + [True] * 3 + [True] * 85)
    found = Comparison.of_shares("", [first], [second])
    assert found.effect == pytest.approx(0.09)
    assert found.points == 100
    assert found.p_above(0) == pytest.approx(stats.binomtest(12, 15, 0.5, "greater").pvalue)
    assert found.p_below(0) == pytest.approx(stats.binomtest(3, 15, 0.5, "greater").pvalue)
    assert found.over_seeds is None
    low, high = found.over_points
    assert 0.01 < low < found.effect < high < 0.18


def test_values_are_the_test_of_student():
    values = (0.3, 0.5, 0.4, 0.45)
    found = Comparison("", values)
    assert found.p_above(0.2) == pytest.approx(stats.ttest_1samp(values, 0.2, alternative="greater").pvalue)
    assert found.p_above(0.2) + found.p_below(0.2) == pytest.approx(1)
    assert found.over_seeds == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval(0.95))
    assert found.over_points is None


def test_one_number_decides_nothing():
    found = Comparison("", (5.0,))
    assert found.p_above(0) == found.p_below(0) == 1
    assert found.seeds_needed(0) is None


def test_equal_values_decide_by_their_sign():
    assert Comparison("", (0.1, 0.1)).p_above(0) == 0
    assert Comparison("", (0.0, 0.0)).p_above(0) == 1
    same = Comparison.of_shares("", [np.ones(9, bool)] * 2, [np.ones(9, bool)] * 2)
    assert same.p_above(0) == same.p_below(0) == 1
    assert same.over_points == (0, 0)


def test_differences_between_equal_methods_are_rarely_found():
    rng = np.random.default_rng(1)
    found = [shares(0.7, 0.7, points=200, rng=rng) for _ in range(300)]
    wrong = sum(c.p_above(0) < 0.05 for c in found)
    assert wrong <= stats.binom.ppf(0.9999, 300, 0.05)


def test_true_differences_are_found_with_three_seeds():
    rng = np.random.default_rng(2)
    found = [shares(0.75, 0.65, points=400, rng=rng) for _ in range(50)]
    assert sum(c.p_above(0) < 0.05 for c in found) >= 45
    assert sum(c.p_below(0) < 0.05 for c in found) == 0


@pytest.mark.parametrize("bound", [-0.1, 0.05])
def test_a_bound_other_than_zero(bound):
    rng = np.random.default_rng(3)
    inside = shares(0.7, 0.7 - bound - 0.08, points=2000, rng=rng)
    assert inside.p_above(bound) < 0.01 < 0.99 < inside.p_below(bound)


def test_no_spread_is_not_taken_for_certainty():
    """All points alike in 20 of 20: that the true difference is above -0.01 is not known from 20 points."""
    same = Comparison.of_shares("", [np.ones(20, bool)], [np.ones(20, bool)])
    assert same.p_above(-0.01) > 0.3
    large = Comparison.of_shares("", [np.ones(5000, bool)], [np.ones(5000, bool)])
    assert large.p_above(-0.01) < 1e-6


def test_the_number_of_seeds_that_would_decide():
    found = Comparison("", (0.3, -0.1, 0.2))
    needed = found.seeds_needed(0)
    spread = np.std(found.by_seed, ddof=1)
    assert needed is not None
    assert needed > 3
    assert stats.t.ppf(0.975, needed - 1) * spread / math.sqrt(needed) < found.effect
    assert stats.t.ppf(0.975, needed - 2) * spread / math.sqrt(needed - 1) >= found.effect
    assert Comparison("", (1.0, -0.99)).seeds_needed(0) is None


def test_holm():
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.9]) == [1, 1]


@pytest.mark.parametrize("effects", [(), (math.nan,), (1.0, math.inf)])
def test_numbers_that_are_not_known(effects):
    with pytest.raises(RunError, match="finite number"):
        Comparison("a against b", effects)


def test_other_points():
    with pytest.raises(RunError, match="same points"):
        Comparison.of_shares("a against b", [np.ones(3, bool)], [np.ones(4, bool)])
