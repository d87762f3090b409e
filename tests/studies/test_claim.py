"""Verdicts on claims, from made-up differences."""

import math
import re

import numpy as np
import pytest

from opnorm.studies._shared.claim import ALL_SEEDS, Claim, above, below, decide, decided, no_lower, within
from opnorm.studies._shared.outcomes import MissingError, Outcomes
from opnorm.studies._shared.paired_tests import Comparison
from opnorm.studies._shared.unit import POINTS, difference_in, share_of, times_the

CLEAR, OPPOSITE, OPEN = (1.0, 1.1, 0.9), (-1.0, -1.1, -0.9), (1.0, -0.9, 0.3)
OPEN_UP = (1.0, -0.2, 0.6)
EVERY = np.ones(400, bool)


def outcome(region, *effects, **settings):
    return decide([Comparison(f"case {i}", e) for i, e in enumerate(effects)], region, **settings).outcome


def test_one_comparison():
    assert outcome(above(), CLEAR) == "holds"
    assert outcome(above(), OPPOSITE) == "does not hold"
    assert outcome(above(), OPEN) == "not decided"
    assert outcome(below(), OPPOSITE) == "holds"


def test_a_margin():
    near = (0.01, -0.01, 0.005)
    assert outcome(within(0.1), near) == "holds"
    assert outcome(within(0.1), CLEAR) == "does not hold"
    assert outcome(no_lower(0.1), near) == "holds"
    assert outcome(no_lower(0.1), OPPOSITE) == "does not hold"
    assert outcome(within(0.001), near) == "not decided"


def test_all_or_a_share_of_several():
    assert outcome(above(), CLEAR, CLEAR) == "holds"
    assert outcome(above(), CLEAR, OPEN) == "not decided"
    assert outcome(above(), CLEAR, OPPOSITE) == "does not hold"
    assert outcome(above(), CLEAR, OPPOSITE, OPPOSITE, share_needed=0.5) == "does not hold"
    assert outcome(above(), CLEAR, OPEN, CLEAR, share_needed=0.5) == "holds"
    assert outcome(above(), CLEAR, OPPOSITE, OPEN, share_needed=0.5) == "not decided"


def test_exactly_half_are_not_most():
    assert outcome(above(), CLEAR, OPPOSITE, share_needed=0.5) == "does not hold"
    assert outcome(above(), CLEAR, CLEAR, OPEN, OPEN, share_needed=0.5) == "not decided"
    assert outcome(above(), CLEAR, CLEAR, CLEAR, OPEN, share_needed=0.5) == "holds"
    assert outcome(above(), CLEAR, CLEAR, OPPOSITE, OPPOSITE, share_needed=0.5) == "does not hold"


def test_the_number_of_comparisons_counts():
    """p = 0.03 alone is decided, and not among ten of the kind."""
    just = (1.0, 0.4, 0.6)  # p = 0.03
    assert 0.02 < Comparison("", just).p_above(0) < 0.05
    assert outcome(above(), just) == "holds"
    assert outcome(above(), *[just] * 10) == "not decided"


def test_the_evidence_has_the_numbers():
    found = decide([Comparison("SVC against plain", CLEAR)], above(), unit=difference_in("the loss"))
    assert found.evidence.startswith(
        "SVC against plain: +1 in the loss (one-sided p = 0.0017; 95 %: +0.752 to +1.25 over 3 seeds). The claim: above 0"
    )
    assert (found.effect, found.seeds, found.points) == (pytest.approx(1.0), 3, None)
    one = decide([Comparison("SVC against plain", (1.0,))], above())
    assert "One seed does not decide it" in one.evidence


def test_the_evidence_has_the_bound_and_how_many_are_needed():
    one = decide([Comparison.of_shares("a against b", [EVERY] * 3, [EVERY] * 3)], no_lower(0.05), unit=POINTS)
    assert ", 0 to 0 over 400 test points). The claim: above -5 percentage points." in one.evidence
    assert ". The claim: between -0.1 and 0.1." in decide([Comparison("", CLEAR)], within(0.1)).evidence
    several = decide(
        [Comparison("", e) for e in (CLEAR, OPEN, CLEAR)],
        below(2.0),
        share_needed=0.5,
        unit=difference_in("the loss"),
    )
    assert several.evidence.startswith(
        "3 of 3 comparisons are below 2 in the loss (tests at 5 %, corrected for 3); the claim needs 2. They range from "
        "+0.133 to +1. The one that decides: "
    )
    split = decide([Comparison("", e) for e in (OPPOSITE, CLEAR, OPEN)], above())
    assert split.evidence.startswith("1 of 3 comparisons is above 0, 1 is not, 1 is undecided (")


