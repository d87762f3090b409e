"""Verdicts on claims, from made-up differences."""

import pytest

from opnorm.studies._shared.claim import Claim, above, below, decide, decided, no_lower, within
from opnorm.studies._shared.outcomes import MissingError, Outcomes
from opnorm.studies._shared.paired_tests import Comparison

CLEAR, OPPOSITE, OPEN = (1.0, 1.1, 0.9), (-1.0, -1.1, -0.9), (1.0, -0.9, 0.3)


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
    assert outcome(above(), CLEAR, OPPOSITE, share_needed=0.5) == "holds"
    assert outcome(above(), CLEAR, OPPOSITE, OPPOSITE, share_needed=0.5) == "does not hold"


def test_the_number_of_comparisons_counts():
    """p = 0.03 alone is decided, and not among ten of the kind."""
    just = (1.0, 0.4, 0.6)  # p = 0.03
    assert 0.02 < Comparison("", just).p_above(0) < 0.05
    assert outcome(above(), just) == "holds"
    assert outcome(above(), *[just] * 10) == "not decided"


def test_the_evidence_has_the_numbers():
    found = decide([Comparison("SVC against plain", CLEAR)], above(), unit="units")
    assert found.evidence.startswith("SVC against plain: +1 units, 95 % over 3 seeds +0.752 to +1.25")
    assert (found.effect, found.seeds, found.points) == (pytest.approx(1.0), 3, None)
    open_one = decide([Comparison("SVC against plain", OPEN)], above())
    assert "seeds would" in open_one.evidence
    one = decide([Comparison("SVC against plain", (1.0,))], above())
    assert "one seed does not decide it" in one.evidence


def test_what_is_missing_is_not_decided():
    def failed(outcomes):
        raise MissingError("VGG-11, plain, seed 0 failed: the training diverged")

    claim = Claim("name", "A sentence.", "Table 2", failed)
    row = claim.as_dict(Outcomes([]))
    assert (row["outcome"], row["section"]) == ("not decided", "Table 2")
    assert "the training diverged" in row["evidence"]
    left_out = Claim("name", "A sentence.", "Table 2", lambda outcomes: decide([], above()))
    assert left_out.verdict(Outcomes([])).outcome == "not decided"


def test_what_is_checked_exactly():
    assert decided(True, "40 of 40.").outcome == "holds"
    assert decided(False, "39 of 40.").outcome == "does not hold"
