"""Comparisons of two trainings: against scipy, closed forms, and their rate of errors on made-up data."""

import math

import numpy as np
import pytest
import scipy  # its modules load where they are used

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


def test_the_exact_test_of_mcnemar_is_about_these_networks():
    first = np.array([True] * 12 + [False] * 3 + [True] * 85)
    second = np.array([False] * 12 + [True] * 3 + [True] * 85)
    found = Comparison.of_shares("", [first], [second])
    assert found.effect == pytest.approx(0.09)
    assert found.points == 100
    assert found.mcnemar == pytest.approx(scipy.stats.binomtest(12, 15, 0.5).pvalue)
    assert found.over_seeds is None
    low, high = found.over_points
    assert 0.01 < low < found.effect < high < 0.18
    equal = np.ones(9, bool)
    assert Comparison.of_shares("", [equal], [equal]).mcnemar == 1
    assert Comparison("", (1.0,)).mcnemar is None
    two = Comparison.of_shares("", [first, first], [second, first])
    assert two.mcnemar == 1, "it must reject in every seed"


def test_values_are_the_test_of_student():
    values = (0.3, 0.5, 0.4, 0.45)
    found = Comparison("", values)
    assert found.p_above(0.2) == pytest.approx(
        scipy.stats.ttest_1samp(values, 0.2, alternative="greater").pvalue
    )
    assert found.p_above(0.2) + found.p_below(0.2) == pytest.approx(1)
    assert found.over_seeds == pytest.approx(scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95))
    assert found.over_points is None


def test_one_seed_decides_nothing():
    found = Comparison("", (5.0,))
    assert found.p_above(0) == found.p_below(0) == 1
    clear = Comparison.of_shares("", [np.ones(900, bool)], [np.zeros(900, bool)])
    assert clear.p_above(0) == clear.p_below(0) == 1
    assert clear.mcnemar < 1e-6


def test_shares_are_tested_over_seeds_and_over_points():
    """The p-value is the larger one of Student's test over the seeds and of Welch's with both variances."""
    few_points = np.zeros((5, 400), bool)
    few_points[:, :3] = True
    few_points[0, 3] = True
    found = Comparison.of_shares("", list(few_points), [np.zeros(400, bool)] * 5)
    student = scipy.stats.ttest_1samp(found.by_seed, 0, alternative="greater").pvalue
    assert student < 0.001 < 0.05 < found.p_above(0)
    at_points = [*few_points.mean(0), 1, -1]
    both = scipy.stats.ttest_ind_from_stats(
        found.effect, 1 / 400, 5, 0, np.std(at_points, ddof=1), 402, equal_var=False, alternative="greater"
    )
    assert found.p_above(0) == pytest.approx(both.pvalue)
    few_seeds = np.zeros((3, 400), bool)
    few_seeds[0, :200] = True
    found = Comparison.of_shares("", list(few_seeds), [np.zeros(400, bool)] * 3)
    over_points = scipy.stats.ttest_1samp(few_seeds.mean(0), 0, alternative="greater").pvalue
    assert over_points < 0.001 < 0.05 < found.p_above(0)
    assert found.p_above(0) >= scipy.stats.ttest_1samp(found.by_seed, 0, alternative="greater").pvalue > 0.2


@pytest.mark.parametrize("values", [(0.1, 0.1), (0.1,) * 3, (0.1 + 0.2, 0.3), (0.0, 0.0)])
def test_equal_values_decide_nothing(values):
    """Two seeds with the same number say nothing of the spread over seeds."""
    found = Comparison("", values)
    assert found.p_above(0) == found.p_below(0) == found.p_above(-5) == 1


def test_counts_have_a_least_spread():
    """That of one step: of one layer, or of one point."""
    equal = Comparison.of_counts("", [[True] * 9 + [False]] * 3, 0.5)
    assert equal.by_seed == pytest.approx((0.4, 0.4, 0.4))
    assert equal.p_above(0) == pytest.approx(scipy.stats.t.sf(0.4 / 0.1 * math.sqrt(3), 2))
    low, high = equal.over_seeds
    assert low < 0.4 < high
    spread = Comparison.of_counts("", [[True] * n + [False] * (10 - n) for n in (2, 9, 6)], 0.5)
    assert spread.p_above(0) == pytest.approx(
        scipy.stats.ttest_1samp([-0.3, 0.4, 0.1], 0, alternative="greater").pvalue
    )
    same = Comparison.of_shares("", [np.ones(9, bool)] * 2, [np.ones(9, bool)] * 2)
    assert same.p_above(0) >= 0.5 <= same.p_below(0)
    assert same.over_points == (0, 0)
    ahead = Comparison.of_shares("", [np.arange(400) < 220] * 2, [np.arange(400) < 200] * 2)
    assert ahead.p_above(0) == pytest.approx(scipy.stats.t.sf(20 * math.sqrt(2), 1))
    with pytest.raises(RunError, match="nothing to count"):
        Comparison.of_counts("", [[]], 0.5)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("between", [0.0, 0.05, 0.2], ids=lambda x: f"spread {x:g}")
def test_differences_between_equal_methods_are_rarely_found(seeds, between):
    """At most 5 % of comparisons decide for a difference where there is none, whatever the spread over seeds.

    A point counts where ability plus ease is positive. The ability of a network is that of its seed; the ease of a point
    has a part that is the method's own, so that the points that were drawn favor one of two methods that are equal over
    all points.
    """
    rng = np.random.default_rng(1)
    trials, points = 300, 200
    wrong = 0
    for _ in range(trials):
        ease = rng.normal(size=points)
        counted = [
            0.8
            + between * rng.normal(size=(seeds, 1))
            + ease
            + 0.5 * own
            + 0.5 * rng.normal(size=(seeds, points))
            > 0
            for own in rng.normal(size=(2, points))
        ]
        wrong += Comparison.of_shares("", list(counted[0]), list(counted[1])).p_above(0) < 0.05
    assert wrong <= scipy.stats.binom.ppf(0.999, trials, 0.05)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_differences_between_equal_values_are_rarely_found(seeds):
    values = np.random.default_rng(1).normal(size=(400, seeds))
    wrong = sum(Comparison("", tuple(row)).p_above(0) < 0.05 for row in values.tolist())
    assert wrong <= scipy.stats.binom.ppf(0.999, 400, 0.05)


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
    same = Comparison.of_shares("", [np.ones(20, bool)] * 3, [np.ones(20, bool)] * 3)
    assert same.p_above(-0.01) > 0.3
    large = Comparison.of_shares("", [np.ones(5000, bool)] * 3, [np.ones(5000, bool)] * 3)
    assert large.p_above(-0.01) < 1e-3


def test_the_p_value_with_more_seeds():
    """It is that of a comparison with so many seeds, of this mean and this spread."""
    found = Comparison("", (0.3, -0.1, 0.2))
    spread = float(np.std(found.by_seed, ddof=1))
    step = spread * math.sqrt(7 / 8)
    eight = Comparison("", tuple(found.effect + sign * step for sign in (1, -1) for _ in range(4)))
    assert np.std(eight.by_seed, ddof=1) == pytest.approx(spread)
    assert found.p_above(0, 8) == pytest.approx(eight.p_above(0))
    assert found.p_below(0.5, 8) == pytest.approx(eight.p_below(0.5))
    few_points = Comparison.of_shares("", [np.arange(50) < n for n in (2, 3, 2)], [np.zeros(50, bool)] * 3)
    assert few_points.p_above(0, 1000) > 0.01, "more seeds are no more points"


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