def test_ratios_and_shares_are_read_as_such():
    """Not as a logarithm, and not as what a share has above one half."""
    doubled = decide(
        [Comparison("a against b", (0.3, 0.31, 0.29))], within(0.1), unit=times_the("typical norm")
    )
    assert doubled.evidence.startswith("a against b: 2 times the typical norm (p = ")
    assert (
        "; 95 %: 1.88 to 2.11 over 3 seeds). The claim: between 0.794 and 1.26 times the typical norm."
        in (doubled.evidence)
    )
    layers = decide([Comparison("share", (0.4, 0.5, 0.45))], above(), unit=share_of("the layers", 0.5))
    assert layers.evidence.startswith("share: 95 % of the layers (one-sided p = ")
    assert " to 100 over 3 seeds). The claim: above 50 % of the layers." in layers.evidence


def test_one_seed_is_worded_for_these_networks_only():
    found = decide([Comparison.of_shares("a against b", [EVERY], [~EVERY])], above(), unit=POINTS)
    assert found.outcome == "not decided"
    assert "One seed does not decide it (of these two networks alone: McNemar's p = " in found.evidence
    contrary = decide([Comparison.of_shares("a against b", [~EVERY], [EVERY])], above(), unit=POINTS)
    assert contrary.outcome == "not decided"


def seeds_named(verdict):
    return int(
        re.search(r"With (\d+) seeds of this effect and spread it would be decided", verdict.evidence)[1]
    )


@pytest.mark.parametrize("region", [above(), within(2.0)], ids=["one bound", "two bounds"])
@pytest.mark.parametrize("many", [1, 8])
def test_so_many_seeds_would_decide(region, many):
    """With so many seeds of this effect and spread the claim is decided, and with one less it is not."""

    def with_seeds(n):
        half, spread = n // 2, math.sqrt((n - 1) / (n - n % 2))
        values = (*[0.6 + spread] * half, *[0.6 - spread] * half, *[0.6] * (n % 2))
        return decide([Comparison(f"case {i}", values) for i in range(many)], region)

    needed = seeds_named(with_seeds(3))
    assert 3 < needed < ALL_SEEDS
    assert with_seeds(needed).outcome == "holds"
    assert with_seeds(needed - 1).outcome == "not decided"


def test_the_correction_for_their_number_takes_more_seeds():
    found = [seeds_named(decide([Comparison("", OPEN_UP)] * many, above())) for many in (1, 10)]
    assert found[0] < found[1]
    hopeless = decide([Comparison("", (1.0, -0.99))], above())
    assert "With 30 seeds of this effect and spread it would still not be decided." in hopeless.evidence


def test_what_is_missing_is_not_decided():
    def failed(outcomes):
        raise MissingError("VGG-11, plain, seed 0 failed: the training diverged")

    claim = Claim("name", "A sentence.", "Table 2", failed)
    row = claim.as_dict(Outcomes([]))
    assert (row["outcome"], row["section"]) == ("not decided", "Table 2")
    assert "the training diverged" in row["evidence"]
    unknown = Claim("name", "A sentence.", "Table 2", lambda outcomes: Comparison("a against b", (math.nan,)))
    assert "a against b" in unknown.verdict(Outcomes([])).evidence
    left_out = Claim("name", "A sentence.", "Table 2", lambda outcomes: decide([], above()))
    assert left_out.verdict(Outcomes([])).outcome == "not decided"


@pytest.mark.parametrize("error", [ValueError, IndexError, ZeroDivisionError, KeyError])
def test_errors_of_the_program_are_not_hidden(error):
    def wrong(outcomes):
        raise error

    with pytest.raises(error):
        Claim("name", "A sentence.", "Table 2", wrong).verdict(Outcomes([]))


def test_what_is_checked_exactly():
    assert decided(True, "40 of 40.").outcome == "holds"
    assert decided(False, "39 of 40.").outcome == "does not hold"


def test_equal_shares_differ_by_nothing():
    """Means of shares over seeds are equal up to rounding only."""
    assert POINTS.number((0.1 + 0.2) / 3 - 0.3 / 3) == "0"
    assert POINTS.number(0.2 - 0.1) == "+10"
    assert POINTS.number(-1 / 10_000) == "-0.01"
    assert POINTS.bound(-1e-17, 0.05) == "0 and 5 percentage points"
